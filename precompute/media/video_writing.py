"""Write frames as an MP4 file, by PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ...pipeline.files.atomic import replace

_LOSSLESS = {"crf": "0", "preset": "ultrafast"}
_TO_WATCH = {"crf": "18", "preset": "medium"}


def write_video(path: Path, frames: NDArray[Any], fps: int | float, *, lossless: bool = True) -> None:
    """Write frames as an MP4 file of lossless H.264 RGB; reading it returns the same pixels, bit for bit.

    The file appears whole or not at all and replaces an existing one. With one release of PyAV, equal frames and fps
    give equal files.

    Args:
        path: ends in `.mp4`; its folder exists.
        frames: uint8 (F, H, W, 3) RGB, F at least 1.
        fps: video frames per second.
        lossless: False writes H.264 in yuv420p, which every player and browser shows; it needs even height and width.
    Raises:
        ConfigError: the frames have another shape or dtype, or fps is not positive.
        OSError: the file cannot be written.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape or fps <= 0:
        raise ConfigError(
            f"{path}: write_video takes uint8 frames of shape (F, H, W, 3) and a positive rate, "
            f"got {frames.dtype} {frames.shape} at {fps} frames per second"
        )
    if not lossless and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ConfigError(f"{path}: a lossy video needs an even height and width, got {frames.shape[1:3]}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        codec, options = ("libx264rgb", _LOSSLESS) if lossless else ("libx264", _TO_WATCH)
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        stream.thread_count = 1  # the number of threads would change the bytes
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    replace(path.parent, path, buffer.getbuffer(), durable=False)
