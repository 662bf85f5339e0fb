"""Labels and times of the latent frames along T, for each kind of recipe. Needs no torch."""

from __future__ import annotations

from .recipe import Recipe
from .spec import LatentSpec, latent_frames, video_frames


def horizon_s(recipe: Recipe, spec: LatentSpec, fps: float | None) -> float | None:
    """Seconds from what is observed to the last predicted frame; None where nothing is predicted or fps is unknown."""
    first = recipe.traits.first_predicted_frame(recipe)
    if first is None or fps is None:
        return None
    steps = recipe.steps_of_a_draw
    frames = video_frames(steps, stride=recipe.stride, temporal_stride=spec.temporal_stride)
    return (frames - first) / fps


def label_frames(recipe: Recipe, spec: LatentSpec, fps: float | None, frames: int) -> list[str]:
    """What each of the first `frames` latent frames is, for most kinds its time: see `Kind.label`."""
    return [recipe.traits.label(recipe, t, fps, temporal_stride=spec.temporal_stride) for t in range(frames)]


def seconds_of_frames(recipe: Recipe, spec: LatentSpec, fps: float | None) -> list[float] | None:
    """When each latent frame is, see `Kind.seconds`; None where one of them is at no time that is known."""
    stride, frames = spec.temporal_stride, range(latent_frames(recipe.rollout_steps))
    seconds = [recipe.traits.seconds(recipe, t, fps, temporal_stride=stride) for t in frames]
    recorded = [second for second in seconds if second is not None]
    return recorded if len(recorded) == len(seconds) else None


def describe(recipe: Recipe, spec: LatentSpec, fps: float | None) -> str:
    """The T axis in a line."""
    frames, kind = latent_frames(recipe.rollout_steps), recipe.traits
    labels = label_frames(recipe, spec, fps, frames)
    text = ", ".join(labels if frames <= 3 else [*labels[:2], "…", labels[-1]])
    note = "" if kind.is_clip else ", each a picture of its own"
    stride_note = f", every {recipe.stride}. latent frame kept" if recipe.stride > 1 else ""
    return f"T = {frames}: {text}{stride_note}{note}"
