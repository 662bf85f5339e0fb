"""The open family `push`: a ball above ramps and three bins gets a push that no picture shows.

Frame 0 does not decide how a scene ends: it decides how likely each end is. So the best possible reader of frame 0 is
wrong in many scenes, and a world model that knows this draws futures that differ.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from ...worlds.scene_look import TINTS
from .buckets import BINS, DIVIDER_TOP, DIVIDERS_X, Buckets, bin_of
from .physics import COLORS, SIZE, UNSEEN_COLORS, Ball, Layout, place, ramp_at, simulate

WEAKEST, STRONGEST = 0.2, 2.4
"""Speed of the ball at the start, px per frame; it falls through the picture in 13 frames."""
STARTS = (16.0, 48.0)
"""Columns the ball begins in: near the middle, so that either direction matters."""
_CLEAR = 0.7  # share of pushes that must leave no doubt of how the scene ends
_STRENGTHS = 24  # at which a scene's chances are computed, in each of the two directions


class Push(Buckets):
    """Where will the ball land? The rule of thumb: in the bin below it."""

    name = "push"

    def draw_any(self, rng: Generator, *, shift: str) -> Layout | None:
        """A random layout, whatever it leads to; None where its parts collide.

        A layout that is chosen by how it ends would say something of the end.
        """
        radius = float(rng.uniform(3.6, 4.6))
        x, y = float(rng.uniform(*STARTS)), float(rng.uniform(5.5, 9.0))
        palette = UNSEEN_COLORS if shift == "colors" else COLORS
        color = list(palette)[rng.integers(len(palette))]
        count = 4 if shift == "ramps" else int(rng.integers(1, 4))

        def ramp(number: int) -> tuple[float, float, float, float]:
            del number
            height, length = rng.uniform(18, 47), rng.uniform(14, 24 if count == 4 else 32)
            degrees, centre = rng.uniform(10, 42) * rng.choice((-1, 1)), rng.uniform(6, 58)
            return ramp_at(centre, height, length=length, degrees=degrees)

        ramps = place(ramp, count)
        if ramps is None:
            return None
        return Layout(
            tint=TINTS[rng.integers(len(TINTS))],
            movers=(Ball(color=color, x=x, y=y, radius=radius),),
            ramps=tuple(ramps),
            posts=tuple((post, DIVIDER_TOP) for post in DIVIDERS_X),
        )

    def mirrored(self, layout: Layout) -> Layout:
        """The mirror image: each answer is as likely as its own mirror image is of the layout."""
        ball = layout.movers[0]
        ramps = tuple((SIZE - x2, y2, SIZE - x1, y1) for x1, y1, x2, y2 in layout.ramps)
        return replace(layout, movers=(replace(ball, x=SIZE - ball.x),), ramps=ramps)

    def draw_push(self, rng: Generator) -> float:
        """Speed of the ball at the start, px per frame, positive to the right: any strength, either direction."""
        return float(rng.uniform(WEAKEST, STRONGEST) * rng.choice((-1, 1)))

    def rule(self, layout: Layout) -> str:
        """What the rule of thumb answers."""
        return bin_of(layout.movers[0].x)

    def chances(self, layout: Layout) -> dict[str, float]:
        """The probability of each answer, given the picture, over pushes that leave no doubt of how they end; empty
        where too many leave one.

        The largest is how often the best possible reader of the picture is right.
        """
        middles = (np.arange(_STRENGTHS) + 0.5) / _STRENGTHS
        counts: dict[str, int] = dict.fromkeys(BINS, 0)
        for strength in WEAKEST + (STRONGEST - WEAKEST) * middles:
            for direction in (-1, 1):
                end = self.outcome(layout, simulate(layout, push=direction * float(strength), counted=False))
                if end is not None:
                    counts[end] += 1
        total = sum(counts.values())
        return {answer: count / total for answer, count in counts.items()} if total >= _CLEAR * 2 * _STRENGTHS else {}
