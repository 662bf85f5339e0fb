"""The family `race`: two balls at rest in two halves of the stage, each above a ramp or two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from ...worlds.scene_look import TINTS
from .family import Ask
from .physics import COARSE, COLORS, GROUND_Y, SIZE, Ball, Layout, Motion, Segment, free, ramp_at, simulate

_MIDDLE = SIZE / 2
_POST_TOP = 12.0
_LEAD = 5  # frames between the landings: more than a latent frame


class Race:
    """Which ball will land first? The rule of thumb: the lower one. Answers are sides; the words are colours."""

    name = "race"
    answers = heuristics = ("left", "right")
    shifts = ("size",)
    asks = (
        Ask(
            about="first",
            kind="temporal",
            templates=(
                "which ball will land first?",
                "which ball will reach the ground first?",
                "which ball will be the first to land?",
            ),
        ),
        Ask(
            about="lower",
            kind="static",
            templates=(
                "which ball is lower now?",
                "which ball is the lower one now?",
                "which ball is closer to the ground now?",
            ),
        ),
        Ask(
            about="left",
            kind="static",
            templates=(
                "which ball is on the left now?",
                "which ball is further left now?",
                "which ball is the left one now?",
            ),
        ),
    )

    def draw(self, rng: Generator, *, heuristic: str, answer: str, shift: str) -> Layout | None:
        lower, first = self.heuristics.index(heuristic), self.answers.index(answer)
        colors = rng.permutation(list(COLORS))[:2]
        high = float(rng.uniform(5.5, 13))
        heights = [high, high]
        heights[lower] = high + float(rng.uniform(5, 12))
        radii = (5.2, 5.8) if shift == "size" else (3.6, 4.4)
        balls = tuple(
            Ball(
                color=str(colors[side]),
                x=float(rng.uniform(7, 25)) + side * _MIDDLE,
                y=heights[side],
                radius=float(rng.uniform(*radii)),
            )
            for side in (0, 1)
        )
        # One ball keeps a middling time, so that one ramp of the other can decide between first and last.
        steady = int(rng.integers(2))
        steady_ramp = _ramp(rng, balls[steady], steady, (15, 21))
        if steady_ramp is None:
            return None
        span = _span(_landing(balls[steady], steady_ramp), before=first != steady)
        other_ramp = _ramp(rng, balls[1 - steady], 1 - steady, span)
        if other_ramp is None:
            return None
        return Layout(
            tint=TINTS[rng.integers(len(TINTS))],
            movers=balls,
            ramps=(steady_ramp, other_ramp),
            posts=((_MIDDLE, _POST_TOP),),
        )

    def change(self, rng: Generator, layout: Layout, *, answer: str) -> Layout | None:
        """The ramp that was drawn last is drawn anew."""
        side = int(layout.ramps[1][0] > _MIDDLE)
        ball, other_ball = layout.movers[side], layout.movers[1 - side]
        assert isinstance(ball, Ball)
        assert isinstance(other_ball, Ball)
        span = _span(_landing(other_ball, layout.ramps[0]), before=self.answers.index(answer) == side)
        ramp = _ramp(rng, ball, side, span)
        return None if ramp is None else replace(layout, ramps=(layout.ramps[0], ramp))

    def outcome(self, layout: Layout, motion: Motion) -> str | None:
        landings = landing_frames(layout, motion.states)
        if max(landings) > 30 or abs(landings[0] - landings[1]) < _LEAD:
            return None
        return self.answers[int(landings[1] < landings[0])]

    def event(self, layout: Layout, motion: Motion) -> int:
        return min(landing_frames(layout, motion.states))

    def words(self, layout: Layout, answer: str, heuristic: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        colors = tuple(ball.color for ball in layout.movers)
        left, right = colors
        pick = {"left": left, "right": right}
        return {"first": (pick[answer], colors), "lower": (pick[heuristic], colors), "left": (left, colors)}


def landing_frames(layout: Layout, states: np.ndarray) -> list[int]:
    """The frame in which each ball first touches the ground; the number of frames where it never does."""
    frames = []
    for number, ball in enumerate(layout.movers):
        assert isinstance(ball, Ball)
        low = np.nonzero(states[:, number, 1] > GROUND_Y - ball.radius - 1.0)[0]
        frames.append(int(low[0]) if len(low) else len(states))
    return frames


def _ramp(rng: Generator, ball: Ball, side: int, span: tuple[int, int]) -> Segment | None:
    """A ramp with which a ball lands within a span of frames."""
    low, high = (2.0, _MIDDLE - 1) if side == 0 else (_MIDDLE + 1, SIZE - 2.0)
    slow = span[1] > 25  # a gentle ramp, with the ball above its upper half
    for _ in range(12):
        length, lean = rng.uniform(9, 18), rng.choice((-1, 1))
        degrees = rng.uniform(8, 22) if slow else rng.uniform(10, 45)
        centre = ball.x + length * (lean * rng.uniform(0.1, 0.5) if slow else rng.uniform(-0.9, 0.9))
        ramp = ramp_at(centre, rng.uniform(ball.y + 12, 46), length=length, degrees=degrees * lean)
        if free([ramp], low=low, high=high) and span[0] <= _landing(ball, ramp) <= span[1]:
            return ramp
    return None


def _span(landing: int, *, before: bool) -> tuple[int, int]:
    """When a ball must land so as to be clearly before, or after, one that lands at `landing`."""
    return (0, landing - _LEAD - 1) if before else (landing + _LEAD + 1, 29)


def _landing(ball: Ball, ramp: Segment) -> int:
    """The frame in which a ball alone reaches the ground."""
    layout = Layout(tint=TINTS[0], movers=(ball,), ramps=(ramp,), posts=((_MIDDLE, _POST_TOP),))
    coarse = simulate(layout, until=31, counted=False, substeps=COARSE, floor=GROUND_Y - ball.radius - 1.0)
    return landing_frames(layout, coarse.states)[0]
