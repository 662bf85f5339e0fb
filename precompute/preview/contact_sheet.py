"""Samples of a store as one picture and as one animation: a row, or a cell, for each.

Axes:  F video frame
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .drawing import ACCENT, INK, PALE, SOFT, TRUE, draw_arrow, drawable, font, font_for, tile, tile_side

_MARGIN, _GAP, _ROW_GAP, _ARROW, _NAMES = 16, 4, 14, 34, 190
_ANIMATION_WIDTH = 880
"""Pixels that an animation's cells fill, about."""
_SMALLEST_CELL = 144
"""Pixels; it has more room than a sheet's tile."""
_GOOD_ENOUGH = 3.0
"""Mean error of a palette, of 255, that nobody sees."""
_HOLD_FIRST_S, _HOLD_LAST_S = 0.8, 1.2
_SHORTEST_DELAY_CS = 2
"""Hundredths of a second; browsers slow down what is shorter."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample: a row of the contact sheet."""

    name: str
    key: str
    frames: Pixels
    """(F, height, width, 3), decoded from the store."""
    source: Pixels | None = None
    """(height, width, 3), the input itself; without it the decoded first frame stands in."""
    true: Pixels | None = None
    """(F, height, width, 3), the true future."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """What is written around the rows."""

    title: str
    about: str
    """A second, softer line."""
    columns: Sequence[tuple[int, str]]
    """The frames a sheet shows, by number, and the label of each."""
    predicted_from: int | None
    """The first frame that is a prediction; None where none is."""

    def ink(self, frame: int) -> tuple[int, int, int]:
        """The color of a frame's label."""
        return INK if self.predicted_from is None or frame < self.predicted_from else ACCENT


def draw_sheet(rows: Sequence[Row], words: Words) -> Image.Image:
    """The contact sheet: names, the input, then chosen frames; the true future of a sample below its row."""
    height, width = rows[0].frames.shape[1:3]
    side = tile_side(width, height)
    observed_count = sum(words.ink(number) == INK for number, _ in words.columns)
    arrow = observed_count < len(words.columns)
    lefts = [
        _MARGIN + _NAMES + n * (side[0] + _GAP) + (_ARROW - _GAP if n >= observed_count else 0)
        for n in range(len(words.columns))
    ]
    top = 84
    heights = [(side[1] + _GAP) * (2 if row.true is not None else 1) + _ROW_GAP for row in rows]
    picture = Image.new("RGB", (max(lefts[-1] + side[0] + _MARGIN, 560), top + sum(heights)), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    _head(draw, words, picture.width)
    for left, (number, label) in zip(lefts, words.columns, strict=True):
        draw.text((left + side[0] / 2, top - 7), label, fill=words.ink(number), font=font(14), anchor="ms")
    y = top
    for row, row_height in zip(rows, heights, strict=True):
        _name(draw, row, y, side[1], words)
        for left, (number, _) in zip(lefts, words.columns, strict=True):
            pixels = row.source if number == 0 and row.source is not None else row.frames[number]
            _framed(picture, draw, pixels, (left, y), side, words.ink(number))
            if row.true is not None:
                _framed(picture, draw, row.true[number], (left, y + side[1] + _GAP), side, TRUE)
        if arrow:
            draw_arrow(draw, lefts[observed_count - 1] + side[0] + 5, y + side[1] // 2)
        if row.true is not None:
            at = (_MARGIN + _NAMES - 10, y + side[1] + _GAP + side[1] // 2)
            draw.text(at, "true future", fill=TRUE, font=font(13), anchor="rm")
        y += row_height
    return picture


def draw_animation(rows: Sequence[Row], words: Words, labels: Sequence[str]) -> list[Image.Image]:
    """One picture per frame: the samples side by side, each with its name; the true future beside its sample.

    Args:
        labels: of every frame.
    """
    height, width = rows[0].frames.shape[1:3]
    side = tile_side(width, height, smallest=_SMALLEST_CELL)
    truths = any(row.true is not None for row in rows)
    cell = (side[0] * (2 if truths else 1) + (_GAP if truths else 0), side[1] + 22)
    across = min(len(rows), max(1, (_ANIMATION_WIDTH - _MARGIN) // (cell[0] + _ROW_GAP)))
    across = -(-len(rows) // -(-len(rows) // across))  # rows of the grid as even as can be
    down = -(-len(rows) // across)
    top = 88 if truths else 70
    canvas = Image.new(
        "RGB",
        (
            _even(max(2 * _MARGIN + across * (cell[0] + _ROW_GAP) - _ROW_GAP, 420)),
            _even(top + down * (cell[1] + _ROW_GAP) + 2),
        ),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(canvas)
    grid = [divmod(number, across) for number in range(len(rows))]
    places = [(_MARGIN + n * (cell[0] + _ROW_GAP), top + line * (cell[1] + _ROW_GAP)) for line, n in grid]
    _line(draw, (_MARGIN, 26), words.title, INK, 15, canvas.width - 150)
    if truths:
        draw.text((_MARGIN, 68), "predicted future", fill=ACCENT, font=font(14), anchor="ls")
        draw.text((_MARGIN + side[0] + _GAP, 68), "true future", fill=TRUE, font=font(14), anchor="ls")
    for row, (x, y) in zip(rows, places, strict=True):
        _line(draw, (x, y + side[1] + 15), row.name, SOFT, 13, cell[0])
    frames: list[Image.Image] = []
    for number, label in enumerate(labels):
        picture = canvas.copy()
        draw = ImageDraw.Draw(picture)
        ink = words.ink(number)
        draw.text((canvas.width - _MARGIN, 26), label, fill=ink, font=font(18), anchor="rs")
        draw.rectangle((_MARGIN, 42, canvas.width - _MARGIN, 45), fill=PALE)
        progress_width = round((canvas.width - 2 * _MARGIN) * (number + 1) / len(labels))
        draw.rectangle((_MARGIN, 42, _MARGIN + progress_width, 45), fill=ACCENT)
        for row, (x, y) in zip(rows, places, strict=True):
            pixels = row.source if number == 0 and row.source is not None else row.frames[number]
            _framed(picture, draw, pixels, (x, y), side, ink)
            if row.true is not None:
                _framed(picture, draw, row.true[number], (x + side[0] + _GAP, y), side, TRUE)
        frames.append(picture)
    return frames


def gif(frames: Sequence[Image.Image], fps: float) -> bytes:
    """A GIF that loops, in real time to a hundredth of a second, in one palette of 256 colours for all its frames."""
    palette = _palette(frames)
    middle = frames[len(frames) // 2]
    plain = middle.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB")
    error = np.abs(np.asarray(plain, np.int16) - np.asarray(middle, np.int16)).mean()
    # dithering shimmers from frame to frame and doubles the bytes; photographs need it, drawings do not
    dither = Image.Dither.NONE if error < _GOOD_ENOUGH else Image.Dither.FLOYDSTEINBERG
    quantised = [frame.quantize(palette=palette, dither=dither) for frame in frames]
    end_times_cs = [round(100 * (_HOLD_FIRST_S + n / fps)) for n in range(len(frames))]
    delays = [end - start for start, end in zip([0, *end_times_cs[:-1]], end_times_cs, strict=True)]
    delays[-1] += round(100 * _HOLD_LAST_S)
    content = io.BytesIO()
    quantised[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=quantised[1:],
        duration=[10 * max(_SHORTEST_DELAY_CS, delay) for delay in delays],
        loop=0,
        optimize=False,
    )
    return content.getvalue()


def hold_ends(frames: Sequence[Image.Image], fps: float) -> Pixels:
    """(F, height, width, 3) for a video: the first and the last frame stay as long as a GIF's."""
    first, last = (max(1, round(seconds * fps)) for seconds in (_HOLD_FIRST_S, _HOLD_LAST_S))
    repeated = [*repeat(frames[0], first), *frames[1:], *repeat(frames[-1], last)]
    return np.stack([np.asarray(frame) for frame in repeated])


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """256 colours of some frames, in an image that has them as its palette."""
    spread = sorted({round(at) for at in np.linspace(0, len(frames) - 1, 4)})
    mosaic = Image.fromarray(np.concatenate([np.asarray(frames[at])[::2, ::2] for at in spread]))
    # median cut leaves out the colours of what is small; k-means would be better, and takes minutes for photographs
    return mosaic.quantize(256, method=Image.Quantize.FASTOCTREE)


def _head(draw: ImageDraw.ImageDraw, words: Words, width: int) -> None:
    _line(draw, (_MARGIN, 28), words.title, INK, 18, width - 2 * _MARGIN)
    _line(draw, (_MARGIN, 49), words.about, SOFT, 13, width - 2 * _MARGIN)


def _name(draw: ImageDraw.ImageDraw, row: Row, y: int, height: int, words: Words) -> None:
    """The left margin of a row: its name over as many lines as fit, its key, and what its first picture is."""
    room = max(1, min(4, (height - 34) // 17))
    lines = _wrapped(draw, drawable(row.name), _NAMES - 14, room)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, y + 13 + 17 * number), line, fill=INK, font=font_for(row.name, 14), anchor="ls")
    at = y + 13 + 17 * len(lines)
    draw.text((_MARGIN, at), row.key[:12], fill=SOFT, font=font(12), anchor="ls")
    if row.source is None and words.predicted_from is not None:
        draw.text((_MARGIN, at + 16), "first frame as decoded", fill=SOFT, font=font(12), anchor="ls")


def _framed(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    pixels: Pixels,
    at: tuple[int, int],
    side: tuple[int, int],
    ink: tuple[int, int, int],
) -> None:
    picture.paste(tile(pixels, side), at)
    draw.rectangle((*at, at[0] + side[0] - 1, at[1] + side[1] - 1), outline=ink)


def _line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, ink: Any, size: int, width: int) -> None:
    """One line, its middle left out where it is longer than `width` pixels."""
    text = drawable(text)
    shortened, face = text, font_for(text, size)
    while draw.textlength(shortened, font=face) > width and len(text) > 8:
        text = text[: len(text) // 2 - 1] + text[len(text) // 2 + 1 :]
        shortened = f"{text[: len(text) // 2]}...{text[len(text) // 2 :]}"
    draw.text(at, shortened, fill=ink, font=face, anchor="ls")


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int, room: int) -> list[str]:
    """At most `room` lines; of what is too long the end is kept, which tells names apart."""
    face, lines = font_for(text, 14), [""]
    for character in text:
        if draw.textlength(lines[-1] + character, font=face) > width:
            cut = max((lines[-1].rfind(mark) + 1 for mark in "/-_ ."), default=0)
            cut = cut if cut > len(lines[-1]) // 2 else len(lines[-1])
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
        lines[-1] += character
    return lines if len(lines) <= room else [f"...{lines[-room][3:]}", *lines[len(lines) - room + 1 :]]


def _even(length: int) -> int:
    return length + length % 2
