"""What every family of scenes shares: the stage, its physics, and its picture.

Everything starts from rest and all constants are fixed, so that frame 0 alone decides the future; but for the open
families, whose first mover gets a push at the start.
Units: lengths in pixels of the 64x64 picture, y downwards; angles in radians; times in video frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymunk
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pymunk._chipmunk_cffi import lib

from ...worlds.scene_look import GROUND_COLOR, GROUND_Y, SIZE

VIDEO_FRAMES = 33
"""Frames of one clip: 1 + 8 latent frames of 4."""
FPS = 12
"""What the clips are played at; nothing depends on it."""
MAX_MOVERS = 6

# Corners of the colour cube: a small VAE turned purple to blue and white to nothing.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (226, 30, 36),
    "green": (20, 170, 50),
    "blue": (30, 60, 230),
    "yellow": (250, 215, 10),
    "black": (12, 12, 16),
}
UNSEEN_COLORS: dict[str, tuple[int, int, int]] = {"orange": (245, 130, 20), "purple": (150, 40, 190)}
"""Only in out-of-distribution scenes."""
RAMP_COLOR = (122, 118, 122)
RAMP_HALF_WIDTH = 1.1

SETTLE_FRAMES = 14
"""Simulated past the clip, to see that an answer is final."""
_GRAVITY = 0.62  # px per frame squared: a free fall through the picture takes 13 frames
SUBSTEPS = 8
COARSE = 5
"""Physics steps per frame, and for quick looks ahead."""
_REST_FROM = 10  # frames; a tower that tips starts slowly
_ROLLING = 0.955  # per frame on the ground: rolling resistance, which a rigid circle lacks

Segment = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ball:
    """A ball at rest, by its centre."""

    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """An upright block at rest, by its centre."""

    color: str
    x: float
    y: float
    width: float
    height: float
    friction: float = 0.8


Mover = Ball | Block


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is in a scene before anything moves."""

    tint: tuple[int, int, int]
    movers: tuple[Mover, ...]
    ramps: tuple[Segment, ...] = ()
    posts: tuple[tuple[float, float], ...] = ()
    """Upright posts on the ground: column, and height of the top."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How a layout moves."""

    states: NDArray[np.float64] = field(repr=False)
    """(frames, movers, 3): centre x, y, and angle; `VIDEO_FRAMES + SETTLE_FRAMES` frames."""
    contacts: int
    """Times a mover began to touch a ramp, a post or another mover within the clip: how hard a scene is."""


def color_of(name: str) -> tuple[int, int, int]:
    """RGB, 0 to 255."""
    return COLORS[name] if name in COLORS else UNSEEN_COLORS[name]


def simulate(
    layout: Layout,
    *,
    nudge: float = 0.0,
    push: float = 0.0,
    substeps: int = SUBSTEPS,
    until: int | None = None,
    floor: float = float("inf"),
    counted: bool = True,
) -> Motion:
    """Move a layout.

    Args:
        nudge: moves the first ball, or the topmost block, sideways before the start.
        push: speed of the first mover at the start, px per frame, positive to the right.
        substeps: physics steps per frame; another number than `SUBSTEPS` is a perturbation, too.
        until: stop after this many frames; the rest repeats the last one.
        floor: stop as soon as the first mover is lower than this; for quick looks ahead.
        counted: False leaves the contacts at 0, for the motions that only have to end alike.
    """
    total = VIDEO_FRAMES + SETTLE_FRAMES
    states = np.empty((total, len(layout.movers), 3))
    balls = [(n, GROUND_Y - m.radius - 0.6) for n, m in enumerate(layout.movers) if isinstance(m, Ball)]
    contacts = 0
    with _space_of(layout, nudge) as (space, raw):
        touched = _count_contacts(space) if counted else []
        if push:
            lib.cpBodySetVelocity(raw[0], (push, 0.0))
        inner, dt, step = space._space, 1.0 / substeps, lib.cpSpaceStep
        for frame in range(total):
            for number, body in enumerate(raw):
                position = lib.cpBodyGetPosition(body)
                states[frame, number] = position.x, position.y, lib.cpBodyGetAngle(body)
            stop = (until is not None and frame + 1 >= until) or states[frame, 0, 1] > floor
            if stop or (frame >= _REST_FROM and all(map(_at_rest, raw))):
                states[frame:] = states[frame]
                contacts = len(touched)
                break
            if frame == VIDEO_FRAMES:
                contacts = len(touched)
            for number, rests_at in balls:
                if states[frame, number, 1] > rests_at:
                    body = raw[number]
                    velocity, turning = lib.cpBodyGetVelocity(body), lib.cpBodyGetAngularVelocity(body)
                    lib.cpBodySetVelocity(body, (velocity.x * _ROLLING, velocity.y))
                    lib.cpBodySetAngularVelocity(body, turning * _ROLLING)
            for _ in range(substeps):
                step(inner, dt)
    return Motion(states=states, contacts=contacts)


@contextmanager
def _space_of(layout: Layout, nudge: float) -> Iterator[tuple[pymunk.Space, list[Any]]]:
    """A space with all of a layout in it, and the library's own bodies of its movers.

    The library is called without what its Python layer does around each call, which takes longer than the physics.
    """
    space = pymunk.Space()
    space.iterations = 12
    space.gravity = (0.0, _GRAVITY)
    inner = space._space
    shapes: list[Any] = []
    bodies: list[Any] = []

    def put(shape: Any, kind: int, elasticity: float, friction: float) -> None:
        lib.cpShapeSetElasticity(shape, elasticity)
        lib.cpShapeSetFriction(shape, friction)
        lib.cpShapeSetCollisionType(shape, kind)
        lib.cpSpaceAddShape(inner, shape)
        shapes.append(shape)

    fixed, ground, side = lib.cpSpaceGetStaticBody(inner), GROUND_Y + 4.0, float(SIZE)
    walls = [((0.0, ground), (side, ground), 4.0), ((-3.0, -20.0), (-3.0, side), 3.5)]
    walls.append(((side + 3.0, -20.0), (side + 3.0, side), 3.5))
    walls += [((x, top + 1), (x, GROUND_Y), 1.0) for x, top in layout.posts]
    walls += [((r[0], r[1]), (r[2], r[3]), RAMP_HALF_WIDTH) for r in layout.ramps]
    try:
        for number, (start, end, half_width) in enumerate(walls):
            put(lib.cpSegmentShapeNew(fixed, start, end, half_width), 1 if number < 3 else 2, 0.6, 0.7)
        pushed = next((n for n, m in enumerate(layout.movers) if isinstance(m, Ball)), len(layout.movers) - 1)
        for number, mover in enumerate(layout.movers):
            if isinstance(mover, Ball):
                body = lib.cpBodyNew(1.0, lib.cpMomentForCircle(1.0, 0.0, mover.radius, (0.0, 0.0)))
                shape, bounce, grip = lib.cpCircleShapeNew(body, mover.radius, (0.0, 0.0)), 0.6, 0.7
            else:
                body = lib.cpBodyNew(1.0, lib.cpMomentForBox(1.0, mover.width, mover.height))
                shape, bounce, grip = lib.cpBoxShapeNew(body, mover.width, mover.height, 0.0), 0.0, mover.friction
            bodies.append(body)
            lib.cpBodySetPosition(body, (mover.x + (nudge if number == pushed else 0.0), mover.y))
            lib.cpSpaceAddBody(inner, body)
            put(shape, 3, bounce, grip)
        yield space, bodies
    finally:
        for shape in shapes:
            lib.cpSpaceRemoveShape(inner, shape)
            lib.cpShapeFree(shape)
        for body in bodies:
            lib.cpSpaceRemoveBody(inner, body)
            lib.cpBodyFree(body)


def _at_rest(body: Any) -> bool:
    velocity = lib.cpBodyGetVelocity(body)
    return math.sqrt(velocity.x**2 + velocity.y**2) < 0.01 and abs(lib.cpBodyGetAngularVelocity(body)) < 0.002


def _count_contacts(space: pymunk.Space) -> list[int]:
    touched: list[int] = []

    def began(_arbiter: Any, _space: Any, _data: Any) -> None:
        touched.append(1)

    space.on_collision(3, 2, begin=began)
    space.on_collision(3, 3, begin=began)
    return touched


def paint(layout: Layout, states: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The clip (frames, 64, 64, 3): a background drawn once at four times the size, the movers laid over it."""
    zoom = 4
    canvas = Image.new("RGB", (SIZE * zoom, SIZE * zoom), layout.tint)
    draw = ImageDraw.Draw(canvas)

    def scaled(*values: float) -> list[float]:
        return [zoom * value for value in values]

    for x, top in layout.posts:
        draw.rectangle(scaled(x - 1, top, x + 1, GROUND_Y), fill=GROUND_COLOR)
    draw.rectangle(scaled(0, GROUND_Y, SIZE, SIZE), fill=GROUND_COLOR)
    for ramp in layout.ramps:
        draw.line(scaled(*ramp), fill=RAMP_COLOR, width=round(2 * RAMP_HALF_WIDTH * zoom))
        for x, y in (ramp[:2], ramp[2:]):
            r = RAMP_HALF_WIDTH
            draw.ellipse(scaled(x - r, y - r, x + r, y + r), fill=RAMP_COLOR)
    picture = np.asarray(canvas.reduce(zoom), dtype=np.float32)
    frames = np.broadcast_to(picture, (len(states), SIZE, SIZE, 3))
    for number, mover in enumerate(layout.movers):
        alpha = coverage(mover, states[:, number])[..., None]
        frames = frames * (1 - alpha) + np.asarray(color_of(mover.color), dtype=np.float32) * alpha
    return np.rint(frames).astype(np.uint8)


def coverage(mover: Mover, states: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    """Share of each pixel that a mover covers, 0 to 1, (frames, 64, 64), from its states (frames, 3)."""
    centres = np.arange(SIZE, dtype=np.float32) + 0.5
    x, y, angle = (states[:, axis].astype(np.float32)[:, None, None] for axis in range(3))
    dx, dy = centres[None, None, :] - x, centres[None, :, None] - y
    if isinstance(mover, Ball):
        return np.clip(mover.radius + 0.5 - np.sqrt(dx * dx + dy * dy), 0, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = np.abs(dx * cos + dy * sin), np.abs(dy * cos - dx * sin)
    return np.clip(mover.width / 2 + 0.5 - along, 0, 1) * np.clip(mover.height / 2 + 0.5 - across, 0, 1)


def ramp_at(centre: float, height: float, *, length: float, degrees: float) -> Segment:
    """A ramp by its middle; positive degrees go down to the right."""
    angle = math.radians(degrees)
    dx, dy = math.cos(angle) * length / 2, math.sin(angle) * length / 2
    return (centre - dx, height - dy, centre + dx, height + dy)


def flipped(ramp: Segment) -> Segment:
    """The same ramp, leaning the other way."""
    return (ramp[0], ramp[3], ramp[2], ramp[1])


def change_one_ramp(rng: Generator, ramps: Sequence[Segment], *, often: int | None = None) -> tuple[Segment, ...]:
    """One ramp leans the other way, or (half of the time) moves by up to 12 px across and 6 px up or down.

    Args:
        often: the ramp to take in half of the tries; else any.
    """
    number = int(rng.integers(len(ramps))) if often is None or rng.random() < 0.5 else often
    x1, y1, x2, y2 = ramps[number]
    if rng.random() < 0.5:
        new = flipped(ramps[number])
    else:
        dx, dy = float(rng.uniform(-12, 12)), float(rng.uniform(-6, 6))
        new = (x1 + dx, y1 + dy, x2 + dx, y2 + dy)
    return (*ramps[:number], new, *ramps[number + 1 :])


def gap(first: Segment, second: Segment) -> float:
    """Smallest distance between two segments: 0 where they cross, else between an end and the other segment."""
    (ax, ay, bx, by), (cx, cy, dx, dy) = first, second

    def side(px: float, py: float, qx: float, qy: float, rx: float, ry: float) -> float:
        return (qx - px) * (ry - py) - (qy - py) * (rx - px)

    is_one_sided = side(ax, ay, bx, by, cx, cy) * side(ax, ay, bx, by, dx, dy) >= 0
    if not is_one_sided and side(cx, cy, dx, dy, ax, ay) * side(cx, cy, dx, dy, bx, by) < 0:
        return 0.0
    return min(
        _distance(ax, ay, second),
        _distance(bx, by, second),
        _distance(cx, cy, first),
        _distance(dx, dy, first),
    )


def _distance(x: float, y: float, segment: Segment) -> float:
    x1, y1, x2, y2 = segment
    dx, dy = x2 - x1, y2 - y1
    along = max(0.0, min(1.0, ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)))
    return math.hypot(x - x1 - along * dx, y - y1 - along * dy)


def free(ramps: Sequence[Segment], *, low: float = 2.0, high: float = SIZE - 2.0) -> bool:
    """True if ramps keep clear of each other, of the walls (`low`, `high`), of the balls' start and of the ground."""
    return all(_fits(ramp, ramps[:number], low, high) for number, ramp in enumerate(ramps))


def place(draw: Callable[[int], Segment], count: int, *, tries: int = 12) -> list[Segment] | None:
    """`count` ramps that keep clear, each drawn up to `tries` times; None where one finds no place."""
    ramps: list[Segment] = []
    for number in range(count):
        for _ in range(tries):
            ramp = draw(number)
            if _fits(ramp, ramps, 2.0, SIZE - 2.0):
                ramps.append(ramp)
                break
        else:
            return None
    return ramps


def _fits(ramp: Segment, others: Sequence[Segment], low: float, high: float) -> bool:
    x1, y1, x2, y2 = ramp
    if x1 <= low or x2 >= high or max(y1, y2) >= 50 or min(y1, y2) <= 14:
        return False
    return all(gap(ramp, other) >= 6 for other in others)


def ramp_below(ramps: tuple[Segment, ...], x: float, y: float) -> int | None:
    """Index of the first ramp that a plumb line from (x, y) meets, if any."""
    best: tuple[float, int] | None = None
    for number, (x1, y1, x2, y2) in enumerate(ramps):
        if x1 <= x <= x2:
            at = y1 + (y2 - y1) * (x - x1) / (x2 - x1)
            if at > y and (best is None or at < best[0]):
                best = (at, number)
    return None if best is None else best[1]
