"""The pages of a TIFF, and whether the first is in a layout that is decoded rightly: Pillow opens more than that."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

# WhiteIsZero, BlackIsZero, RGB, palette, CMYK, YCbCr, CIELab: of each the bits and the kinds of further samples
_EXTRA = ((), (0,), (1,), (2,))
_TIFF_LAYOUTS: Mapping[int, frozenset[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    0: frozenset(((bits,), ()) for bits in (1, 2, 4, 8, 16)),
    1: frozenset(
        {*(((bits,), ()) for bits in (1, 2, 4, 8, 12, 16, 32)), *(((8, 8), extra) for extra in _EXTRA if extra)}
    ),
    2: frozenset(((bits,) * (3 + len(extra)), extra) for bits in (8, 16) for extra in _EXTRA)
    | {((8,) * 4, ()), ((16,) * 4, ())},  # a fourth sample that is not said to be alpha, and is
    3: frozenset(((bits,), ()) for bits in (1, 2, 4, 8)),
    5: frozenset({((8,) * 4, ()), ((16,) * 4, ()), ((8,) * 5, (0,))}),
    6: frozenset({((8,) * 3, ())}),
    8: frozenset({((8,) * 3, ())}),
}
_TIFF_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000})

_NEW_SUBFILE, _OLD_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 258, 259, 262
_SAMPLES, _PLANAR, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _DNG_VERSION = 277, 284, 332, 338, 339, 50706
_TIFF_TAGS = frozenset(
    {_NEW_SUBFILE, _OLD_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _INK_SET, _EXTRA_SAMPLES}
    | {_SAMPLE_FORMAT, _DNG_VERSION}
)
_RAW_PHOTOMETRICS = (32803, 34892)
"""Colour filter array and linear raw."""
_MAX_PAGES, _MAX_ENTRIES = 32, 4096
_Page = Mapping[int, tuple[int, ...]]
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def name_raw(content: bytes) -> str | None:
    """A name for the files of cameras that are TIFFs whose first page is raw."""
    page = _first_page(content)
    if _DNG_VERSION in page:
        return "camera raw (DNG)"
    return "camera raw" if page.get(_PHOTOMETRIC, (0,))[0] in _RAW_PHOTOMETRICS else None


def unread_tiff(content: bytes) -> str | None:
    """Words for the layout of a TIFF's first page, where it is not read; None of other content."""
    if content[:4] not in TIFF_HEADS:
        return None
    page = _first_page(content)
    photometric = page.get(_PHOTOMETRIC, (0,))[0]
    extra = page.get(_EXTRA_SAMPLES, ())
    samples = page.get(_SAMPLES, (1,))[0]
    bits = page.get(_BITS, (1,))
    bits = bits * samples if len(bits) == 1 and samples <= 16 else bits[:samples]
    kinds = set(page.get(_SAMPLE_FORMAT, (1,)))
    compression = page.get(_COMPRESSION, (1,))[0]
    words = f"TIFF with photometric interpretation {photometric}, {'+'.join(map(str, bits))} bits"
    if compression not in _TIFF_COMPRESSIONS:
        return f"TIFF with compression {compression}"
    if photometric == 6 and len(bits) == 3 and compression != 7:
        return "TIFF with YCbCr that is not JPEG-compressed"
    if (bits, extra) not in _TIFF_LAYOUTS.get(photometric, frozenset()):
        return f"{words} and further samples of kind {extra}" if extra else words
    if page.get(_PLANAR, (1,))[0] == 2 and bits[0] == 16 and compression == 1:
        return f"{words} in planes without compression"  # Pillow mixes up their bytes
    if kinds == {3}:
        big_endian = content[:1] == b"M" and compression != 1  # whose bytes Pillow swaps twice
        return None if (photometric, bits, big_endian) == (1, (32,), False) else f"{words} of floating point"
    if content[:1] == b"M" and (photometric, bits) in ((0, (16,)), (1, (12,)), (1, (32,))):
        return f"{words}, big-endian"
    if content[:4] == b"MM\0+":
        return "big-endian BigTIFF"
    if kinds - {1, 4}:
        return f"{words} of signed or complex numbers"
    if photometric == 5 and page.get(_INK_SET, (1,))[0] != 1:
        return "TIFF with inks that are not CMYK"
    return None


def tiff_depth(content: bytes) -> tuple[int, bool]:
    """The bits of a sample of a TIFF's first page, and whether zero is white."""
    page = _first_page(content)
    return page.get(_BITS, (1,))[0], page.get(_PHOTOMETRIC, (0,))[0] == 0


def tiff_is_preview(content: bytes) -> bool:
    """Whether the first page says that it is a smaller version of another."""
    return _is_aside(_first_page(content))


def tiff_has_pages(content: bytes) -> bool:
    """Whether there is a second page that is neither a smaller version of another nor its mask."""
    return any(number and not _is_aside(page) for number, page in enumerate(_pages(content)))


def _is_aside(page: _Page) -> bool:
    """Whether a page is a thumbnail or a mask."""
    return bool(page.get(_NEW_SUBFILE, (0,))[0] & 0b101) or page.get(_OLD_SUBFILE, (1,))[0] == 2


def _first_page(content: bytes) -> _Page:
    return next(_pages(content), dict[int, tuple[int, ...]]())


def _pages(content: bytes) -> Iterator[_Page]:
    """The whole numbers among the tags that matter here, page by page; ends where the file is damaged."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    word, entry_bytes, inline, count_format = ("Q", 20, 8, "Q") if big else ("I", 12, 4, "H")
    sizes = {1: "B", 3: "H", 4: "I", 16: "Q"}
    try:
        at: int = struct.unpack_from(order + word, content, 8 if big else 4)[0]
        visited: set[int] = set()
        while at and at not in visited and len(visited) < _MAX_PAGES:
            visited.add(at)
            entries: int = struct.unpack_from(order + count_format, content, at)[0]
            if entries > _MAX_ENTRIES:
                return
            at += struct.calcsize(count_format)
            page: dict[int, tuple[int, ...]] = {}
            for start in range(at, min(at + entries * entry_bytes, len(content)), entry_bytes):
                tag, kind, count = struct.unpack_from(order + "HH" + word, content, start)
                if tag not in _TIFF_TAGS or kind not in sizes or not 0 < count <= 16:
                    continue
                values = order + sizes[kind] * count
                place = start + entry_bytes - inline
                if struct.calcsize(values) > inline:
                    place = struct.unpack_from(order + word, content, place)[0]
                page.setdefault(tag, struct.unpack_from(values, content, place))
            yield page
            at = struct.unpack_from(order + word, content, at + entries * entry_bytes)[0]
    except (struct.error, OverflowError):  # an offset may have 64 bits
        return
