"""From the bytes of one image file to one float image of the recipe's size.

The rules (their version is `IMAGE_RULES` in pipeline/latents/recipe.py): decoded to RGB as pipeline/files/images.py
says, then
fitted to height x width with Lanczos resampling.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ...pipeline.files.images import decode_image
from ...pipeline.latents.recipe import Fit


def fit_image(image: Image.Image, height: int, width: int, fit: Fit) -> Image.Image:
    """Bring an RGB image to height x width: crop the centre (cover), add grey borders (pad), or distort (stretch)."""
    size = (width, height)
    if image.size == size:
        return image
    if fit == "cover":
        return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
    if fit == "pad":
        return ImageOps.pad(image, size, method=Image.Resampling.LANCZOS, color=(128, 128, 128))
    return image.resize(size, resample=Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """Float32 in [-1, 1], what a world model takes."""
    pixels = np.asarray(image, dtype=np.uint8)
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def to_image(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """The inverse of `to_tensor`."""
    return Image.fromarray(((pixels + 1.0) * 127.5).round().byte().permute(1, 2, 0).numpy())


def load_image(content: bytes, height: int, width: int, fit: Fit, *, source: str) -> Float[Tensor, "3 height width"]:
    """Decode, fit and scale: the whole of the image rules.

    Args:
        content: bytes of the file. source: what to call it in an error.
        height, width: pixels of the result.
    Raises:
        ImageError: the image cannot be used.
    """
    return to_tensor(fit_image(decode_image(content, source=source), height, width, fit))
