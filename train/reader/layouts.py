"""Token layouts: how many world tokens a rollout of T x H x W latent cells becomes, and what each covers. No torch.

    spatial        each cell is a token
    patch          `patch` x `patch` cells are one token with as many times the channels: no number is lost
    pooled         `patch` x `patch` cells, over `pool_steps` future frames, are summarised as one token
    hierarchical   first and last frame as patches; between, a token is `coarse` x `coarse` of them, `pool_steps` frames
    channel        each channel of a frame is a token of H x W cells
    resampler      `queries` learned tokens in all, which look at every patch of every frame

Every layout may pool over time (`pool_steps`), but never the observed frame. It is observed, the others are predicted:
a mean of both would be neither, and it would change with the number of steps that are read. So a reader of no steps
sees the same first tokens as a reader of all steps. (A resampler mixes all frames.)

Axes:  C latent channel   T latent frame   H, W latent row, column   N world token   D numbers of a token
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from ...pipeline.errors import ConfigError
from ...pipeline.latents.spec import TOKEN_CELLS

LayoutName = Literal["spatial", "patch", "pooled", "hierarchical", "channel", "resampler"]
PoolName = Literal["mean", "max", "minmax", "stride"]

LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
POOLS: tuple[PoolName, ...] = get_args(PoolName)

PATCH = TOKEN_CELLS
"""The default of `theworld train`: cells per side of a token."""
POOL_STEPS = {"pooled": 2, "hierarchical": 4}
"""The default number of future frames that share a token; 1 in the other layouts."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A run of latent frames that share their tokens."""

    start: int
    stop: int
    """One past the last."""
    coarse: int = 1
    """How many of the layout's finest rows, and columns, share a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLayout:
    """How latent cells become tokens. The head of this file says which fields a layout uses."""

    name: LayoutName = "patch"
    patch: int = 2
    """Cells per side of a token's area; in `resampler`, of the patches that the queries attend to."""
    pool: PoolName = "minmax"
    """How cells that share a token are summarised: mean; max; minmax (least and greatest, twice the channels); stride
    (the middle cell, the last frame)."""
    pool_steps: int = 1
    """Future frames that share their tokens."""
    coarse: int = 2
    """hierarchical: patches per side that share a token, in the frames between the first and the last."""
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
        """Numbers per channel after pooling: 2 for minmax, else 1."""
        pools = self.pool_steps > 1 or self.name in ("pooled", "hierarchical")
        return 2 if pools and self.pool == "minmax" else 1

    def slots(self, latent_frames: int) -> tuple[Slot, ...]:
        """The frames that share tokens, in order; the first frame shares with none."""
        if not latent_frames:
            return ()
        end = latent_frames - 1 if self.name == "hierarchical" else latent_frames
        coarse = self.coarse if self.name == "hierarchical" else 1
        between = [Slot(start, min(start + self.pool_steps, end), coarse) for start in range(1, end, self.pool_steps)]
        last_slot = [Slot(end, latent_frames)] if 1 <= end < latent_frames else []
        return (Slot(0, 1), *between, *last_slot)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a frame of `height` x `width` latent cells, at its finest.

        Raises:
            ConfigError: patches do not tile the frame, or coarse patches do not tile the patches.
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
                f"{rows}x{columns} patches do not divide into coarse ones of {self.coarse}x{self.coarse}. "
                "Choose a --coarse that divides both, or another --patch"
            )
        return rows, columns

    def places(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of token positions in one frame; in `channel`, one row for each channel."""
        if self.name == "channel":
            return self.statistics * channels, 1
        return self.grid(height, width)

    def numbers(self, channels: int, height: int, width: int) -> int:
        """Numbers of one token (D) before projection; in `resampler`, of one patch."""
        if self.name == "channel":
            return height * width
        cells = 1 if self.name == "pooled" else self.side**2
        return self.statistics * channels * cells

    def count(self, latent_frames: int, height: int, width: int, *, channels: int) -> int:
        """World tokens of one sample.

        Args:
            latent_frames: how many frames are read, the observed one included.
        """
        return sum(self.by_slot(latent_frames, height, width, channels=channels))

    def by_slot(self, latent_frames: int, height: int, width: int, *, channels: int) -> list[int]:
        """World tokens of each slot, in order; of a resampler, one number for all slots."""
        rows, columns = self.places(channels, height, width)
        slots = self.slots(latent_frames)
        if self.name == "resampler":
            return [self.queries] if slots else []
        return [rows * columns // slot.coarse**2 for slot in slots]

    def hidden_frames(
        self, latent_frames: int, height: int, width: int, *, channels: int, seen: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Frames of which the last `seen` world tokens hold nothing, and frames of which they hold a part."""
        if self.name == "resampler":  # each of its tokens may hold something of every frame
            return (), tuple(range(latent_frames)) if seen < self.queries else ()
        tokens = self.by_slot(latent_frames, height, width, channels=channels)
        first_seen = sum(tokens) - seen
        hidden: list[int] = []
        partly: list[int] = []
        for slot, count, end in zip(self.slots(latent_frames), tokens, accumulate(tokens), strict=True):
            if end - count < first_seen:
                (hidden if end <= first_seen else partly).extend(range(slot.start, slot.stop))
        return tuple(hidden), tuple(partly)

    def describe(self) -> str:
        """The layout in a few words, for messages."""
        area, wide = f"{self.patch}x{self.patch}", f"{self.patch * self.coarse}x{self.patch * self.coarse}"
        over = f" x {self.pool_steps} frames" if self.pool_steps > 1 else ""
        pool_note = f", {self.pool}" if over or self.name in ("pooled", "hierarchical") else ""
        return {
            "spatial": f"spatial{over}{pool_note}",
            "patch": f"patch {area}{over}{pool_note}",
            "pooled": f"pooled {area}{over}{pool_note}",
            "hierarchical": f"hierarchical {area}, between {wide}{over}{pool_note}",
            "channel": f"channel{over}{pool_note}",
            "resampler": f"resampler {self.queries} of {area}{over}{pool_note}",
        }[self.name]


def usual_layouts(height: int, width: int) -> Iterator[TokenLayout]:
    """Layouts to suggest for frames of `height` x `width` cells, most tokens first; only those that tile the frame."""
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
