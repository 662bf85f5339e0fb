"""A clip of a video as world models take it.

The rules of reading, in order (their version is `VIDEO_RULES` in pipeline/latents/recipe.py):
- the stream, its frames and their times: video_files.py
- the frames at the times of the clip, by their time stamps: video_times.py; or consecutive ones as they are stored
- shown as the file says: video_showing.py
- each frame is fitted as an image is (images.py)

Axes:  F video frame   H, W pixel row, column
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.latents.recipe import Fit
from .images import fit_image, to_tensor
from .video_files import open_video
from .video_showing import Showing
from .video_times import moments, nearest

MAX_CLIP_PIXELS = 2**28
"""Pixels of all fitted frames of a clip: 3 GiB as float32."""
REPEATED = "with fewer frames a second than the clip, so that some were repeated"


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video."""

    pixels: Float[Tensor, "3 F height width"]
    """Float32 in [-1, 1]."""
    notes: tuple[str, ...]
    """What the file says of its showing, and what was done about it."""
    rate: float
    """Frames a second of the file, on average."""


def load_video(
    content: bytes, frames: int, height: int, width: int, fit: Fit, *, source: str, clip_fps: float | None = None
) -> Clip:
    """The first frames of a video, decoded, fitted and scaled to [-1, 1] by the video rules.

    Args:
        content: bytes of the file. source: its name in error messages.
        frames: how many are taken; later ones are not decoded.
        height, width: pixels of the result.
        clip_fps: how many of a second are taken; None takes each one, whatever its time.
    Raises:
        ImageError: the video cannot be used; `reason` is format, too_large, short, memory or decode.
    """
    pixels = torch.empty(3, frames, height, width)
    with open_video(content, source) as video:
        showing = Showing(source, video.notes)
        count, last = 0, None
        for frame in video.frames() if clip_fps is None else nearest(video.timed(), moments(frames, clip_fps)):
            if frame is last:
                video.notes[REPEATED] = None
                pixels[:, count] = pixels[:, count - 1]
            else:
                picture = showing.picture(frame, video.pixel_aspect)
                pixels[:, count] = to_tensor(fit_image(picture, height, width, fit))
            count, last = count + 1, frame
            if count == frames:
                return Clip(pixels, tuple(video.notes), round(float(video.rate), 3))
    raise ImageError(FailureReason.SHORT, _short(source, count, frames, clip_fps))


def _short(source: str, count: int, frames: int, clip_fps: float | None) -> str:
    advice = "Fewer --steps or a smaller --stride need fewer: 1 + 4 x steps x stride"
    if clip_fps is None:
        return f"{source} has {count} frames and the recipe takes the first {frames}. {advice}"
    return (
        f"{source} lasts for {count} frames at {clip_fps:g} frames/s, {count / clip_fps:.2f} s, and the recipe takes "
        f"{frames}, {frames / clip_fps:.2f} s. {advice}"
    )
