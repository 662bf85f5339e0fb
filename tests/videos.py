"""Small video files of other makers, as they come: any codec, rate and time, and what they say of their own showing."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

ONE = 0x10000
"""1 in a display matrix."""
EIGHT = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
"""a, b, c, d of the matrices that turn by quarters and mirror: pixel (x, y) is shown at (a x + c y, b x + d y)."""


def matrix_of(a: float, b: float, c: float, d: float) -> tuple[int, ...]:
    """The nine numbers of a display matrix, as ISO 14496-12 section 8.3.2 has them."""
    return (*map(int, (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0)), 1 << 30)


def encoded(
    format: str,
    codec: str,
    pix_fmt: str,
    frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | Sequence[av.VideoFrame],
    mode: str = "rgb24",
    *,
    rate: int | Fraction = 10,
    stamps_ms: Sequence[int] | None = None,
    prepare: Callable[[Any], None] = lambda _: None,
    **options: str,
) -> bytes:
    """A video file.

    Args:
        frames: pictures in a pixel format that PyAV calls `mode`, or frames.
        stamps_ms: when each is shown; None follows from the rate.
        prepare: called with the stream before anything is written.
    """
    buffer = io.BytesIO()
    made = [
        frame if isinstance(frame, av.VideoFrame) else av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), mode)
        for frame in frames
    ]
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = made[0].height, made[0].width
        stream.pix_fmt = pix_fmt
        if stamps_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        for number, frame in enumerate(made):
            if stamps_ms is not None:
                frame.pts, frame.time_base = stamps_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def turned(content: bytes, a: float = 0, b: float = 1, c: float = -1, d: float = 0) -> bytes:
    """A copy of an MP4 with a display matrix; without more, one that players turn by a quarter to the right."""
    at = content.index(b"tkhd") - 4 + 48
    return content[:at] + struct.pack(">9i", *matrix_of(a, b, c, d)) + content[at + 36 :]
