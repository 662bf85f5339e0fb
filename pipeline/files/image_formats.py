"""What a file is, told by its content: formats that are read, those that are known by name only, and their variants.

Pillow opens more than it decodes rightly. What is read here was compared with an independent decoder, pixel by pixel
(tests/pipeline/files/test_image_layouts.py); anything else is refused by its name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".pjpeg", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".gif", ".heic", ".heif", ".hif"}
)
"""HEIC is among them whether or not it can be read, so that each file is a row and none is passed over."""
HEIC = "HEIC"

_MODES: Mapping[str, frozenset[str]] = {
    "JPEG": frozenset({"L", "RGB", "CMYK"}),
    "MPO": frozenset({"L", "RGB", "CMYK"}),
    "PNG": frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}),
    "WEBP": frozenset({"RGB", "RGBA"}),
    "AVIF": frozenset({"RGB", "RGBA"}),
    "HEIF": frozenset({"L", "LA", "RGB", "RGBA"}),
    "BMP": frozenset({"1", "L", "P", "RGB", "RGBA"}),
    "DIB": frozenset({"1", "L", "P", "RGB", "RGBA"}),
    "GIF": frozenset({"L", "P", "RGB", "RGBA"}),
}
# WhiteIsZero, BlackIsZero, RGB, palette, CMYK, YCbCr, CIELab: of each the bits and the kinds of further samples
_EXTRA = ((), (0,), (1,), (2,))
_TIFF_LAYOUTS: Mapping[int, frozenset[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    0: frozenset(((bits,), ()) for bits in (1, 2, 4, 8, 16)),
    1: frozenset(
        {*(((bits,), ()) for bits in (1, 2, 4, 8, 12, 16, 32)), *(((8, 8), extra) for extra in _EXTRA if extra)}
    ),
    2: frozenset(((bits,) * (3 + len(extra)), extra) for bits in (8, 16) for extra in _EXTRA)
    | {((8,) * 4, ()), ((16,) * 4, ())},  # a fourth sample that is not said to be alpha, and is
    3: frozenset({*(((bits,), ()) for bits in (1, 2, 4, 8)), ((8, 8), (0,)), ((8, 8), (2,))}),
    5: frozenset({((8,) * 4, ()), ((16,) * 4, ()), ((8,) * 5, (0,))}),
    6: frozenset({((8,), ()), ((8,) * 3, ())}),
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
_MAX_PAGES = 32
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_HEADS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"II\xbc", "JPEG XR"),
    (b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (b"IIRO", "camera raw (ORF)"),
    (b"IIRS", "camera raw (ORF)"),
    (b"MMOR", "camera raw (ORF)"),
    (b"IIU\0", "camera raw (RW2)"),
    (b"FOVb", "camera raw (X3F)"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"\0\0\1\0", "ICO"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"\x93NUMPY", "NumPy"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\3\4", "ZIP"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file (git lfs pull fetches it)"),
)
_BRANDS: Mapping[bytes, str] = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), HEIC),
    **dict.fromkeys((b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC sequence"),
    b"crx ": "camera raw (CR3)",
    b"jxl ": "JPEG XL",
    b"jp2 ": "JPEG 2000",
}


def name_format(content: bytes) -> str | None:
    """The name of a format that is known and not read, HEIC included; None of any other content."""
    if content[4:8] == b"ftyp":
        brands = _brands(content)
        if content[8:12] in _BRANDS:
            return _BRANDS[content[8:12]]
        if content[8:12] in (b"mif1", b"msf1", b"miaf") and not brands & {b"avif", b"avis"}:
            return next((_BRANDS[brand] for brand in _BRANDS if brand in brands), "HEIF of an unknown codec")
        return None
    for head, name in _HEADS:
        if content.startswith(head):
            return name
    if content[:4] in _TIFF_HEADS:
        if content[8:10] == b"CR":
            return "camera raw (CR2)"
        page = next(tiff_pages(content), {})
        if _DNG_VERSION in page:
            return "camera raw (DNG)"
        if page.get(_PHOTOMETRIC, (0,))[0] in _RAW_PHOTOMETRICS:
            return "camera raw"
    text = content[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith((b"<svg", b"<!doctype svg")) or (
        text.startswith(b"<?xml") and b"<svg" in content[:4096].lower()
    ):
        return "SVG"
    return None


def is_known(content: bytes) -> bool:
    """Whether the first bytes are those of a format that is read, so that a file that does not open is damaged."""
    return (
        content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM"))
        or content[:4] in _TIFF_HEADS
        or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")
        or (content[4:8] == b"ftyp" and bool(_brands(content) & {b"avif", b"avis"}))
    )


def unread_layout(content: bytes, format: str | None, mode: str) -> str | None:
    """Words for a variant of a format that is not read, as nothing shows that it is decoded rightly; None of others.

    Args:
        format, mode: Pillow's names.
    """
    if format != "TIFF":
        return None if mode in _MODES.get(format or "", ()) else f"{format} of mode {mode}"
    return unread_tiff(content)


def unread_tiff(content: bytes) -> str | None:
    """Words for the layout of a TIFF's first page, where it is not read; None of other content."""
    if content[:4] not in _TIFF_HEADS:
        return None
    page = next(tiff_pages(content), {})
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
    if (bits, extra) not in _TIFF_LAYOUTS.get(photometric, ()):
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
    page = next(tiff_pages(content), {})
    return page.get(_BITS, (1,))[0], page.get(_PHOTOMETRIC, (0,))[0] == 0


def tiff_is_preview(content: bytes) -> bool:
    """Whether the first page says that it is a smaller version of another."""
    return _is_aside(next(tiff_pages(content), {}))


def tiff_has_pages(content: bytes) -> bool:
    """Whether there is a second page that is neither a smaller version of another nor its mask."""
    return any(number and not _is_aside(page) for number, page in enumerate(tiff_pages(content)))


def _is_aside(page: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether a page is a thumbnail or a mask."""
    return bool(page.get(_NEW_SUBFILE, (0,))[0] & 0b101) or page.get(_OLD_SUBFILE, (1,))[0] == 2


def tiff_pages(content: bytes) -> Iterator[Mapping[int, tuple[int, ...]]]:
    """The whole numbers among the tags that matter here, page by page; ends where the file is damaged."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    word, entry_bytes, inline, count_format = ("Q", 20, 8, "Q") if big else ("I", 12, 4, "H")
    sizes = {1: "B", 3: "H", 4: "I", 16: "Q"}
    try:
        at: int = struct.unpack_from(order + word, content, 8 if big else 4)[0]
        seen: set[int] = set()
        while at and at not in seen and len(seen) < _MAX_PAGES:
            seen.add(at)
            entries: int = struct.unpack_from(order + count_format, content, at)[0]
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
    except struct.error:
        return


def _brands(content: bytes) -> set[bytes]:
    """The brands of an ISO file, the major one included."""
    size = min(int.from_bytes(content[:4], "big"), 4096, len(content))
    return {content[8:12], *(content[at : at + 4] for at in range(16, size - 3, 4))}
