"""The chunks of a PNG: their checksums, and what they say of colours."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ImageError
from ...failures import FailureReason
from .colour import MAX_PROFILE_BYTES

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = frozenset({b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})


@dataclass(frozen=True, slots=True)
class PngChunks:
    """What stands before the pixels of a PNG."""

    depth: int
    """Bits of a sample."""
    colour_type: int
    colours: Mapping[bytes, bytes]
    """Chunks that say what the colours mean, by their type; of iCCP the profile, which is empty where it is damaged."""
    content: bytes
    """The file without its profile."""


def read_chunks(content: bytes, *, source: str) -> PngChunks:
    """
    Raises:
        ImageError: reason decode: a chunk has a wrong checksum. Pillow would not look at those of the pixels, and
            would not know the format where it is that of a text.
    """
    view = memoryview(content)
    colours: dict[bytes, bytes] = {}
    header, kept, start, at = b"", list[memoryview](), 0, len(SIGNATURE)
    pixels = False
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        if end > len(content):
            break
        critical = not kind[0] & 0x20
        if critical or not pixels:
            if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                chunk = f"{kind.decode('latin-1')!r} chunk"
                advice = "" if critical else ". Its pixels may be whole: open it and save it again"
                raise ImageError(
                    FailureReason.DECODE, f"{source} is damaged: the checksum of its {chunk} is wrong{advice}"
                )
            if kind == b"IHDR":
                header = header or content[at + 8 : end - 4]
            elif kind in _COLOURS:
                value = content[at + 8 : end - 4]
                if kind == b"iCCP":
                    value = _inflate(value)
                    kept.append(view[start:at])  # Pillow gives up the whole image for a profile of over 1 MiB
                    start = end
                colours.setdefault(kind, value)
        pixels = pixels or kind == b"IDAT"
        if kind == b"IEND":
            break
        at = end
    if kept:
        content = b"".join((*kept, view[start:]))
    depth, colour_type = (header[8], header[9]) if len(header) >= 10 else (8, 2)
    return PngChunks(depth, colour_type, colours, content)


def _inflate(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk: a name, a zero, the number of the compression, the compressed profile."""
    _, _, rest = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(rest[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
