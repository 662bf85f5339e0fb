"""What the latent frames along T are, in words, for each kind of recipe; needs no torch.

Lives here: the label of each frame, whether the frames follow one another, how far ahead the last one is.
Elsewhere: making them (precompute/kinds.py).
"""

from __future__ import annotations

from .latent_spec import LatentSpec, latent_frames, video_frames
from .recipe import Kind, Recipe

_CLIPS: frozenset[Kind] = frozenset({"rollout", "frames"})


def is_clip(kind: Kind) -> bool:
    """Whether the frames follow one another in time, and are decoded together; else each is a picture of its own."""
    return kind in _CLIPS


def column(recipe: Recipe, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
    """What latent frame t is: `now`, `+1.33 s`, `frame 16`.

    Args:
        fps: video frames per second that the world model's frames stand for; None where nobody knows.
        temporal_stride: video frames of a latent frame.
    """
    frame = _video_frame(recipe, t, temporal_stride)
    if recipe.kind == "rollout":
        return "now" if t == 0 else f"frame +{frame}" if fps is None else f"+{frame / fps:.2f} s"
    if recipe.kind == "frames":  # of a video, whose own rate no recipe knows
        return f"frame {frame}"
    return f"t = {t}"


def horizon_s(recipe: Recipe, spec: LatentSpec, fps: float | None) -> float | None:
    """Seconds from the observed frame to the last predicted one; None where nothing is predicted or fps is unknown."""
    if recipe.kind != "rollout" or fps is None:
        return None
    return _video_frame(recipe, recipe.rollout_steps, spec.temporal_stride) / fps


def describe(recipe: Recipe, spec: LatentSpec, fps: float | None) -> str:
    """The T axis in a line."""
    frames = latent_frames(recipe.rollout_steps)
    labels = [column(recipe, t, fps, temporal_stride=spec.temporal_stride) for t in range(frames)]
    shown = ", ".join(labels if frames <= 3 else [*labels[:2], "…", labels[-1]])
    one = "" if is_clip(recipe.kind) else ", each a picture of its own"
    kept = f", every {recipe.stride}. latent frame kept" if recipe.stride > 1 else ""
    return f"T = {frames}: {shown}{kept}{one}"


def _video_frame(recipe: Recipe, t: int, temporal_stride: int) -> int:
    """The last video frame that latent frame t stands for."""
    return video_frames(t, stride=recipe.stride, temporal_stride=temporal_stride) - 1
