"""The rows of each update, and the share of each process: `UpdateOrder`, a function of (seed, epoch) alone.

All processes take part in an update. Its rows are distributed among them in turn and cut into pieces of `micro_batch`,
each weighted by its share of the supervised tokens. So the step is the same on one process, on eight, or in pieces of
one row, and a training may be resumed on another number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ..data.batches import Example
from ..data.sampler import block_permutation

_WINDOW = 32
"""Updates whose rows are sorted by length together: enough to find similar rows, few enough to stay shuffled."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward and backward pass of one process."""

    rows: tuple[int, ...]
    """Never empty: a process without rows in an update takes part with a row of weight 0."""
    weight: float
    """The factor on the mean loss of these rows, where gradients are averaged over processes and summed over pieces; 1
    with one process and one piece."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """How rows are shuffled inside blocks of shards, for latents of which only some lie on the local disk at a time."""

    shard_of_row: NDArray[np.int64]
    window: int
    """Shards of a block."""
    groups: int = 1
    """Groups of neighbouring processes, such as machines: each reads its own part of an epoch's blocks."""

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch; a group takes every `groups`-th of them."""
        counts = np.unique(self.shard_of_row, return_counts=True)[1]
        order = block_permutation(counts, seed, epoch, window=self.window, groups=self.groups)
        return np.argsort(self.shard_of_row, kind="stable")[order]

    def lane(self, rank: int, world_size: int) -> int:
        """A process's place in each turn in which rows are dealt out; its rank, where the groups do not divide them."""
        if world_size % self.groups:
            return rank
        group, member = divmod(rank, world_size // self.groups)
        return member * self.groups + group


class UpdateOrder:
    """The pieces of one process, update by update.

    Args:
        rows: the rows of an epoch.
        batch_size: rows of an update, over all processes; the last update of an epoch takes the rest.
        micro_batch: rows of a piece; None is all rows of a process in an update.
        group_by_length: put rows of similar length into the same update, to pad little.
        shuffle: False keeps the order of the rows.
        blocks: shuffle inside these blocks, which come in a random order; None shuffles all rows together.
    Raises:
        ConfigError: there are no rows.

    Attributes:
        updates: updates in an epoch.
        pass_rows: the most rows of a piece.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Example]],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        group_by_length: bool = False,
        shuffle: bool = True,
        blocks: Blocks | None = None,
    ) -> None:
        if not rows:
            raise ConfigError("there is nothing to learn from: no row of questions")
        self.updates = math.ceil(len(rows) / batch_size)
        self._size, self._seed, self._world_size = batch_size, seed, world_size
        self.pass_rows = min(micro_batch or batch_size, math.ceil(min(batch_size, len(rows)) / world_size))
        self._shuffle, self._group, self._blocks = shuffle, group_by_length, blocks
        self._lane = rank if blocks is None else blocks.lane(rank, world_size)
        self._answer_tokens = [sum(len(example.answer) for example in row) for row in rows]
        self._lengths = np.array([1 + sum(len(e.prompt) - 1 + len(e.answer) for e in row) for row in rows])
        self._count = len(rows)
        self.plan = lru_cache(maxsize=2)(self._plan)  # what is read ahead may be of the next epoch

    def rows_of(self, update: int) -> list[int]:
        """All rows of an update, counted from the start of the training, over all processes."""
        return self.plan(update // self.updates)[update % self.updates]

    def piece(self, update: int, number: int) -> MicroBatch:
        """The n-th piece of an update on this process."""
        rows = self.rows_of(update)
        own_rows = rows[self._lane :: self._world_size][number * self.pass_rows : (number + 1) * self.pass_rows]
        if not own_rows:
            return MicroBatch((rows[0],), 0.0)
        if len(own_rows) == len(rows):
            return MicroBatch(tuple(own_rows), float(self._world_size))
        token_counts = [sum(self._answer_tokens[row] for row in rows_counted) for rows_counted in (own_rows, rows)]
        return MicroBatch(tuple(own_rows), self._world_size * token_counts[0] / token_counts[1])

    def pieces_of(self, update: int) -> int:
        """How many, on every process alike; the last update of an epoch may have fewer."""
        return math.ceil(math.ceil(len(self.rows_of(update)) / self._world_size) / self.pass_rows)

    def epochs_until(self, update: int) -> float:
        """Passes over the rows in so many updates."""
        epoch, rest = divmod(update, self.updates)
        return epoch + rest / self.updates

    def answer_tokens(self, update: int, number: int) -> int:
        """Answer tokens of a piece; none of a row that has no weight."""
        piece = self.piece(update, number)
        return sum(self._answer_tokens[row] for row in piece.rows) if piece.weight else 0

    def _plan(self, epoch: int) -> list[list[int]]:
        """The rows of an epoch's updates."""
        order = np.arange(self._count)
        if self._shuffle and self._blocks is not None:
            order = self._blocks.order(self._seed, epoch)
        elif self._shuffle:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        if not self._group:
            return self._cut(order)
        windows = []
        for window in range(0, self._count, _WINDOW * self._size):
            window_rows = order[window : window + _WINDOW * self._size]
            windows.append(self._cut(window_rows[np.argsort(self._lengths[window_rows], kind="stable")]))
        # the only update that is smaller stays the last
        last_update = [windows[-1].pop()] if self._count % self._size else []
        if self._blocks is None:
            windows = [[update for updates in windows for update in updates]]
        draw = np.random.default_rng([self._seed, epoch, 1])
        return [updates[number] for updates in windows for number in draw.permutation(len(updates))] + last_update

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        return [order[start : start + self._size].tolist() for start in range(0, len(order), self._size)]
