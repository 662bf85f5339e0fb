"""Rollouts that play inside a page: all frames of a clip side by side in one picture, which the page's script moves.

Without the script the frames can be scrolled through. Frames are (F, height, width, 3), uint8.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .html import Html, image_source, render

Frames = NDArray[np.uint8]

_SIDE = 192
"""Pixels of a frame's longer side at most."""
_FRAMES = 49
_COARSE = 96
"""A frame of fewer pixels a side is enlarged as it is, without blur."""


@dataclass(frozen=True, slots=True, eq=False)
class Film:
    """A predicted future, and the true one if it is known."""

    predicted: Frames
    rate: float
    """Frames a second at which it is played."""
    true: Frames | None = None


_FILM = """<figure><div class="film" tabindex="0" role="group" aria-label="{{ label }}">\
<img class="{{ 'coarse' if coarse else 'fine' }}" alt="{{ alt }}" \
data-frames="{{ frames }}" data-rate="{{ rate }}" src="{{ source }}"></div>\
<figcaption>{{ caption }}</figcaption></figure>
"""


def film(frames: Frames, *, rate: float, caption: str | Html, label: str, alt: str) -> Html:
    """One clip with its caption."""
    if len(frames) > _FRAMES:
        chosen = np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)
        rate *= _FRAMES / len(frames)
        frames = frames[chosen]
    height, width = frames.shape[1:3]
    return render(
        _FILM,
        label=label,
        alt=alt,
        coarse=max(height, width) < _COARSE,
        frames=f"{len(frames)}",
        rate=f"{rate:.4g}",
        source=image_source(alt, _strip(frames)),
        caption=caption,
    )


def _strip(frames: Frames) -> bytes:
    height, width = frames.shape[1:3]
    scale = min(1.0, _SIDE / max(height, width))
    side = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = [Image.fromarray(frame).resize(side, Image.Resampling.LANCZOS) for frame in frames]
    strip = Image.new("RGB", (side[0] * len(frames), side[1]))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * side[0], 0))
    content = io.BytesIO()
    strip.save(content, "WEBP", quality=88, method=4)
    return content.getvalue()
