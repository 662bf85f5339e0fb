"""What the worldlet's scenes look like, and whether a picture is one: the worldlet was trained on these alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIZE = 64
"""Width and height of the picture."""
GROUND_Y = 60.0
TINTS = ((236, 238, 242), (214, 228, 242), (222, 236, 220), (242, 224, 224), (228, 220, 240))
"""Colours of the background."""
GROUND_COLOR = (110, 82, 62)

MEANS_NOTHING = (
    "the worldlet knows its own scenes alone (`theworld scenes`), and {these}: the predicted futures mean nothing. For "
    "photographs use a real world model, such as --world cosmos-predict2-2b (`theworld worlds` lists them)"
)
"""The warning, without what it is about."""

_NEAR = 24
"""Of 255: what JPEG and resizing change a flat colour by."""
_PNG, _SIDES = b"\x89PNG\r\n\x1a\n", slice(16, 24)
"""How a PNG file begins, and where it says its width and height."""


def is_scene(pixels: NDArray[np.uint8]) -> bool:
    """Whether a picture has the ground and the background of a scene, at whatever size.

    Args:
        pixels: (height, width, 3).
    """
    height = pixels.shape[0]
    ground = pixels[int(np.ceil(height * (GROUND_Y + 0.5) / SIZE)) :]
    if not ground.size or not pixels.shape[1]:
        return False
    upper = pixels[: height // 2].reshape(-1, 3)
    is_ground = _is_near(ground.reshape(-1, 3), GROUND_COLOR).mean() > 0.9
    return bool(is_ground and max(_is_near(upper, tint).mean() for tint in TINTS) > 0.5)


def may_be_scene(head: bytes) -> bool:
    """Whether a file may hold a scene as it was written, by its first 24 bytes: nothing of it is decoded."""
    side = SIZE.to_bytes(4, "big")
    return head.startswith(_PNG) and head[_SIDES] == side + side


def _is_near(colors: NDArray[np.uint8], wanted: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.all(np.abs(colors.astype(np.int16) - np.array(wanted, np.int16)) <= _NEAR, axis=-1)
