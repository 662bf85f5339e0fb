"""The family `buckets`: a ball at rest above one to three tilted ramps, and three bins on the ground."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from ...worlds.scene_look import TINTS
from .family import COUNTS, Ask, ask_color, ask_count, color_choices
from .physics import (
    COLORS,
    GROUND_Y,
    SIZE,
    UNSEEN_COLORS,
    VIDEO_FRAMES,
    Ball,
    Layout,
    Motion,
    Segment,
    change_one_ramp,
    free,
    place,
    ramp_at,
    ramp_below,
)

BINS = ("left", "middle", "right")
DIVIDERS_X = (21.5, 42.5)
DIVIDER_TOP = 53.0

_MARGIN = 2.5  # a ball starts at least this far from the edge of a bin


def bin_of(x: float) -> str:
    """The bin that spans column `x`."""
    return BINS[int(np.searchsorted(DIVIDERS_X, x))]


class Buckets:
    """Where will the ball land? The rule of thumb: in the bin below it."""

    name = "buckets"
    answers = heuristics = BINS
    shifts = ("ramps", "colors")
    asks = (
        Ask(
            about="land",
            kind="temporal",
            templates=(
                "where will the ball land?",
                "in which bin will the ball land?",
                "where will the ball end up?",
                "which bin will the ball come to rest in?",
            ),
        ),
        Ask(
            about="below",
            kind="static",
            templates=(
                "which bin is directly below the ball now?",
                "which bin is the ball above now?",
                "what bin is under the ball at the start?",
            ),
        ),
        ask_color("ball"),
        ask_count("ramps"),
    )

    def draw(self, rng: Generator, *, heuristic: str, answer: str, shift: str) -> Layout | None:
        edges = (1.0, *DIVIDERS_X, SIZE - 1.0)
        below, target = BINS.index(heuristic), BINS.index(answer)
        radius = float(rng.uniform(3.6, 4.6))
        outer = max(_MARGIN, radius + 0.5)
        low = edges[below] + (outer if below == 0 else _MARGIN)
        high = edges[below + 1] - (outer if below == 2 else _MARGIN)
        x, y = float(rng.uniform(low, high)), float(rng.uniform(5.5, 9.0))
        palette = UNSEEN_COLORS if shift == "colors" else COLORS
        color = list(palette)[rng.integers(len(palette))]
        count = 4 if shift == "ramps" else int(rng.integers(1, 4))
        aimed = rng.random() < (0.85 if abs(target - below) == 2 else 0.6)

        def ramp(number: int) -> Segment:
            height, length = rng.uniform(18, 47), rng.uniform(14, 24 if count == 4 else 32)
            degrees, centre = rng.uniform(10, 42) * rng.choice((-1, 1)), rng.uniform(6, 58)
            if number == 0 and aimed and target != below:
                degrees = abs(degrees) * (1 if target > below else -1)
                centre, height = x + rng.uniform(-0.45, 0.45) * length, rng.uniform(18, 40)
            return ramp_at(centre, height, length=length, degrees=degrees)

        ramps = place(ramp, count)
        if ramps is None:
            return None
        return Layout(
            tint=TINTS[rng.integers(len(TINTS))],
            movers=(Ball(color=color, x=x, y=y, radius=radius),),
            ramps=tuple(ramps[i] for i in rng.permutation(count)),
            posts=tuple((post, DIVIDER_TOP) for post in DIVIDERS_X),
        )

    def change(self, rng: Generator, layout: Layout, *, answer: str) -> Layout | None:
        del answer
        ball = layout.movers[0]
        ramps = change_one_ramp(rng, layout.ramps, often=ramp_below(layout.ramps, ball.x, ball.y))
        return replace(layout, ramps=ramps) if free(ramps) else None

    def outcome(self, layout: Layout, motion: Motion) -> str | None:
        ball = layout.movers[0]
        assert isinstance(ball, Ball)
        final_states = motion.states[VIDEO_FRAMES - 1 :, 0]
        x = float(final_states[0, 0])
        settled = (
            final_states[0, 1] > GROUND_Y - ball.radius - 1.5
            and final_states[:, 1].min() > DIVIDER_TOP - 1
            and len({bin_of(float(column)) for column in final_states[:, 0]}) == 1
            and min(abs(x - edge) for edge in DIVIDERS_X) > 2
        )
        return bin_of(x) if settled else None

    def event(self, layout: Layout, motion: Motion) -> int:
        del layout
        path = motion.states[:VIDEO_FRAMES, 0]
        end = bin_of(float(path[-1, 0]))
        outside = [n for n, (x, y, _) in enumerate(path) if y < DIVIDER_TOP or bin_of(x) != end]
        return min(VIDEO_FRAMES - 1, 1 + max(outside, default=0))

    def words(self, layout: Layout, answer: str, heuristic: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        count = len(layout.ramps)
        return {
            "land": (answer, BINS),
            "below": (heuristic, BINS),
            "color": (layout.movers[0].color, color_choices(layout.movers[0].color)),
            "count": (COUNTS[count - 1], COUNTS[: max(3, count)]),
        }
