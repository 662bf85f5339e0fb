"""A picture of one rollout and what was answered from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .drawing import ACCENT as _ACCENT
from .drawing import INK as _INK
from .drawing import PALE as _PALE
from .drawing import SOFT as _SOFT
from .drawing import draw_arrow, to_frames

_TILE, _MARGIN, _BAR = 128, 16, 260


def answer_picture(
    source: Image.Image,
    video: Float[Tensor, "3 F height width"],
    question: str,
    answers: Sequence[tuple[str, float | None]],
    *,
    frame_seconds: float,
    temporal_stride: int,
) -> Image.Image:
    """What `ask` did, to be looked at: the image, the future that was read, the question and the answers.

    Args:
        video: the decoded rollout, in [-1, 1].
        answers: the likeliest first, with their probabilities, where choices were ranked.
        frame_seconds: between two video frames.
        temporal_stride: video frames per latent frame after the first.
    """
    tiles = [source.convert("RGB"), *map(Image.fromarray, _last_of_each(video[None], temporal_stride)[0][1:])]
    side = (round(_TILE * source.width / source.height), _TILE)
    sample = Image.Resampling.NEAREST if source.height < _TILE else Image.Resampling.LANCZOS
    small, large = ImageFont.load_default(13), ImageFont.load_default(20)
    step, first_gap = side[0] + 4, 34
    width = 2 * _MARGIN + len(tiles) * step - 4 + first_gap
    top, text_top = 38, 38 + _TILE + 18
    picture = Image.new("RGB", (max(width, 640), text_top + 34 + 28 * len(answers) + _MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for number, tile in enumerate(tiles):
        left = _MARGIN + number * step + (first_gap if number else 0)
        label = "now" if number == 0 else f"+{temporal_stride * number * frame_seconds:.2f} s"
        draw.text((left + side[0] / 2, top - 6), label, fill=_SOFT, font=small, anchor="ms")
        picture.paste(tile.resize(side, sample), (left, top))
        draw.rectangle((left, top, left + side[0] - 1, top + _TILE - 1), outline=_ACCENT if number else _INK)
    if len(tiles) > 1:
        draw_arrow(draw, _MARGIN + side[0] + 8, top + _TILE // 2)
        left = _MARGIN + step + first_gap
        draw.text((left, _MARGIN - 2), "what the world model foresees", fill=_ACCENT, font=small, anchor="ls")
    draw.text((_MARGIN, text_top), question, fill=_INK, font=large)
    for number, (answer, probability) in enumerate(answers):
        y = text_top + 34 + 28 * number
        ink = _INK if number == 0 else _SOFT
        if probability is None:
            draw.text((_MARGIN, y), answer, fill=ink, font=large)
            continue
        draw.rectangle((_MARGIN, y + 2, _MARGIN + _BAR, y + 20), fill=_PALE)
        bar = (_MARGIN, y + 2, _MARGIN + round(_BAR * probability), y + 20)
        draw.rectangle(bar, fill=_ACCENT if number == 0 else _SOFT)
        draw.text((_MARGIN + _BAR + 12, y + 11), f"{answer}   {probability:.0%}", fill=ink, font=large, anchor="lm")
    return picture


def _last_of_each(videos: Float[Tensor, "B 3 F height width"], temporal_stride: int) -> NDArray[np.uint8]:
    """(B, T, height, width, 3): the video frame that ends each latent frame."""
    return to_frames(videos[:, :, ::temporal_stride])
