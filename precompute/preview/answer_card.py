"""A picture of one rollout and what was answered from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from .drawing import ACCENT, INK, PALE, SOFT, draw_arrow, drawable, font, font_for, to_frames

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
    small = font(13)
    step, first_gap = side[0] + 4, 34
    width = 2 * _MARGIN + len(tiles) * step - 4 + first_gap
    top, text_top = 38, 38 + _TILE + 18
    picture = Image.new("RGB", (max(width, 640), text_top + 34 + 28 * len(answers) + _MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for number, tile in enumerate(tiles):
        left = _MARGIN + number * step + (first_gap if number else 0)
        label = "now" if number == 0 else f"+{temporal_stride * number * frame_seconds:.2f} s"
        draw.text((left + side[0] / 2, top - 6), label, fill=SOFT, font=small, anchor="ms")
        picture.paste(tile.resize(side, sample), (left, top))
        draw.rectangle((left, top, left + side[0] - 1, top + _TILE - 1), outline=ACCENT if number else INK)
    if len(tiles) > 1:
        draw_arrow(draw, _MARGIN + side[0] + 8, top + _TILE // 2)
        left = _MARGIN + step + first_gap
        draw.text((left, _MARGIN - 2), "what the world model foresees", fill=ACCENT, font=small, anchor="ls")
    _write(draw, (_MARGIN, text_top), question, INK)
    for number, (answer, probability) in enumerate(answers):
        y = text_top + 34 + 28 * number
        ink = INK if number == 0 else SOFT
        if probability is None:
            _write(draw, (_MARGIN, y), answer, ink)
            continue
        draw.rectangle((_MARGIN, y + 2, _MARGIN + _BAR, y + 20), fill=PALE)
        bar = (_MARGIN, y + 2, _MARGIN + round(_BAR * probability), y + 20)
        draw.rectangle(bar, fill=ACCENT if number == 0 else SOFT)
        _write(draw, (_MARGIN + _BAR + 12, y + 11), f"{answer}   {probability:.0%}", ink, anchor="lm")
    return picture


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, ink: tuple[int, int, int], anchor: str = "la"
) -> None:
    """One large line; beyond ASCII, in the letters that DejaVu has."""
    line = drawable(text.replace("\n", " "))
    draw.text(at, line, fill=ink, font=font_for(line, 20), anchor=anchor)


def _last_of_each(videos: Float[Tensor, "B 3 F height width"], temporal_stride: int) -> NDArray[np.uint8]:
    """(B, T, height, width, 3): the video frame that ends each latent frame."""
    return to_frames(videos[:, :, ::temporal_stride])
