"""Token layouts: how a rollout of T x H x W latent cells becomes N world tokens, as plain arithmetic.

    spatial        each cell is a token, as in the document this project began from
    patch          `patch` x `patch` cells are one token with as many times the channels: no number is lost
    pooled         `patch` x `patch` cells, over `pool_steps` future frames, are summarised as one token
    hierarchical   now and the end as patches; between, one token is `coarse` x `coarse` of them, `pool_steps` frames
    channel        a token a channel: its H x W cells of one frame
    resampler      `queries` learned tokens in all, which look at every patch of every frame

Every layout may pool over time (`pool_steps`); the frame that is observed stays by itself in all of them. It is known,
what follows is guessed: a mean of both is neither, and pooled with the future it would change with how much of the
future is read. So a reader of no steps sees what a reader of all steps sees first. (A resampler mixes at will.)

Lives here: what a token covers, how many there are. Loads no torch, so that `theworld tokens` is quick.
Elsewhere: cutting tensors (tokens.py), what a language model has room for (budget.py).

Axes:  C latent channel   T latent frame   H, W latent row, column   N world token   D numbers of a token
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from ...pipeline.errors import ConfigError

LayoutName = Literal["spatial", "patch", "pooled", "hierarchical", "channel", "resampler"]
PoolName = Literal["mean", "max", "minmax", "stride"]

LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
POOLS: tuple[PoolName, ...] = get_args(PoolName)

PATCH = 4
"""Cells per side of a token where `train` is told nothing."""
POOL_STEPS = {"pooled": 2, "hierarchical": 4}
"""Future frames that share a token where nobody says; 1 in the other layouts."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Neighbouring latent frames that share their tokens."""

    start: int
    stop: int
    """One past the last."""
    coarse: int = 1
    """As many of the layout's finest rows, and columns, share a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLayout:
    """How latent cells become tokens. Which fields a layout reads is said at the head of this file."""

    name: LayoutName = "patch"
    patch: int = 2
    """Cells per side of a token's area; in `resampler`, of what the queries look at."""
    pool: PoolName = "minmax"
    """How what shares a token is summarised. mean; max; minmax: least and greatest, twice the channels; stride: the
    middle cell, the last frame."""
    pool_steps: int = 1
    """Future frames that share their tokens."""
    coarse: int = 2
    """hierarchical: patches per side that share a token between now and the end."""
    queries: int = 32
    """resampler: world tokens in all."""

    def __post_init__(self) -> None:
        if self.name not in LAYOUTS or self.pool not in POOLS:
            raise ConfigError(
                f"there is no layout {self.name!r} with pool {self.pool!r}; the layouts are {', '.join(LAYOUTS)}, "
                f"the pools {', '.join(POOLS)}"
            )
        counts = {"patch": "cell", "pool_steps": "frame", "coarse": "patch", "queries": "query"}
        for name, unit in counts.items():
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1 {unit}, got {getattr(self, name)}")

    @property
    def side(self) -> int:
        """Cells per token along each spatial axis."""
        return 1 if self.name in ("spatial", "channel") else self.patch

    @property
    def statistics(self) -> int:
        """Numbers that stand for each channel of what is pooled."""
        pools = self.pool_steps > 1 or self.name in ("pooled", "hierarchical")
        return 2 if pools and self.pool == "minmax" else 1

    def slots(self, latent_frames: int) -> tuple[Slot, ...]:
        """The frames that share tokens, in order; the first frame is always by itself."""
        if not latent_frames:
            return ()
        end = latent_frames - 1 if self.name == "hierarchical" else latent_frames
        coarse = self.coarse if self.name == "hierarchical" else 1
        between = [Slot(start, min(start + self.pool_steps, end), coarse) for start in range(1, end, self.pool_steps)]
        last = [Slot(end, latent_frames)] if 1 <= end < latent_frames else []
        return (Slot(0, 1), *between, *last)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a frame of `height` x `width` latent cells, where it is cut the finest.

        Raises:
            ConfigError: patches do not tile the frame, or coarser ones do not tile these.
        """
        side = self.side
        if height % side or width % side:
            raise ConfigError(
                f"latents of {height}x{width} cells do not divide into patches of {side}x{side}. "
                "Choose a patch that divides both, or the layout 'spatial'"
            )
        rows, columns = height // side, width // side
        if self.name == "hierarchical" and (rows % self.coarse or columns % self.coarse):
            raise ConfigError(
                f"{rows}x{columns} patches do not divide into coarser ones of {self.coarse}x{self.coarse}. "
                "Choose a coarse that divides both, or another patch"
            )
        return rows, columns

    def places(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the positions that tokens of one frame have; of `channel`, one row a channel."""
        if self.name == "channel":
            return self.statistics * channels, 1
        return self.grid(height, width)

    def numbers(self, channels: int, height: int, width: int) -> int:
        """Numbers of one token (D) before projection; of `resampler`, of what the queries look at."""
        if self.name == "channel":
            return height * width
        cells = 1 if self.name == "pooled" else self.side**2
        return self.statistics * channels * cells

    def count(self, latent_frames: int, height: int, width: int, *, channels: int) -> int:
        """World tokens of one sample: the one truth about it.

        Args:
            latent_frames: those that are read, the observed one first.
        """
        return sum(self.by_slot(latent_frames, height, width, channels=channels))

    def by_slot(self, latent_frames: int, height: int, width: int, *, channels: int) -> list[int]:
        """World tokens of each slot, in order; a resampler's are all in one."""
        rows, columns = self.places(channels, height, width)
        slots = self.slots(latent_frames)
        if self.name == "resampler":
            return [self.queries] if slots else []
        return [rows * columns // slot.coarse**2 for slot in slots]

    def hidden_frames(
        self, latent_frames: int, height: int, width: int, *, channels: int, seen: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Frames that the last `seen` world tokens show nothing of, and those they show in part."""
        if self.name == "resampler":  # each of its tokens may hold anything
            return (), tuple(range(latent_frames)) if seen < self.queries else ()
        tokens = self.by_slot(latent_frames, height, width, channels=channels)
        first = sum(tokens) - seen
        hidden: list[int] = []
        partly: list[int] = []
        for slot, count, end in zip(self.slots(latent_frames), tokens, accumulate(tokens), strict=True):
            if end - count < first:
                (hidden if end <= first else partly).extend(range(slot.start, slot.stop))
        return tuple(hidden), tuple(partly)

    def describe(self) -> str:
        """The layout and what of it differs from spatial, in a few words."""
        area, wide = f"{self.patch}x{self.patch}", f"{self.patch * self.coarse}x{self.patch * self.coarse}"
        over = f" x {self.pool_steps} frames" if self.pool_steps > 1 else ""
        how = f", {self.pool}" if over or self.name in ("pooled", "hierarchical") else ""
        return {
            "spatial": f"spatial{over}{how}",
            "patch": f"patch {area}{over}{how}",
            "pooled": f"pooled {area}{over}{how}",
            "hierarchical": f"hierarchical {area}, between {wide}{over}{how}",
            "channel": f"channel{over}{how}",
            "resampler": f"resampler {self.queries} of {area}{over}{how}",
        }[self.name]


def usual_layouts(height: int, width: int) -> Iterator[TokenLayout]:
    """Layouts worth looking at for frames of `height` x `width` cells, most tokens first: those that tile them."""
    for layout in (
        TokenLayout(name="spatial"),
        TokenLayout(name="patch", patch=2),
        TokenLayout(name="hierarchical", patch=2, pool_steps=POOL_STEPS["hierarchical"]),
        TokenLayout(name="pooled", patch=2, pool_steps=POOL_STEPS["pooled"]),
        TokenLayout(name="patch", patch=4),
        TokenLayout(name="patch", patch=4, pool_steps=2),
        TokenLayout(name="pooled", patch=4, pool_steps=POOL_STEPS["pooled"]),
        TokenLayout(name="channel"),
        TokenLayout(name="resampler", patch=2, queries=64),
    ):
        try:
            layout.grid(height, width)
        except ConfigError:
            continue
        yield layout
