"""A clip of a video as world models take it.

The rules of reading, in order (their version is `VIDEO_RULES` in pipeline/latents/recipe.py):
- the stream, its frames and their times: video_files.py
- the frames at the times of the clip, by their time stamps: video_times.py; or consecutive ones as they are stored
- shown as the file says: video_showing.py
- each frame is fitted as an image is (images.py)

Axes:  F video frame   H, W pixel row, column
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import TypeVar

import torch
from av.video.frame import VideoFrame
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.latents.recipe import Fit
from .images import fit_image, to_tensor
from .video_files import OpenVideo, open_video
from .video_showing import Showing
from .video_times import ROUNDING_S, from_moment, moments, nearest

MAX_CLIP_PIXELS = 2**28
"""Pixels of all fitted frames of a clip: 3 GiB as float32."""
_SKIPPED_S = 5.0
"""A clip that begins earlier is decoded from the video's start."""
REPEATED = "with fewer frames a second than the clip, so that some were repeated"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video."""

    pixels: Float[Tensor, "3 F height width"]
    """Float32 in [-1, 1]."""
    notes: tuple[str, ...]
    """What the file says of its showing, and what was done about it."""
    rate: float
    """Frames a second of the file, on average."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a video that a clip is taken from, in seconds from its first frame on."""

    start_s: float = 0.0
    end_s: float | None = None
    """A clip that would go on after it is too short; None is the end of the video."""


WHOLE = Window()


def load_video(
    content: bytes,
    frames: int,
    height: int,
    width: int,
    fit: Fit,
    *,
    source: str,
    clip_fps: float | None = None,
    window: Window = WHOLE,
) -> Clip:
    """A clip of a video, decoded, fitted and scaled to [-1, 1] by the video rules.

    Args:
        content: bytes of the file. source: its name in error messages.
        frames: how many are taken; later ones are not decoded.
        height, width: pixels of the result.
        clip_fps: how many of a second are taken; None takes each one, whatever its time.
        window: where the clip begins, and what it must not go beyond.
    Raises:
        ImageError: the video cannot be used; `reason` is format, too_large, short, memory or decode.
    """
    pixels = torch.empty(3, frames, height, width)

    def taken(video: OpenVideo) -> Clip:
        showing = Showing(source, video.notes)
        count, last = 0, None
        for frame in _chosen(video, frames, clip_fps, window):
            if frame is last:
                video.notes[REPEATED] = None
                pixels[:, count] = pixels[:, count - 1]
            else:
                picture = showing.picture(frame, video.pixel_aspect)
                pixels[:, count] = to_tensor(fit_image(picture, height, width, fit))
            count, last = count + 1, frame
            if count == frames:
                return Clip(pixels, tuple(video.notes), video.rounded_rate)
        raise ImageError(FailureReason.SHORT, _short(source, count, frames, clip_fps, window))

    if clip_fps is not None and window.end_s is not None:
        last = moments(frames, clip_fps, window.start_s)[-1]
        if last > Fraction(window.end_s) + ROUNDING_S:
            count = sum(moment <= window.end_s for moment in moments(frames, clip_fps, window.start_s))
            raise ImageError(FailureReason.SHORT, _short(source, count, frames, clip_fps, window))
    return _decoded(content, source, window.start_s, taken)


def load_moment(content: bytes, start_s: float, *, source: str) -> tuple[Image.Image, tuple[str, ...], float]:
    """The frame of a video at a moment, as a picture; notes; and frames a second of the file. Raises as `load_video`."""

    def taken(video: OpenVideo) -> tuple[Image.Image, tuple[str, ...], float]:
        for frame in nearest(video.timed(), [Fraction(start_s)]):
            picture = Showing(source, video.notes).picture(frame, video.pixel_aspect)
            return picture, tuple(video.notes), video.rounded_rate
        raise ImageError(FailureReason.SHORT, f"{source} ends before {start_s:g} s, the moment that is wanted")

    return _decoded(content, source, start_s, taken)


def _decoded(content: bytes, source: str, start_s: float, taken: Callable[[OpenVideo], Result]) -> Result:
    """What `taken` makes of the video, decoded from shortly before the start where that can be."""
    if start_s >= _SKIPPED_S:
        with suppress(ImageError), open_video(content, source) as video:
            video.skip_to(start_s)
            return taken(video)
    with open_video(content, source) as video:
        return taken(video)


def _chosen(video: OpenVideo, frames: int, clip_fps: float | None, window: Window) -> Iterator[VideoFrame]:
    if clip_fps is not None:
        return nearest(video.timed(), moments(frames, clip_fps, window.start_s))
    if window == WHOLE:
        return video.frames()
    timed = video.timed()
    if window.end_s is not None:
        end = Fraction(window.end_s) + ROUNDING_S
        timed = takewhile(lambda frame: frame.time_s <= end, timed)
    return from_moment(timed, Fraction(window.start_s))


def _short(source: str, count: int, frames: int, clip_fps: float | None, window: Window) -> str:
    advice = "Fewer --steps or a smaller --stride need fewer: 1 + 4 x steps x stride"
    where = "" if not window.start_s else f" from {window.start_s:g} s on"
    where += "" if window.end_s is None else f" up to {window.end_s:g} s"
    if clip_fps is None:
        return f"{source} has {count} frames{where} and the recipe takes the first {frames}. {advice}"
    return (
        f"{source} lasts for {count} frames at {clip_fps:g} frames/s{where}, {count / clip_fps:.2f} s, and the recipe "
        f"takes {frames}, {frames / clip_fps:.2f} s. {advice}"
    )
