"""A file in a format that is not read is called by its name, whatever its suffix, with what to do."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
import tifffile

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images.decode import SUFFIXES, decode_image
from theworld.pipeline.files.images.formats import name_format


def iso(major: bytes, *brands: bytes) -> bytes:
    """The beginning of an ISO file of these brands."""
    body = b"ftyp" + major + bytes(4) + b"".join(brands)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(200)


def first_page(**tags: int) -> bytes:
    buffer = io.BytesIO()
    extra = [(code, kind, 1 if kind == 3 else 4, value, True) for code, kind, value in tags.values()]
    tifffile.imwrite(buffer, np.zeros((8, 8), np.uint8), photometric="minisblack", extratags=extra, metadata=None)
    return buffer.getvalue()


NAMED = {
    "HEIC sequence": [iso(b"hevc", b"msf1"), iso(b"hevx"), iso(b"msf1", b"hevc")],
    "camera raw (CR3)": [iso(b"crx ", b"crx ", b"isom")],
    "camera raw (CR2)": [b"II*\0\x10\0\0\0CR\x02\0" + bytes(100)],
    "camera raw (DNG)": [first_page(version=(50706, 1, (1, 4, 0, 0)))],
    "camera raw (RAF)": [b"FUJIFILMCCD-RAW 0201"],
    "camera raw (ORF)": [b"IIRO\x08\0\0\0", b"MMOR"],
    "camera raw (RW2)": [b"IIU\0\x18\0\0\0"],
    "JPEG XL": [b"\xff\x0a\xfa\x7f", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), iso(b"jxl ", b"jxl ")],
    "JPEG 2000": [b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), b"\xff\x4f\xff\x51" + bytes(50)],
    "Photoshop (PSD)": [b"8BPS\0\x01" + bytes(50)],
    "SVG": [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg/>"],
    "PDF": [b"%PDF-1.7\n"],
    "OpenEXR": [b"v/1\x01\x02\0\0\0"],
    "Radiance HDR": [b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n"],
    "ICO": [b"\0\0\1\0\1\0\x10\x10"],
    "gzip": [b"\x1f\x8b\x08\0" + bytes(20)],
    "ZIP": [b"PK\3\4" + bytes(20)],
    "a web page": [b"<!DOCTYPE html>\n<html><body>404</body></html>", b"  <html>"],
}


@pytest.mark.parametrize("name", NAMED)
def test_a_format_that_is_not_read_is_named(name: str) -> None:
    for content in NAMED[name]:
        with pytest.raises(ImageError) as caught:
            decode_image(content, source="x.jpg")
        assert caught.value.reason == "format"
        assert str(caught.value) == f"x.jpg is {name}, which is not read; save it as JPEG or PNG"


def test_a_git_lfs_pointer_says_how_to_fetch_the_file() -> None:
    with pytest.raises(ImageError, match="git lfs pull"):
        decode_image(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", source="x.jpg")


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="HEIC is read here")
def test_heic_is_named_with_the_extra_that_reads_it() -> None:
    for content in (iso(b"heic", b"mif1", b"heic"), iso(b"mif1", b"mif1", b"heic"), iso(b"heix"), iso(b"heim")):
        with pytest.raises(ImageError, match=r"x.jpg is HEIC, which needs pip install -e '\.\[heic\]'") as caught:
            decode_image(content, source="x.jpg")
        assert caught.value.reason == "format"


def test_what_is_read_or_is_a_video_has_no_name_here() -> None:
    for content in (iso(b"avif", b"mif1"), iso(b"mif1", b"avif"), iso(b"isom", b"mp42"), iso(b"qt  "), b"", b"text"):
        assert name_format(content) is None


def test_a_known_format_with_a_damaged_header_is_damaged_and_not_of_an_unknown_format() -> None:
    for content in (b"\x89PNG\r\n\x1a\nrubbish", b"\xff\xd8\xff\xe0rubbish", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 "):
        with pytest.raises(ImageError) as caught:
            decode_image(content, source="x.png")
        assert caught.value.reason == "decode"


def test_a_tiff_whose_numbers_lead_nowhere_is_damaged() -> None:
    head = b"II+\0\x08\0\0\0"
    for content in (
        head + b"\xff" * 8,
        head + (16).to_bytes(8, "little") + b"\xff" * 8 + bytes(100),
        b"II*\0\x08\0\0\0" + b"\xff" * 6 + bytes(100),
        b"MM\0*" + b"\xff" * 4,
    ):
        assert name_format(content) is None
        with pytest.raises(ImageError) as caught:
            decode_image(content, source="x.tif")
        assert caught.value.reason in ("decode", "format")


def test_a_bmp_of_another_kind_is_in_a_format_that_is_not_read() -> None:
    header = b"\x28\0\0\0\x08\0\0\0\x08\0\0\0\1\0\x20\0\4" + bytes(23)
    with pytest.raises(ImageError, match="Unsupported BMP compression") as caught:
        decode_image(b"BM" + bytes(8) + b"\x36\0\0\0" + header + bytes(300), source="x.bmp")
    assert caught.value.reason == "format"


def test_jpegs_have_many_suffixes_and_heic_is_never_passed_over() -> None:
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".pjpeg", ".heic", ".heif"} < SUFFIXES
