"""The family `contact`: a ball at rest above two or three ramps, and a block on the ground."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from ...worlds.scene_look import TINTS
from .family import Ask, ask_color, color_choices
from .physics import (
    COARSE,
    COLORS,
    GROUND_Y,
    SIZE,
    UNSEEN_COLORS,
    VIDEO_FRAMES,
    Ball,
    Block,
    Layout,
    Motion,
    Segment,
    change_one_ramp,
    free,
    place,
    ramp_at,
    ramp_below,
    simulate,
)

_SLIDES = 0.25  # friction of the block: it shows that it was touched
_CLEAR = 3.0  # px that always lie between ball and block where they do not touch
_PUSHED = 1.0  # px the block has moved at the end where they do


class Contact:
    """Will the ball touch the block? The rule of thumb: if the ramp below the ball slopes down to it."""

    name = "contact"
    answers = heuristics = ("yes", "no")
    shifts = ("colors",)
    asks = (
        Ask(
            about="touch",
            kind="temporal",
            templates=(
                "will the ball touch the block?",
                "will the ball hit the block?",
                "will the ball reach the block?",
            ),
        ),
        Ask(
            about="toward",
            kind="static",
            templates=(
                "does the ramp below the ball slope down to the block?",
                "does the ramp under the ball lead to the block?",
                "is the block on the low side of the ramp below the ball?",
            ),
        ),
        Ask(
            about="side",
            kind="static",
            templates=(
                "on which side of the ball is the block now?",
                "is the block left or right of the ball now?",
            ),
        ),
        ask_color("block"),
    )

    def draw(self, rng: Generator, *, heuristic: str, answer: str, shift: str) -> Layout | None:
        radius = float(rng.uniform(3.6, 4.6))
        x, y = float(rng.uniform(14, 50)), float(rng.uniform(5.5, 9.0))
        ball_color, block_color = (str(color) for color in rng.permutation(list(COLORS))[:2])
        if shift == "colors":
            block_color = list(UNSEEN_COLORS)[rng.integers(len(UNSEEN_COLORS))]

        lean, length = float(rng.choice((-1, 1))), float(rng.uniform(12, 28))
        turned = heuristic == "no"  # to end on the other side the ball must be turned round, and soon
        reach = float(rng.uniform(0.1, 0.45) if turned else rng.uniform(-0.4, 0.4))
        above = ramp_at(
            x - lean * reach * length,
            float(rng.uniform(18, 26 if turned else 34)),
            length=length,
            degrees=lean * float(rng.uniform(15, 42) if turned else rng.uniform(10, 42)),
        )
        foot = above[2] if lean > 0 else above[0]

        def ramp(number: int) -> Segment:
            if number == 0:
                return above
            height, length = rng.uniform(22, 46), rng.uniform(12, 28)
            degrees, centre = rng.uniform(10, 42) * rng.choice((-1, 1)), rng.uniform(6, 58)
            if number == 1 and turned:
                length, degrees = rng.uniform(16, 28), -lean * rng.uniform(18, 42)
                centre = foot + lean * (rng.uniform(3, 9) - 0.45 * length)
                height = max(above[1], above[3]) + rng.uniform(8, 20)
            return ramp_at(centre, height, length=length, degrees=degrees)

        ramps = place(ramp, int(rng.integers(2, 4)))
        if ramps is None:
            return None
        height = float(rng.uniform(8, 11))
        block = Block(
            color=block_color,
            x=0.0,
            y=GROUND_Y - height / 2,
            width=float(rng.uniform(6, 8)),
            height=height,
            friction=_SLIDES,
        )
        layout = Layout(
            tint=TINTS[rng.integers(len(TINTS))],
            movers=(Ball(color=ball_color, x=x, y=y, radius=radius), block),
            ramps=tuple(ramps[i] for i in rng.permutation(len(ramps))),
        )
        layout = _set_block(rng, layout, answer)
        return layout if layout and toward(layout) == heuristic else None

    def change(self, rng: Generator, layout: Layout, *, answer: str) -> Layout | None:
        ball, block = layout.movers
        if rng.random() < 0.5:
            changed = _set_block(rng, layout, answer)
            if changed is None or (changed.movers[1].x < ball.x) != (block.x < ball.x):
                return None
        else:
            often = ramp_below(layout.ramps, ball.x, ball.y)
            changed = replace(layout, ramps=change_one_ramp(rng, layout.ramps, often=often))
            if not free(changed.ramps):
                return None
        return changed if toward(changed) == toward(layout) else None

    def outcome(self, layout: Layout, motion: Motion) -> str | None:
        distance = clearance(layout, motion.states)
        moved = abs(motion.states[VIDEO_FRAMES - 1, 1, 0] - motion.states[0, 1, 0])
        if distance[:30].min() < 0.3 and moved > _PUSHED:
            return "yes"
        return "no" if distance.min() > _CLEAR else None

    def event(self, layout: Layout, motion: Motion) -> int:
        distance = clearance(layout, motion.states)[:VIDEO_FRAMES]
        return int(np.argmin(distance))

    def words(self, layout: Layout, answer: str, heuristic: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        ball, block = layout.movers
        return {
            "touch": (answer, ("yes", "no")),
            "toward": (heuristic, ("yes", "no")),
            "side": ("left" if block.x < ball.x else "right", ("left", "right")),
            "color": (block.color, color_choices(block.color)),
        }


def _set_block(rng: Generator, layout: Layout, answer: str) -> Layout | None:
    """The layout with its block where the ball's path on the ground meets it, or where no path comes near."""
    ball, block = layout.movers
    assert isinstance(ball, Ball)
    assert isinstance(block, Block)
    until = 29 if answer == "yes" else None
    path = simulate(replace(layout, movers=(ball,)), until=until, counted=False, substeps=COARSE).states[:, 0]
    reach = ball.radius + block.width / 2
    low, high = block.width / 2 + 2, SIZE - block.width / 2 - 2
    rolling = path[path[:, 1] > GROUND_Y - block.height - ball.radius]
    if answer == "yes":
        if len(rolling) < 2:
            return None
        start, end = float(rolling[0, 0]), float(rolling[-1, 0])
        way = np.sign(end - start)
        if abs(end - start) < 4:
            return None
        x = start + way * (reach + float(rng.uniform(0.5, max(abs(end - start) - 1.5, 0.6))))
    else:
        x = float(rng.uniform(low, high))
        if len(rolling) and np.abs(rolling[:, 0] - x).min() < reach + _CLEAR + 0.5:
            return None
    if not low < x < high or abs(x - ball.x) < 6:
        return None
    return replace(layout, movers=(ball, replace(block, x=x)))


def toward(layout: Layout) -> str | None:
    """Whether the ramp below the ball slopes down to the side where the block is; None without such a ramp."""
    ball, block = layout.movers
    number = ramp_below(layout.ramps, ball.x, ball.y)
    if number is None:
        return None
    x1, y1, x2, y2 = layout.ramps[number]
    return "yes" if (block.x > ball.x) == (y2 > y1) and x1 < x2 else "no"


def clearance(layout: Layout, states: np.ndarray) -> np.ndarray:
    """Pixels between the ball's and the block's surface per frame, the block taken as upright."""
    ball, block = layout.movers
    assert isinstance(ball, Ball)
    assert isinstance(block, Block)
    across = np.maximum(np.abs(states[:, 0, 0] - states[:, 1, 0]) - block.width / 2, 0)
    down = np.maximum(np.abs(states[:, 0, 1] - states[:, 1, 1]) - block.height / 2, 0)
    return np.hypot(across, down) - ball.radius
