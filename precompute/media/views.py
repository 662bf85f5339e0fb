"""Views of an image: the whole image first, then crops of it at larger scales.

The rules (their version is `VIEW_RULES` in pipeline/latents/recipe.py): the image is fitted to the shape of the result
as `fit_image` does, but at its own resolution, so that crops show more detail than the whole; then each crop is resized
with Lanczos resampling.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...pipeline.latents.kinds import Views
from ...pipeline.latents.recipe import Fit
from .images import fit_image, to_tensor

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of width and height."""


def boxes(views: Views, count: int) -> list[Box]:
    """The part of the image that each of `count` views shows; the first shows all of it.

    Args:
        views: pyramid: 2 x 2 tiles, then 3 x 3 …, row by row; whole levels only. zoom: the centre, each time
            1/sqrt 2 as wide and high.
    """
    if views == "zoom":
        sides = [0.5 ** (number / 2) for number in range(count)]
        return [(0.5 - side / 2, 0.5 - side / 2, 0.5 + side / 2, 0.5 + side / 2) for side in sides]
    tiles: list[Box] = []
    level = 1
    while len(tiles) < count:
        cuts = [number / level for number in range(level + 1)]
        tiles += [(cuts[x], cuts[y], cuts[x + 1], cuts[y + 1]) for y in range(level) for x in range(level)]
        level += 1
    return tiles[:count]


def load_views(
    image: Image.Image, views: Views, count: int, height: int, width: int, fit: Fit
) -> Float[Tensor, "3 V height width"]:
    """The views of an image, float32 in [-1, 1].

    Args:
        image: 8-bit RGB. height, width: pixels of every view.
    """
    canvas = _shaped(image, height, width, fit)
    pictures = [fit_image(image, height, width, fit)]
    for left, top, right, bottom in boxes(views, count)[1:]:
        box = (left * canvas.width, top * canvas.height, right * canvas.width, bottom * canvas.height)
        pictures.append(canvas.resize((width, height), resample=Image.Resampling.LANCZOS, box=box))
    return torch.stack([to_tensor(picture) for picture in pictures], dim=1)


def _shaped(image: Image.Image, height: int, width: int, fit: Fit) -> Image.Image:
    """The image in the proportions of the result, at about its own resolution."""
    if fit == "stretch":
        return image
    across, down = image.width / width, image.height / height
    scale = min(across, down) if fit == "cover" else max(across, down)
    return fit_image(image, max(1, round(height * scale)), max(1, round(width * scale)), fit)
