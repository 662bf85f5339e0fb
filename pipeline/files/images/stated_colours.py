"""What an image file says of its colours: in its profile, its chunks, its boxes or its EXIF data.

Asked in this order, as the PNG specification and browsers do: code points of a PNG (cICP), an ICC profile, sRGB, gamma
and primaries of a PNG, code points of AVIF and HEIC (nclx), EXIF.
"""

from __future__ import annotations

import struct

from PIL import Image

from ...errors import ImageError
from ...failures import FailureReason
from .colour import Colours, adobe_rgb, of_code_points, of_gamma, of_profile
from .png_chunks import PngChunks

GIF_PROFILE = "colour profile of a GIF, which viewers pass over; colours used as they are stored"
_EXIF_IFD, _INTEROP_IFD, _COLOUR_SPACE = 0x8769, 0xA005, 0xA001
_NCLX = b"colrnclx"


def colours_of(image: Image.Image, content: bytes, png: PngChunks | None, source: str) -> Colours:
    """The colours that an opened image file states; those of sRGB where it states none.

    Raises:
        ImageError: they are those of HDR, or of a kind that is not read.
    """
    if png is not None:
        return _colours_of_png(image, png, source)
    if image.format in ("BMP", "DIB") and (profile := _bmp_profile(content)) is not None:
        return of_profile(profile)
    if image.format == "GIF" and b"ICCRGBG1012" in content:
        return Colours(note=GIF_PROFILE)
    if "icc_profile" in image.info:
        return of_profile(image.info["icc_profile"])
    if image.format in ("AVIF", "HEIF") and (points := _nclx(content)) is not None:
        return of_code_points(*points, source=source)
    return adobe_rgb() if _is_adobe_rgb(image) else Colours()


def _colours_of_png(image: Image.Image, png: PngChunks, source: str) -> Colours:
    stated = png.colours
    if len(code_points := stated.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, full_range = code_points
        if matrix or full_range != 1:
            raise ImageError(
                FailureReason.FORMAT,
                f"{source} is a PNG of YCbCr or of narrow range, which is not read; save it as a usual PNG",
            )
        return of_code_points(primaries, transfer, source=source)
    if b"iCCP" in stated:
        return of_profile(stated[b"iCCP"])
    if b"sRGB" in stated:
        return Colours()
    gamma = struct.unpack(">I", stated[b"gAMA"])[0] / 1e5 if len(stated.get(b"gAMA", b"")) == 4 else None
    points = struct.unpack(">8I", stated[b"cHRM"]) if len(stated.get(b"cHRM", b"")) == 32 else None
    if gamma is not None or points is not None:
        return of_gamma(gamma, points and tuple(point / 1e5 for point in points))
    return adobe_rgb() if _is_adobe_rgb(image) else Colours()


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF data say so, as cameras do that embed no profile."""
    if image.mode not in ("RGB", "RGBA") or not ("exif" in image.info or image.format == "TIFF"):
        return False
    try:
        exif = image.getexif()
        inner = exif.get_ifd(_EXIF_IFD)
        if not inner or inner.get(_COLOUR_SPACE) == 1:
            return False
        return inner.get(_COLOUR_SPACE) == 2 or str(exif.get_ifd(_INTEROP_IFD).get(1, "")).startswith("R03")
    except Exception:  # Pillow's reader raises almost anything on broken EXIF
        return False


def _bmp_profile(content: bytes) -> bytes | None:
    """The profile that a BMP with a header of version 5 embeds."""
    if len(content) < 138 or content[14:18] != b"\x7c\0\0\0" or content[70:74] != b"DEBM":
        return None
    offset, size = struct.unpack_from("<II", content, 126)
    return content[14 + offset : 14 + offset + size]


def _nclx(content: bytes) -> tuple[int, int] | None:
    """Primaries and transfer function of an AVIF or HEIC file, by ITU-T H.273; None where it states none."""
    at = content.find(_NCLX, 0, 2**20)
    return struct.unpack_from(">HH", content, at + len(_NCLX)) if 0 <= at < len(content) - 12 else None
