"""The `buckets` family: a ball at rest above one to three tilted ramps, and three bins on the ground.

Lives here: one scene's layout, its physics, its picture, and its truth. A scene is a pure function of
(VERSION, seed, split, index). Elsewhere: questions and files (scenes.py).

Units: lengths in pixels of the 64x64 picture, y downwards; times in video frames.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymunk
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

VERSION = 1
"""Raised whenever a scene of the same index would look or end differently."""

SIZE = 64
"""Width and height of the picture."""
VIDEO_FRAMES = 33
"""Frames of one clip: 1 + 8 latent frames of 4."""
GROUND_Y = 60.0
DIVIDERS_X = (21.5, 42.5)
DIVIDER_TOP = 53.0
BINS = ("left", "middle", "right")
SPLITS = ("train", "validation", "test")

# Corners of the colour cube: a small VAE turned purple to blue and white to nothing.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (226, 30, 36),
    "green": (20, 170, 50),
    "blue": (30, 60, 230),
    "yellow": (250, 215, 10),
    "black": (12, 12, 16),
}
TINTS = ((236, 238, 242), (214, 228, 242), (222, 236, 220), (242, 224, 224), (228, 220, 240))
RAMP_COLOR = (122, 118, 122)
GROUND_COLOR = (110, 82, 62)
RAMP_HALF_WIDTH = 1.1

_GRAVITY = 0.62  # px per frame squared: a free fall takes 13 frames, 9 scenes of 10 settle by frame 33
_SUBSTEPS = 12
_SETTLE_FRAMES = 14  # simulated past the clip, to see that the answer is final
_ROLLING = 0.955  # per frame on the ground: rolling resistance, which a rigid circle lacks
_NUDGES = (-0.5, 0.5)  # the answer must survive a start moved by this much
_DIVIDER_MARGIN = 2.5  # a ball starts at least this far from the edge of a bin
_MAX_TRIES = 4000

Segment = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is in a scene before anything moves."""

    color: str
    tint: tuple[int, int, int]
    radius: float
    start: tuple[float, float]
    ramps: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip with its truth."""

    id: str
    layout: Layout
    bin_below: str
    """The bin directly below the ball in frame 0."""
    answer: str
    """The bin the ball comes to rest in."""
    positions: NDArray[np.float64] = field(repr=False)
    """Ball centre per frame, shape (33, 2), x then y."""
    frames: NDArray[np.uint8] = field(repr=False)
    """The clip, shape (33, 64, 64, 3)."""


def bin_of(x: float) -> str:
    """The bin that spans column `x`."""
    return BINS[int(np.searchsorted(DIVIDERS_X, x))]


def scene_id(index: int, split: str, *, seed: int = 0) -> str:
    """The name of a scene, such as `train-000123`."""
    return f"{split}-{index:06d}" if seed == 0 else f"{split}-s{seed}-{index:06d}"


def make_scene(index: int, split: str = "train", *, seed: int = 0) -> Scene:
    """Draw, simulate and paint scene number `index` of a split.

    Nine neighbouring indices fill the nine cells (bin below the ball, answer) once each, so that
    "the bin under the ball" guesses right in one third of the scenes, and each answer is as common.

    Raises:
        ValueError: `split` is not one of `SPLITS`, or `index` is negative.
    """
    if split not in SPLITS or index < 0:
        raise ValueError(f"a scene needs a split of {SPLITS} and an index >= 0, got {split!r} and {index}")
    split_code = SPLITS.index(split)
    cells = np.random.default_rng([VERSION, seed, split_code, index // 9, 1]).permutation(9)
    below, answer = divmod(int(cells[index % 9]), 3)
    rng = np.random.default_rng([VERSION, seed, split_code, index, 0])
    color = list(COLORS)[rng.integers(len(COLORS))]
    tint = TINTS[rng.integers(len(TINTS))]
    count = int(rng.integers(1, 4))
    for _ in range(_MAX_TRIES):
        layout = _draw_layout(rng, color, tint, count, below, answer)
        if layout is None:
            continue
        positions = _simulate(layout, 0.0)
        if _outcome(layout, positions) != BINS[answer]:
            continue
        if any(_outcome(layout, _simulate(layout, nudge)) != BINS[answer] for nudge in _NUDGES):
            continue
        return Scene(
            id=scene_id(index, split, seed=seed),
            layout=layout,
            bin_below=BINS[below],
            answer=BINS[answer],
            positions=positions[:VIDEO_FRAMES],
            frames=_paint(layout, positions[:VIDEO_FRAMES]),
        )
    raise RuntimeError(f"no scene {split} {index} found in {_MAX_TRIES} tries: the generator is broken")


def _draw_layout(
    rng: Generator, color: str, tint: tuple[int, int, int], count: int, below: int, answer: int
) -> Layout | None:
    """A random layout that has a fair chance to end in `answer`, or None where its parts collide."""
    edges = (1.0, *DIVIDERS_X, SIZE - 1.0)
    radius = float(rng.uniform(3.6, 4.6))
    outer = max(_DIVIDER_MARGIN, radius + 0.5)
    low = edges[below] + (outer if below == 0 else _DIVIDER_MARGIN)
    high = edges[below + 1] - (outer if below == 2 else _DIVIDER_MARGIN)
    x, y = float(rng.uniform(low, high)), float(rng.uniform(5.5, 9.0))
    aimed = rng.random() < (0.85 if abs(answer - below) == 2 else 0.6)
    ramps: list[Segment] = []
    for number in range(count):
        height = rng.uniform(18, 47)
        length = rng.uniform(14, 32)
        angle = math.radians(rng.uniform(10, 42)) * (1 if rng.random() < 0.5 else -1)
        centre = rng.uniform(6, 58)
        if number == 0 and aimed and answer != below:
            angle = abs(angle) * (1 if answer > below else -1)
            centre = x + rng.uniform(-0.45, 0.45) * length
            height = rng.uniform(18, 40)
        dx, dy = math.cos(angle) * length / 2, math.sin(angle) * length / 2
        ramp = (centre - dx, height - dy, centre + dx, height + dy)
        clear = ramp[0] > 2 and ramp[2] < SIZE - 2 and max(ramp[1], ramp[3]) < 50 and min(ramp[1], ramp[3]) > 14
        if not clear or any(_gap(ramp, other) < 6 for other in ramps):
            return None
        ramps.append(ramp)
    order = rng.permutation(count)
    return Layout(color=color, tint=tint, radius=radius, start=(x, y), ramps=tuple(ramps[i] for i in order))


def _gap(first: Segment, second: Segment) -> float:
    """Smallest distance between points of two segments, on a grid of 9 points each."""
    steps = np.linspace(0, 1, 9)[:, None]
    a = np.asarray(first[:2]) * (1 - steps) + np.asarray(first[2:]) * steps
    b = np.asarray(second[:2]) * (1 - steps) + np.asarray(second[2:]) * steps
    return float(np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)).min())


def _simulate(layout: Layout, nudge: float) -> NDArray[np.float64]:
    """Ball centres, one row per frame, for the clip and `_SETTLE_FRAMES` more."""
    space = pymunk.Space()
    space.iterations = 8
    space.gravity = (0.0, _GRAVITY)
    fixed = space.static_body
    ground, side = GROUND_Y + 4.0, float(SIZE)
    walls = [((0.0, ground), (side, ground), 4.0), ((-3.0, -20.0), (-3.0, side), 3.5)]
    walls.append(((side + 3.0, -20.0), (side + 3.0, side), 3.5))
    walls += [((x, DIVIDER_TOP + 1), (x, GROUND_Y), 1.0) for x in DIVIDERS_X]
    walls += [((r[0], r[1]), (r[2], r[3]), RAMP_HALF_WIDTH) for r in layout.ramps]
    for start, end, half_width in walls:
        shape = pymunk.Segment(fixed, start, end, half_width)
        shape.elasticity, shape.friction = 0.6, 0.7
        space.add(shape)
    ball = pymunk.Body(1.0, pymunk.moment_for_circle(1.0, 0.0, layout.radius))
    ball.position = (layout.start[0] + nudge, layout.start[1])
    circle = pymunk.Circle(ball, layout.radius)
    circle.elasticity, circle.friction = 0.6, 0.7
    space.add(ball, circle)
    positions = np.empty((VIDEO_FRAMES + _SETTLE_FRAMES, 2))
    rests_at = GROUND_Y - layout.radius - 0.6
    for frame in range(len(positions)):
        x, y = ball.position
        positions[frame] = x, y
        if y > rests_at:
            vx, vy = ball.velocity
            ball.velocity = vx * _ROLLING, vy
            ball.angular_velocity *= _ROLLING
        elif frame == VIDEO_FRAMES - 1 and y < DIVIDER_TOP:  # still on its way: rejected anyway
            positions[frame:] = x, y
            break
        for _ in range(_SUBSTEPS):
            space.step(1.0 / _SUBSTEPS)
    return positions


def _outcome(layout: Layout, positions: NDArray[np.float64]) -> str | None:
    """The bin the ball rests in, or None where that is not settled when the clip ends."""
    rest = positions[VIDEO_FRAMES - 1 :]
    x = rest[0, 0]
    settled = (
        rest[0, 1] > GROUND_Y - layout.radius - 1.5
        and rest[:, 1].min() > DIVIDER_TOP - 1
        and len({bin_of(float(column)) for column in rest[:, 0]}) == 1
        and min(abs(x - edge) for edge in DIVIDERS_X) > 2
    )
    return bin_of(float(x)) if settled else None


def _paint(layout: Layout, positions: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The clip: a static background drawn once at four times the size, the ball laid over it."""
    zoom = 4
    canvas = Image.new("RGB", (SIZE * zoom, SIZE * zoom), layout.tint)
    draw = ImageDraw.Draw(canvas)
    for x in DIVIDERS_X:
        draw.rectangle(_scaled(zoom, x - 1, DIVIDER_TOP, x + 1, GROUND_Y), fill=GROUND_COLOR)
    draw.rectangle(_scaled(zoom, 0, GROUND_Y, SIZE, SIZE), fill=GROUND_COLOR)
    for ramp in layout.ramps:
        draw.line(_scaled(zoom, *ramp), fill=RAMP_COLOR, width=round(2 * RAMP_HALF_WIDTH * zoom))
        for x, y in (ramp[:2], ramp[2:]):
            r = RAMP_HALF_WIDTH
            draw.ellipse(_scaled(zoom, x - r, y - r, x + r, y + r), fill=RAMP_COLOR)
    background = np.asarray(canvas.reduce(zoom), dtype=np.float32)
    alpha = ball_masks(positions, layout.radius)[..., None]
    ball = np.asarray(COLORS[layout.color], dtype=np.float32)
    return np.rint(background * (1 - alpha) + ball * alpha).astype(np.uint8)


def ball_masks(positions: NDArray[np.float64], radius: float) -> NDArray[np.floating[Any]]:
    """Coverage of each pixel by the ball, 0 to 1, shape (frames, 64, 64)."""
    centres = np.arange(SIZE, dtype=np.float32) + 0.5
    x, y = positions[:, 0].astype(np.float32), positions[:, 1].astype(np.float32)
    distance = np.sqrt(
        (centres[None, None, :] - x[:, None, None]) ** 2 + (centres[None, :, None] - y[:, None, None]) ** 2
    )
    return np.clip(radius + 0.5 - distance, 0, 1)


def _scaled(zoom: int, *values: float) -> list[float]:
    return [zoom * value for value in values]
