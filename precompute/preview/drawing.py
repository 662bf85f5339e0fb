"""What all our pictures share: inks, fonts, the size of a tile, pixels of decoded video."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, SOFT, ACCENT, PALE, TRUE = (28, 28, 30), (120, 120, 124), (118, 185, 0), (228, 228, 230), (40, 110, 190)
"""The observed frame and text, asides, the predicted future, empty space, the true future."""
SMALLEST_SIDE, LARGEST_SIDE = 96, 192
"""Pixels of a tile's shorter side at least, else of its longer side at most."""


@cache
def font(size: int, *, latin: bool = True) -> Any:
    """A font. Pillow's own knows ASCII alone; for other names DejaVu, which comes with matplotlib."""
    package = None if latin else find_spec("matplotlib")
    if package is None or package.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size - 1)


def font_for(text: str, size: int) -> Any:
    """The font that can write a text."""
    return font(size, latin=text.isascii())


def drawable(text: str) -> str:
    """A name with what cannot be drawn replaced: control characters, halves of characters."""
    return "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode())


def tile_side(width: int, height: int, *, smallest: int = SMALLEST_SIDE) -> tuple[int, int]:
    """Width and height at which pictures of this size are shown: small ones larger by a whole factor, large smaller."""
    if min(width, height) < smallest:
        factor = -(-smallest // min(width, height))
        return width * factor, height * factor
    scale = min(1.0, LARGEST_SIDE / max(width, height))
    return round(width * scale), round(height * scale)


def tile(pixels: NDArray[np.uint8], side: tuple[int, int]) -> Image.Image:
    """One frame (height, width, 3) at the size of a tile."""
    image = Image.fromarray(pixels)
    larger = side[0] > image.width
    return image.resize(side, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def draw_arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """From the observed frame to the predicted future; 24 pixels wide, around height y."""
    draw.line((x, y, x + 16, y), fill=ACCENT, width=3)
    draw.polygon([(x + 14, y - 7), (x + 24, y), (x + 14, y + 7)], fill=ACCENT)


def to_frames(videos: Float[Tensor, "B 3 F height width"]) -> NDArray[np.uint8]:
    """(B, F, height, width, 3) of videos in [-1, 1]."""
    return ((videos.permute(0, 2, 3, 4, 1).clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
