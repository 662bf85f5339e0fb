"""Decode one image file to 8-bit RGB, for a world model or a language model.

The rules (their version is `IMAGE_RULES` in recipe.py):
- JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF, known by content and never by name;
- at most 64 MiB and 64 megapixels, checked before decoding;
- no animations and no multi-page files; of a JPEG that holds several images (MPO), the first;
- EXIF orientation applied; 16-bit and float grey scaled to 8 bits; palettes through RGBA; alpha over white; CMYK
  converted by Pillow.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError
from ..failures import FailureReason

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"})
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6


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


def decode_image(content: bytes, *, source: str) -> Image.Image:
    """Return an upright 8-bit RGB image from the bytes of a file.

    Raises:
        ImageError: with a `reason` for the ledger: format, too_large, animated, memory or decode.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # reads the header only
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    FailureReason.TOO_LARGE, f"{source} has {width} x {height} pixels; the limit is {MAX_PIXELS:,}"
                )
            # a phone's JPEG may hold a depth or brightness map after the photograph
            # to count the pages of a hostile TIFF takes Pillow time with their square, so no more is asked than this
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise ImageError(FailureReason.ANIMATED, f"{source} has several frames; save one of them as an image")
            return to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(FailureReason.FORMAT, f"{source} cannot be read as any of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(FailureReason.TOO_LARGE, f"{source}: {error}") from error
    except MemoryError as error:
        raise ImageError(
            FailureReason.MEMORY, f"{source} needs more memory to decode than one input may use"
        ) from error
    except Exception as error:  # Pillow's decoders raise almost anything on broken input
        raise ImageError(
            FailureReason.DECODE, f"{source} cannot be decoded: {type(error).__name__}: {error}"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB, by the rules of this file.

    Raises:
        ImageError: the image holds values that are not finite.
    """
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ImageError(FailureReason.DECODE, "the image holds values that are not finite numbers")
        # float TIFFs hold values in [0, 1] by convention; all others here are 16-bit grey
        full = 1.0 if mode == "F" and values.max(initial=0.0) <= 1.0 else 65535.0
        return Image.fromarray(np.rint(np.clip(values / full, 0.0, 1.0) * 255).astype(np.uint8)).convert("RGB")
    if mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")
