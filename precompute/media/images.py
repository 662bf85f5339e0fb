"""From the bytes of one image file to one float image of the recipe's size.

The rules: decode to upright sRGB (pipeline/files/images/decode.py), then fit to height x width with Lanczos resampling.
Their version is `IMAGE_RULES` in pipeline/latents/recipe.py.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ...pipeline.files.images.decode import decode_image
from ...pipeline.latents.recipe import Fit


def fit_image(image: Image.Image, height: int, width: int, fit: Fit) -> Image.Image:
    """The RGB image at height x width: its centre cropped (cover), with grey borders (pad), or distorted (stretch)."""
    size = (width, height)
    if image.size == size:
        return image
    if fit == "cover":
        return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
    if fit == "pad":
        return ImageOps.pad(image, size, method=Image.Resampling.LANCZOS, color=(128, 128, 128))
    return image.resize(size, resample=Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """The image as a float32 tensor in [-1, 1], as world models take it."""
    pixels = np.asarray(image, dtype=np.uint8)
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def to_image(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """The 8-bit image of a tensor in [-1, 1]: the inverse of `to_tensor`."""
    return Image.fromarray(((pixels + 1.0) * 127.5).round().byte().permute(1, 2, 0).numpy())


def load_image(content: bytes, height: int, width: int, fit: Fit, *, source: str) -> Float[Tensor, "3 height width"]:
    """The image in a file, decoded, fitted and scaled to [-1, 1] by the image rules.

    Args:
        content: bytes of the file. source: its name in error messages.
        height, width: pixels of the result.
    Raises:
        ImageError: the image cannot be used.
    """
    return to_tensor(fit_image(decode_image(content, source=source), height, width, fit))
