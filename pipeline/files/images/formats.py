"""Recognise a file's format by its content: formats that are read, and those that are only known by name.

Pillow opens more than it decodes rightly. What is read here was compared with an independent decoder, pixel by pixel
(tests/pipeline/files/images/test_layouts.py); anything else is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping

from .tiff_pages import TIFF_HEADS, name_raw, unread_tiff

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
    if content[:4] == b"\0\0\1\0" and content[5:6] == b"\0":  # then the number of icons; a box of MP4 has a name there
        return "ICO"
    if content[:4] in TIFF_HEADS:
        if content[8:10] == b"CR":
            return "camera raw (CR2)"
        return name_raw(content)
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
        or content[:4] in TIFF_HEADS
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


def _brands(content: bytes) -> set[bytes]:
    """The brands of an ISO file, the major one included."""
    size = min(int.from_bytes(content[:4], "big"), 4096, len(content))
    return {content[8:12], *(content[at : at + 4] for at in range(16, size - 3, 4))}
