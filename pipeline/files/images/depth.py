"""Decoded pixels of every mode that Pillow has, as 8-bit ones: whole numbers by their bits, floats from 0 to 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import ImageError
from ...failures import FailureReason
from .png_chunks import PngChunks
from .tiff_pages import tiff_depth

_BAND = 2**20
"""Pixels that are scaled at a time: the numbers of 64 megapixels would take gigabytes."""


def mend_transparency(image: Image.Image, png: PngChunks) -> None:
    """Bring the transparent colour of a PNG, stated in the file's own bits, to those that Pillow decodes to."""
    colour: Any = image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = colour * {2: 85, 4: 17}.get(png.depth, 1)
    elif image.mode == "RGB" and png.depth == 16 and colour is not None:
        image.info["transparency"] = tuple(part >> 8 for part in colour)


def is_cut(image: Image.Image, content: bytes, png: PngChunks | None) -> bool:
    """Whether Pillow has cut 16-bit colours to 8 bits."""
    if image.mode not in ("RGB", "RGBA", "CMYK"):
        return False
    return png.depth == 16 if png else image.format == "TIFF" and tiff_depth(content)[0] == 16


def eight_bit(image: Image.Image, content: bytes, source: str) -> Image.Image:
    """A decoded image in mode L, LA, RGB, RGBA, CMYK or LAB.

    Raises:
        ImageError: nothing says which of its numbers is white, or they are not finite.
    """
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _scaled(image, content, source)
    if mode in ("La", "RGBa"):
        return image.convert(mode.upper())
    if mode == "PA" or (image.has_transparency_data and mode not in ("LA", "RGBA")):
        return image.convert("RGBA")
    return image.convert({"1": "L", "P": "RGB", "YCbCr": "RGB"}[mode]) if mode in ("1", "P", "YCbCr") else image


def _scaled(image: Image.Image, content: bytes, source: str) -> Image.Image:
    """Grey of more than 8 bits as L, or as LA where one grey is transparent."""
    depth, white_is_zero = tiff_depth(content) if image.format == "TIFF" else (16, False)
    values: NDArray[Any] = np.asarray(image)
    if image.mode == "F":
        _check_floats(values, source)
        full = 1.0
    else:
        full = float(2**depth - 1)
        if depth == 32:
            values = values.view(np.uint32)
            _check_numbers(values, source)
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND // max(1, image.width))
    for top in range(0, image.height, rows):
        band = np.rint(values[top : top + rows].astype(np.float64) * (255 / full))
        grey[top : top + rows] = 255 - band if white_is_zero else band
    picture = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.mode.startswith("I;16"):
        picture.putalpha(Image.fromarray(np.where(values == transparent, np.uint8(0), np.uint8(255))))
    return picture


def _check_floats(values: NDArray[Any], source: str) -> None:
    if not np.isfinite(values).all():
        raise ImageError(FailureReason.DECODE, f"{source} holds values that are not finite numbers")
    least, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if least < 0 or most > 1:
        raise ImageError(
            FailureReason.FORMAT,
            f"{source} holds floating-point values from {least:g} to {most:g}, and only of 0 to 1 it is known what is "
            "white. Scale them to that, or save it with 8 or 16 bits",
        )


def _check_numbers(values: NDArray[Any], source: str) -> None:
    if 0 < (most := int(values.max(initial=0))) < 2**24:
        raise ImageError(
            FailureReason.FORMAT,
            f"{source} holds 32-bit numbers up to {most:,}, which would all be black: white is {2**32 - 1:,}. Scale "
            "them to that, or save it with 8 or 16 bits",
        )
