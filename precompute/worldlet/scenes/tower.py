"""The family `tower`: three to five blocks on top of each other, at rest but not always for long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from ...worlds.scene_look import TINTS
from .family import COUNTS, Ask, ask_color, ask_count, color_choices
from .physics import COLORS, GROUND_Y, SIZE, VIDEO_FRAMES, Block, Layout, Motion

_STILL, _FALLEN = 0.7, 6.0  # px that no block may, and some block must, have moved when the clip ends
_MARGIN = 0.6  # px between a centre of mass and the edge that carries it


class Tower:
    """Will the tower fall? The rule of thumb: not where the top block is above the bottom one."""

    name = "tower"
    answers = heuristics = ("yes", "no")
    shifts = ("tall",)
    asks = (
        Ask(
            about="fall",
            kind="temporal",
            templates=("will the tower fall?", "will the tower fall down?", "will the blocks fall?"),
        ),
        Ask(
            about="above",
            kind="static",
            templates=(
                "is the top block above the bottom block now?",
                "is the top block directly over the bottom block now?",
                "is the bottom block under the top block now?",
            ),
        ),
        ask_color("top block"),
        ask_count("blocks"),
    )

    def draw(self, rng: Generator, *, heuristic: str, answer: str, shift: str) -> Layout | None:
        # The rule of thumb says "falls" where the top block is not above the bottom one.
        above = heuristic == "no"
        count = 6 if shift == "tall" else int(rng.integers(3, 6))
        width, height = float(rng.uniform(12.5, 16)), float(rng.uniform(6, 7.5))
        base = float(rng.uniform(22, 42))
        top = float(rng.uniform(-0.35, 0.35) if above else rng.choice((-1, 1)) * rng.uniform(0.56, 0.85)) * width
        lean = np.linspace(0, top, count)
        lean[1:-1] += rng.uniform(-0.42, 0.42, count - 2) * width
        layout = _stack(rng, base + lean, width, height)
        return layout if layout and _carried(layout) == (answer == "no") else None

    def change(self, rng: Generator, layout: Layout, *, answer: str) -> Layout | None:
        """One block between bottom and top moves sideways, in some tries together with all above but the top."""
        number = int(rng.integers(1, len(layout.movers) - 1))
        blocks = list(layout.movers)
        blocks[number] = replace(blocks[number], x=blocks[number].x + float(rng.uniform(-9, 9)))
        changed = replace(layout, movers=tuple(blocks))
        return changed if _fits(changed) and _carried(changed) == (answer == "no") else None

    def outcome(self, layout: Layout, motion: Motion) -> str | None:
        del layout
        moved = np.abs(motion.states[:, :, :2] - motion.states[:1, :, :2]).max(axis=(1, 2))
        if moved.max() < _STILL:
            return "no"
        return "yes" if moved[VIDEO_FRAMES - 1] > _FALLEN else None

    def event(self, layout: Layout, motion: Motion) -> int:
        del layout
        moved = np.abs(motion.states[:VIDEO_FRAMES, :, :2] - motion.states[:1, :, :2]).max(axis=(1, 2))
        return int(np.argmax(moved > 2.0)) if moved.max() > 2.0 else 0

    def words(self, layout: Layout, answer: str, heuristic: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        count = len(layout.movers)
        color = layout.movers[-1].color
        return {
            "fall": (answer, ("yes", "no")),
            "above": ("no" if heuristic == "yes" else "yes", ("yes", "no")),
            "color": (color, color_choices(color)),
            "count": (COUNTS[count - 1], COUNTS[2 : max(5, count)]),
        }


def _stack(rng: Generator, columns: np.ndarray, width: float, height: float) -> Layout | None:
    names, colors = list(COLORS), []
    for _ in columns:
        colors.append(str(rng.choice([name for name in names if not colors or name != colors[-1]])))
    blocks = tuple(
        Block(color=color, x=float(x), y=GROUND_Y - height * (level + 0.5), width=width, height=height)
        for level, (x, color) in enumerate(zip(columns, colors, strict=True))
    )
    layout = Layout(tint=TINTS[rng.integers(len(TINTS))], movers=blocks)
    return layout if _fits(layout) else None


def _fits(layout: Layout) -> bool:
    """Each block rests on the one below by a fifth of its width at least, within the picture."""
    columns = [block.x for block in layout.movers]
    width = layout.movers[0].width  # type: ignore[union-attr]
    steps = np.abs(np.diff(columns))
    return bool(steps.max() < 0.8 * width and min(columns) > width / 2 + 2 and max(columns) < SIZE - width / 2 - 2)


def _carried(layout: Layout) -> bool | None:
    """True if every level carries the centre of mass above it, False if one clearly does not, None in between."""
    columns = np.array([block.x for block in layout.movers])
    half = layout.movers[0].width / 2  # type: ignore[union-attr]
    reach = [abs(columns[level + 1 :].mean() - columns[level]) - half for level in range(len(columns) - 1)]
    if max(reach) < -_MARGIN:
        return True
    return False if max(reach) > _MARGIN else None
