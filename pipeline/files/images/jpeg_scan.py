"""Whether the compressed data of a JPEG are whole: a damaged scan decodes to a picture that is half grey or shifted.

libjpeg only warns of damage, and Pillow keeps its warnings to itself. Huffman codes find back into step after damage,
but seldom at the right block, so that at the end of the data blocks are missing or data are left over. Of the usual
JPEG both are seen while Pillow decodes, at no cost: the data are handed over in pieces, the last bytes alone.
- Blocks are missing: the decoder asks for more than there is. Behind the data lies no end marker, at which libjpeg
  would fill up with grey, but a few bytes of codes that no JPEG has.
- Data are left over: the decoder has finished before it asked for the last piece.
JPEGs of several scans (progressive) or with restart markers are decoded once more, by FFmpeg, which refuses damage.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

SIGNATURE = b"\xff\xd8\xff"
_NEXT_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PADDING = b"\xff\x00" * 16
"""128 bits of one. No code is all ones; and the decoder looks 64 bits ahead."""
_LEFT_OVER = 8
"""Bytes behind the last code that are no damage: some cameras align what they write."""


@dataclass(frozen=True, slots=True)
class JpegScan:
    """Where the first scan lies, and of which kind of JPEG it is."""

    process: int
    """0 baseline, 1 extended, 2 progressive, 3 lossless, 9 and more arithmetic: the number of the frame's marker."""
    bits: int
    components: int
    adobe: bool
    """Whether an Adobe segment says how colours are stored."""
    single: bool
    """Whether it is the only scan, and in one piece."""
    start: int
    end: int
    """Where its data begin and end."""

    def unread_kind(self) -> str | None:
        """A name for what no test has compared with another decoder."""
        if self.bits != 8:
            return f"JPEG of {self.bits} bits"
        if self.process > 2:
            return "lossless JPEG" if self.process == 3 else "JPEG of arithmetic or hierarchical coding"
        return None


def find_scan(content: bytes) -> JpegScan | None:
    """The first scan; None where the segments before it are damaged."""
    at, process, bits, components, adobe, restarts = 2, -1, 0, 0, False, False
    while (marker := _NEXT_MARKER.search(content, at)) is not None:
        kind, at = marker[1][0], marker.end()
        if kind in _ALONE:
            continue
        length = int.from_bytes(content[at : at + 2], "big")
        segment = content[at + 2 : at + min(length, 16)]
        if length < 2 or kind == 0xD9:
            return None
        if kind in _FRAMES and len(segment) > 5:
            process, bits, components = kind - 0xC0, segment[0], segment[5]
        elif kind == 0xDD:
            restarts = segment[:2] != b"\0\0"
        elif kind == 0xEE:
            adobe = adobe or segment.startswith(b"Adobe")
        at += length
        if kind == 0xDA:
            end = _END_OF_SCAN.search(content, at)
            single = process in (0, 1) and not restarts and segment[:1] == bytes([components])
            data = content[at : end.start() if end else None].rstrip(b"\xff")  # which may fill up before a marker
            return JpegScan(process, bits, components, adobe, single, at, at + len(data))
    return None


class ScanFile(io.BytesIO):
    """A JPEG of a single scan, for Pillow: it hands over the data up to one place after another, and counts them."""

    def __init__(self, content: bytes, scan: JpegScan) -> None:
        super().__init__(content[: scan.end] + _PADDING)
        # where those begin that stand before the end marker
        zeros = scan.start + len(content[scan.start : scan.end].rstrip(b"\0"))
        padded = scan.end - zeros > 2 * _LEFT_OVER
        places = (zeros - _LEFT_OVER, zeros + _LEFT_OVER, scan.end - _LEFT_OVER) if padded else (scan.end - _LEFT_OVER,)
        self._places = [max(scan.start, place) for place in places]
        self._passed = 0

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        self._passed = max(self._passed, sum(place <= at for place in self._places))
        ahead = [place for place in self._places if place > at]
        if ahead and size is not None and size > 0:
            size = min(size, ahead[0] - at)
        return super().read(size)

    @property
    def was_used_up(self) -> bool:
        """Whether the picture needed all data, or all but the zeros that webcams fill up with.

        Zeros in place of data decode too: then the picture ends somewhere among them.
        """
        return self._passed == len(self._places) or (len(self._places) > 1 and self._passed == 1)


def ffmpeg_finds_damage(content: bytes) -> bool:
    """Whether FFmpeg's decoder, told to refuse damage, refuses the data of a JPEG."""
    import av  # costs the import of FFmpeg, and most JPEGs need none
    from av.error import FFmpegError, InvalidDataError

    decoder: Any = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode", "lowres": "3"}  # all codes are read, and an eighth of the pixels made
    decoder.thread_count = 1
    try:
        frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
    except InvalidDataError:
        return True
    except FFmpegError:  # a kind of JPEG that this decoder lacks
        return False
    return any(frame.is_corrupt for frame in frames)
