"""Video files, read and written frame by frame with PyAV.

The rules of reading, in order (their version is `VIDEO_RULES` in pipeline/latents/recipe.py):
- MP4, MOV, MKV, WebM or AVI, told by content and never by name; at most 1 GiB and 8K frames
- the first video stream, in a codec of a fixed list
- consecutive frames from the start, in display order; their times are ignored
- rotation and pixel aspect ratio are not applied
- colours as the file states them, BT.601 where it states none; alpha over white
- each frame is fitted as an image is (images.py)

Axes:  F video frame   H, W pixel row, column
"""

from __future__ import annotations

import io
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.atomic import replace
from ...pipeline.files.images import to_rgb
from ...pipeline.latents.recipe import Fit
from .images import fit_image, to_tensor

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
MAX_BYTES = 2**30
MAX_PIXELS = 2**25
"""Pixels of one frame; 8K has 33.2 million."""
MAX_CLIP_PIXELS = 2**28
"""Pixels of all fitted frames of a clip: 3 GiB as float32."""

# Codecs of cameras, phones, screen recorders and research data. FFmpeg opens no other decoder.
_DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "mpeg4", "msmpeg4v2", "msmpeg4v3", "mpeg1video", "mpeg2video"),
    *("mjpeg", "prores", "dnxhd", "ffv1", "ffvhuff", "huffyuv", "utvideo", "qtrle", "png", "rawvideo"),
)
_STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix")
"""Brands of still images that use the MP4 container."""
# Slower than swscale's defaults, but with the same bits on every CPU.
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
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


def load_video(
    content: bytes, frames: int, height: int, width: int, fit: Fit, *, source: str
) -> tuple[Float[Tensor, "3 F height width"], int]:
    """The first frames of a video, decoded, fitted and scaled to [-1, 1] by the video rules.

    Args:
        content: bytes of the file. source: its name in error messages.
        frames: how many are read; later ones are not decoded.
        height, width: pixels of the result.
    Returns:
        Float32 in [-1, 1], and the degrees by which a player would rotate the video; the pixels are not rotated.
    Raises:
        ImageError: the video cannot be used; `reason` is format, too_large, short, memory or decode.
    """
    clip = torch.empty(3, frames, height, width)
    count = rotation = 0
    for picture, degrees in _pictures(content, source):
        clip[:, count] = to_tensor(fit_image(picture, height, width, fit))
        count, rotation = count + 1, degrees
        if count == frames:
            return clip, rotation
    raise ImageError(
        FailureReason.SHORT,
        f"{source} has {count} frames and the recipe takes the first {frames}. "
        "Fewer --steps or a smaller --stride need fewer: 1 + 4 x steps x stride",
    )


def container_of(content: bytes) -> str | None:
    """FFmpeg's name of the container that the first bytes state; None where they state no video."""
    if content[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if content[:4] == b"RIFF" and content[8:12] == b"AVI ":
        return "avi"
    if content[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and content[8:12] not in _STILL_BRANDS:
        return "mov"
    return None


def _pictures(content: bytes, source: str) -> Generator[tuple[Image.Image, int]]:
    """The frames of a video as RGB images in display order, each with the rotation it states, in degrees."""
    if (format := container_of(content)) is None:
        raise ImageError(FailureReason.FORMAT, f"{source} is not a video in MP4, MOV, MKV, WebM or AVI")
    try:
        # the format is named and never guessed: from a playlist FFmpeg would open the files it points to
        options = {"codec_whitelist": ",".join(_DECODERS), "enable_drefs": "0"}
        with av.open(io.BytesIO(content), "r", format=format, container_options=options) as container:
            if not container.streams.video:
                raise ImageError(FailureReason.FORMAT, f"{source} has no video stream")
            stream = container.streams.video[0]
            decoder = stream.codec_context
            if decoder is None or decoder.name not in _DECODERS:
                name = "an unknown codec" if decoder is None else f"the codec {decoder.name}"
                raise ImageError(
                    FailureReason.FORMAT, f"{source} is in {name}, which is not read; re-encode it as H.264"
                )
            _check_size(decoder.width, decoder.height, source)
            decoder.thread_count = 1
            decoder.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ImageError(FailureReason.DECODE, f"{source} is damaged at one of its first frames")
                _check_size(frame.width, frame.height, source)
                mode = "rgba" if any(part.is_alpha for part in frame.format.components) else "rgb24"
                pixels = frame.to_ndarray(format=mode, interpolation=_CONVERSION, threads=1)
                yield to_rgb(Image.fromarray(pixels)), frame.rotation
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            FailureReason.MEMORY, f"{source} takes more memory to decode than one input may have"
        ) from error
    except Exception as error:  # FFmpeg has an exception for each of its codes, and some of Python's
        problem = getattr(error, "strerror", None) or error
        raise ImageError(
            FailureReason.DECODE, f"{source} cannot be decoded: {type(error).__name__}: {problem}"
        ) from error


def _check_size(width: int, height: int, source: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            FailureReason.TOO_LARGE, f"{source} has frames of {width} x {height} pixels; the limit is {MAX_PIXELS:,}"
        )
