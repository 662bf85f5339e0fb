"""Reads how a scene ends from pictures alone: a fixed parser, the same for true, reconstructed and predicted clips."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .buckets import bin_of
from .contact import clearance
from .physics import SIZE, Ball, Block, Layout, color_of, coverage
from .race import landing_frames

Video = NDArray[np.floating[Any]]

_READ_RADIUS = 6.0
_NEAR = 0.45  # distance in RGB, of at most sqrt(3), at which a pixel no longer counts as the thing
_CHANGED, _FELL = 0.3, 0.2  # a tower fell if a fifth of where it stood has changed colour by this much
_TOUCHED, _PUSHED = 1.0, 1.8  # px between ball and block, and px the block has moved


def find(frame: Video, color: str) -> tuple[float, float, float]:
    """Centre x, y and strength of the blob of a colour in a picture (H, W, 3) with values 0 to 1.

    The strongest 5x5 window of near-coloured pixels, then their centroid around it. Strength is the
    window's mean nearness, 0 where nothing has the colour.
    """
    target = np.asarray(color_of(color), dtype=np.float32) / 255
    near = np.clip(1 - np.linalg.norm(frame - target, axis=-1) / _NEAR, 0, 1)
    sums = np.pad(near, 3).cumsum(0).cumsum(1)
    windows = sums[5:, 5:] - sums[:-5, 5:] - sums[5:, :-5] + sums[:-5, :-5]
    row, column = np.unravel_index(int(windows.argmax()), windows.shape)
    rows, columns = np.mgrid[: near.shape[0], : near.shape[1]]
    inside = near * (np.hypot(rows - row, columns - column) <= _READ_RADIUS)
    total = float(inside.sum())
    if total < 1e-6:
        return SIZE / 2, SIZE / 2, 0.0
    x, y = float((inside * columns).sum() / total), float((inside * rows).sum() / total)
    return x + 0.5, y + 0.5, float(windows.max()) / 25


def track(video: Video, layout: Layout) -> NDArray[np.float64]:
    """Where the movers of a layout are found in a clip (frames, 64, 64, 3): (frames, movers, 3), x, y, strength."""
    return np.array([[find(frame, mover.color) for mover in layout.movers] for frame in video])


def read_outcome(family: str, video: Video, layout: Layout) -> str:
    """The answer to a family's temporal question, as a clip of 33 frames shows it."""
    if family in ("buckets", "push"):
        return bin_of(find(video[-1], layout.movers[0].color)[0])
    if family == "tower":
        stood = np.max([coverage(block, _start(block))[0] for block in layout.movers], axis=0)
        changed = np.linalg.norm(video[-1] - video[0], axis=-1) > _CHANGED
        return "yes" if (stood * changed).sum() > _FELL * stood.sum() else "no"
    positions = track(video, layout)
    if family == "race":
        # Half a pixel of slack: a ball found a little high has landed all the same.
        low = positions + np.array([0.0, 0.8, 0.0])
        left, right = landing_frames(layout, low)
        if left == right:
            at = min(left, len(positions) - 1)
            return "left" if positions[at, 0, 1] > positions[at, 1, 1] else "right"
        return "left" if left < right else "right"
    near = clearance(layout, positions).min() < _TOUCHED
    return "yes" if near or abs(positions[-1, 1, 0] - positions[0, 1, 0]) > _PUSHED else "no"


def _start(block: Ball | Block) -> NDArray[np.float64]:
    return np.array([[block.x, block.y, 0.0]])
