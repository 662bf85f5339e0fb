"""Pictures in a terminal: two pixels a letter, one above the other, as half blocks in color."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

_HEIGHT, _GAP, _MOST_WIDE = 20, 1, 32
"""Pixels high, letters between two frames, letters of one at most."""


def show_frames(frames: NDArray[np.uint8], labels: Sequence[str], terminal: TextIO) -> None:
    """Frames side by side with a label above each; where they do not all fit, evenly spread, the first and last too.

    Nothing is written where the terminal has too few colors.

    Args:
        frames: (T, height, width, 3).
        labels: T of them.
    """
    console = Console(file=terminal, highlight=False)
    if console.color_system not in ("256", "truecolor") or not console.encoding.startswith("utf"):
        return  # fewer colors show nothing
    width = max(8, min(round(_HEIGHT * frames.shape[2] / frames.shape[1]), _MOST_WIDE))
    count = max(1, min(len(frames), (console.width + _GAP) // (width + _GAP)))
    chosen: list[int] = np.linspace(0, len(frames) - 1, count).round().astype(int).tolist()
    small = [
        np.asarray(Image.fromarray(frames[n]).resize((width, _HEIGHT), Image.Resampling.BOX)).astype(int)
        for n in chosen
    ]
    gap = " " * _GAP
    lines = [Text(gap.join(labels[n][:width].center(width) for n in chosen))]
    for y in range(0, _HEIGHT, 2):
        line = Text()
        for frame in small:
            for upper, lower in zip(frame[y].tolist(), frame[y + 1].tolist(), strict=True):
                line.append("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
            line.append(gap)
        lines.append(line)
    for line in lines:
        console.print(line, no_wrap=True, crop=True)
