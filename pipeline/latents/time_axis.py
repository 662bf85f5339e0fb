"""What the latent frames along T are, in words, for each kind of recipe; needs no torch.

Lives here: the label of each frame, whether the frames follow one another, how far ahead the last one is.
Elsewhere: making them (precompute/rollout/kinds.py).
"""

from __future__ import annotations

from .recipe import Kind, Recipe
from .spec import LatentSpec, latent_frames, video_frames

_CLIPS: frozenset[Kind] = frozenset({"rollout", "samples", "continuation", "frames"})
_PREDICTED: frozenset[Kind] = _CLIPS - {"frames"}


def is_clip(kind: Kind) -> bool:
    """Whether the frames follow one another in time, and are decoded together; else each is a picture of its own."""
    return kind in _CLIPS


def clips(recipe: Recipe) -> list[list[int]]:
    """The latent frames that are decoded together, for each clip; of a posterior, the mean alone is a picture."""
    frames = list(range(latent_frames(recipe.rollout_steps)))
    if recipe.kind == "posterior":
        return [frames[:1]]
    if recipe.kind == "samples":
        each = recipe.rollout_steps // recipe.draws
        return [[0, *frames[1 + draw * each : 1 + (draw + 1) * each]] for draw in range(recipe.draws)]
    return [frames] if is_clip(recipe.kind) else [[frame] for frame in frames]


def frame_label(recipe: Recipe, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
    """What latent frame t is: `now`, `+1.33 s`, `draw 2 +0.33 s`, `frame 16`, `2x2 tile 3`, `log-variance`.

    Args:
        fps: video frames per second that the world model's frames stand for; None where nobody knows.
        temporal_stride: video frames of a latent frame.
    """
    frame = _video_frame(recipe, t, temporal_stride)
    if recipe.kind == "frames" or (recipe.kind == "continuation" and frame < recipe.observed_frames):
        return f"frame {frame}"  # of a video, whose own rate no recipe knows
    if recipe.kind == "continuation":
        return _ahead(frame - recipe.observed_frames + 1, fps)
    if recipe.kind == "posterior":
        return ("mean", "log-variance")[t]
    if recipe.kind == "views":
        return _view(recipe, t)
    if t == 0:
        return "now"
    draw, step = divmod(t - 1, recipe.rollout_steps // recipe.draws)
    ahead = _ahead(_video_frame(recipe, 1 + step, temporal_stride), fps)
    return f"draw {recipe.draw + draw} {ahead}" if recipe.kind == "samples" else ahead


def horizon_s(recipe: Recipe, spec: LatentSpec, fps: float | None) -> float | None:
    """Seconds from what is observed to the last predicted frame; None where nothing is predicted or fps is unknown."""
    if recipe.kind not in _PREDICTED or fps is None:
        return None
    seen = recipe.observed_frames - 1 if recipe.kind == "continuation" else 0
    return (_video_frame(recipe, recipe.rollout_steps // recipe.draws, spec.temporal_stride) - seen) / fps


def describe(recipe: Recipe, spec: LatentSpec, fps: float | None) -> str:
    """The T axis in a line."""
    frames = latent_frames(recipe.rollout_steps)
    labels = [frame_label(recipe, t, fps, temporal_stride=spec.temporal_stride) for t in range(frames)]
    shown = ", ".join(labels if frames <= 3 else [*labels[:2], "…", labels[-1]])
    one = "" if is_clip(recipe.kind) else ", each a picture of its own"
    kept = f", every {recipe.stride}. latent frame kept" if recipe.stride > 1 else ""
    return f"T = {frames}: {shown}{kept}{one}"


def _ahead(frames: int, fps: float | None) -> str:
    return f"frame +{frames}" if fps is None else f"+{frames / fps:.2f} s"


def _view(recipe: Recipe, t: int) -> str:
    if t == 0:
        return "whole"
    if recipe.views == "zoom":
        return f"{2 ** (t / 2):.3g}x"
    side = 2
    while t > side**2:
        t, side = t - side**2, side + 1
    return f"{side}x{side} tile {t}"


def _video_frame(recipe: Recipe, t: int, temporal_stride: int) -> int:
    """The last video frame that latent frame t stands for."""
    return video_frames(t, stride=recipe.stride, temporal_stride=temporal_stride) - 1
