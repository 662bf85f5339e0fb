"""Decode one image file to upright 8-bit sRGB, for a world model or a language model.

The rules (their version is `IMAGE_RULES` in recipe.py):
- JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF, and HEIC where its library is installed: known by content and never by name,
  in the variants that formats.py lists;
- at most 64 MiB and 64 megapixels, checked before decoding;
- no animations and no multi-page files, unless the other pages are thumbnails; of a JPEG that holds several images
  (MPO, HDR gain maps), the first;
- damage is an error where it can be known: that of JPEG data (jpeg_scan.py), of a PNG's checksums;
- whole numbers scaled by their bits, float grey from 0 to 1 (depth.py);
- colours converted to sRGB from what the file states of them (stated_colours.py, colour.py);
- alpha over white; EXIF orientation applied.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import ImageError
from ...failures import FailureReason
from ...messages import install_extra
from . import jpeg_scan, png_chunks
from .colour import SHALLOW, to_srgb
from .depth import eight_bit, is_cut, mend_transparency
from .formats import FORMATS, HEIC, SUFFIXES, is_known, name_format, unread_layout
from .stated_colours import colours_of
from .tiff_pages import tiff_has_pages, tiff_is_preview, unread_tiff

__all__ = [
    "FORMATS", "MAX_BYTES", "MAX_PIXELS", "SUFFIXES",
    "Decoded", "decode_image", "read_image", "read_input_file", "to_rgb",
]  # fmt: skip

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6

XMP_TURN = "to be turned by their XMP data alone, which viewers pass over; left as they are stored"
BROKEN_EXIF = "EXIF data that cannot be read, so that an orientation in them is lost"
NO_ADOBE = "CMYK JPEG that does not say whether its inks are inverted; read as inverted, as Adobe's are"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_TURN = re.compile(rb'tiff:Orientation(?:="|>)([2-8])')
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as it is to be seen."""

    image: Image.Image
    """Upright, 8-bit RGB, in sRGB."""
    notes: tuple[str, ...]
    """What was done with it, or could not be, that a person should know; in words that name no file."""


def read_input_file(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file within the size limit.

    Raises:
        ImageError: missing, not a regular file (a device or pipe would block), empty, or over the limit.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError(FailureReason.NOT_A_FILE, f"{path} is not a regular file")
        if facts.st_size > max_bytes:
            raise ImageError(
                FailureReason.TOO_LARGE, f"{path} holds {facts.st_size:,} bytes; the limit is {max_bytes:,}"
            )
        with path.open("rb") as file:
            content = file.read(facts.st_size + 1)
            if len(content) > facts.st_size:  # it has grown, or is one of the kernel's, which state no size
                content += file.read(max_bytes + 1 - len(content))
    except OSError as error:
        raise ImageError(FailureReason.MISSING, f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > max_bytes:
        raise ImageError(FailureReason.TOO_LARGE, f"{path} holds more than {max_bytes:,} bytes, which is the limit")
    if not content:
        raise ImageError(FailureReason.EMPTY, f"{path} is empty")
    return content


def refuse_unread(content: bytes, *, source: str) -> str | None:
    """Refuse what its first bytes say is in a format that is known and not read.

    Returns:
        The name of the format, where its library is installed; None of all else.
    Raises:
        ImageError: with the format's name, and what to do.
    """
    name = name_format(content)
    if name is not None and not (name == HEIC and _has_heif()):
        raise ImageError(FailureReason.FORMAT, f"{source} is {_unread(name)}")
    return name


def decode_image(content: bytes, *, source: str) -> Image.Image:
    """The image of `read_image`, without the notes. Raises as it."""
    return read_image(content, source=source).image


def read_image(content: bytes, *, source: str) -> Decoded:
    """The image in the bytes of a file, and what a person should know of it.

    Args:
        source: the file's name in error messages.
    Raises:
        ImageError: with a `reason` for the ledger: format, too_large, animated, memory or decode.
    """
    try:
        name = refuse_unread(content, source=source)
        if content.startswith(jpeg_scan.SIGNATURE):
            return _decode_jpeg(content, source)
        if content.startswith(png_chunks.SIGNATURE):
            png = png_chunks.read_chunks(content, source=source)
            return _decode(io.BytesIO(png.content), png.content, source, png=png)
        return _decode(io.BytesIO(content), content, source, formats=FORMATS if name is None else _heif_formats())
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise _unidentified(content, source) from error
    except Image.DecompressionBombError as error:
        raise ImageError(FailureReason.TOO_LARGE, f"{source}: {error}") from error
    except MemoryError as error:
        raise ImageError(
            FailureReason.MEMORY, f"{source} needs more memory to decode than one input may use"
        ) from error
    except Exception as error:  # Pillow's decoders raise almost anything on broken input
        # and this of BMPs that they do not read
        reason = FailureReason.FORMAT if str(error).startswith("Unsupported BMP") else FailureReason.DECODE
        raise ImageError(reason, f"{source} cannot be decoded: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of mode L, LA, RGB or RGBA as RGB, over white where it is transparent; itself where it is RGB."""
    if image.mode == "RGB":
        return image
    if image.mode not in ("LA", "RGBA") or image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _decode_jpeg(content: bytes, source: str) -> Decoded:
    scan = jpeg_scan.find_scan(content)
    if scan is None:
        return _decode(io.BytesIO(content), content, source)
    if (kind := scan.unread_kind()) is not None:
        raise ImageError(FailureReason.FORMAT, f"{source} is {_unread(kind)}")
    damaged = f"{source} is damaged: its compressed data do not make its picture"
    if scan.single:
        file = jpeg_scan.ScanFile(content, scan)
        decoded = _decode(file, content, source)
        if not file.was_used_up:
            raise ImageError(FailureReason.DECODE, damaged)
    else:
        decoded = _decode(io.BytesIO(content), content, source)
        if jpeg_scan.ffmpeg_finds_damage(content):
            raise ImageError(FailureReason.DECODE, damaged)
    return Decoded(decoded.image, (*decoded.notes, NO_ADOBE)) if scan.components == 4 and not scan.adobe else decoded


def _decode(
    file: io.BytesIO,
    content: bytes,
    source: str,
    *,
    png: png_chunks.PngChunks | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> Decoded:
    """The image in a file that Pillow reads, whose bytes are `content`."""
    with Image.open(file, formats=formats) as image:  # reads the header only
        _check(image, content, source)
        if png is not None:
            image.load()  # EXIF data and texts may stand behind the pixels
            mend_transparency(image, png)
        turn, notes = _turn_of(image)
        for key in ("xmp", "XML:com.adobe.xmp"):  # or Pillow would turn a TIFF by them
            image.info.pop(key, None)
        colours = colours_of(image, content, png, source)
        image.load()
        cut = is_cut(image, content, png)
        converted, colour_notes = to_srgb(eight_bit(image, content, source), colours)
        if cut and colours.profile is not None and colours.note in colour_notes:
            colour_notes = (*colour_notes, SHALLOW)
        picture = to_rgb(converted)
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info = {}  # a profile that has been applied is not to be applied again where the image is saved
    return Decoded(picture, (*notes, *colour_notes))


def _check(image: Image.Image, content: bytes, source: str) -> None:
    """Refuse what is too large, an animation or a variant that is not read."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            FailureReason.TOO_LARGE, f"{source} has {width} x {height} pixels; the limit is {MAX_PIXELS:,}"
        )
    if (variant := unread_layout(content, image.format, image.mode)) is not None:
        raise ImageError(FailureReason.FORMAT, f"{source} is {_unread(variant)}")
    if image.format == "TIFF":
        if tiff_is_preview(content):
            raise ImageError(
                FailureReason.FORMAT,
                f"{source} is a TIFF whose first page is a preview of another image, as in camera raw files, which are "
                "not read; save it as JPEG or PNG",
            )
        # to count the pages of a hostile TIFF takes Pillow time with their square, so it is not asked
        animated = tiff_has_pages(content)
    else:  # a phone's JPEG may hold a depth or brightness map after the photograph
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    if animated:
        raise ImageError(FailureReason.ANIMATED, f"{source} has several frames; save one of them as an image")


def _turn_of(image: Image.Image) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """How EXIF data say that the image is to be turned, if Pillow does not do it, as with TIFFs; and notes."""
    stated: Any = None
    notes: tuple[str, ...] = ()
    if image.format == "TIFF":
        stated = getattr(image, "tag_v2", {}).get(_ORIENTATION)
    elif raw := _raw_exif(image):
        exif = Image.Exif()
        try:
            exif.load(raw)
            stated = exif.get(_ORIENTATION)
        except Exception:  # Pillow's reader raises almost anything on broken EXIF
            notes = (BROKEN_EXIF,)
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if stated is None and _XMP_TURN.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp)):
        notes = (*notes, XMP_TURN)
    turn = _TURNS.get(stated) if isinstance(stated, int) else None
    return (None if image.format == "TIFF" else turn), notes


def _raw_exif(image: Image.Image) -> bytes:
    """The EXIF block; ImageMagick wrote it into texts of PNGs, in hexadecimal digits."""
    if isinstance(raw := image.info.get("exif"), bytes):
        return raw
    with contextlib.suppress(ValueError):
        return bytes.fromhex("".join(str(image.info.get("Raw profile type exif", "")).split("\n")[3:]))
    return b""


def _unread(name: str) -> str:
    """The end of `x.jpg is …`, for what is not read."""
    if name == HEIC:
        return f"HEIC, which needs {install_extra('heic')}; or save it as JPEG"
    return f"{name}, which is not read; save it as JPEG or PNG"


def _unidentified(content: bytes, source: str) -> ImageError:
    """The error for what Pillow does not open."""
    if (variant := unread_tiff(content)) is not None:
        return ImageError(FailureReason.FORMAT, f"{source} is {_unread(variant)}")
    if is_known(content) or name_format(content) == HEIC:
        return ImageError(FailureReason.DECODE, f"{source} is damaged: its header cannot be read")
    return ImageError(FailureReason.FORMAT, f"{source} cannot be read as any of {', '.join(FORMATS)}")


def _has_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def _heif_formats() -> tuple[str, ...]:
    """Pillow's name of HEIC, once it knows it."""
    # an extra, which need not be there
    from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

    register_heif_opener()
    return ("HEIF",)
