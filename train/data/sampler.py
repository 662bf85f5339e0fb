"""Shuffled batches of a store's samples, with a position to save and restore, for your own training loop.

Our own training does not use it: training/update_order.py orders rows of questions, and weighs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError

SHUFFLE_WINDOW = 8
"""Shards of a block, where nothing else is said."""


class Batch(NamedTuple):
    """One batch of one rank."""

    epoch: int
    number: int
    """Within the epoch."""
    indices: NDArray[np.int64]


class BatchSampler:
    """The batches of one rank, epoch after epoch: a function of the arguments alone, on any machine.

    Each epoch is one permutation. Batch n of all ranks together is its n-th piece of world_size x batch_size samples,
    dealt out in turn. An iterator: it yields the batch at its position and moves on, so `state_dict` between two
    batches is where to go on from.

    Args:
        length: samples there are.
        batch_size: of one rank.
        drop_last: True leaves out the end of the permutation that fills no batch on every rank. False repeats its
            first samples, fewer than world_size of them, until the ranks have equally many; the last batch of an epoch
            may then be smaller, on all ranks alike.
        epochs: how many; None never ends.
    Raises:
        ConfigError: there are no such ranks, or no batch is filled.

    Attributes:
        epoch_batches: batches in an epoch, the same on every rank.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        epochs: int | None = None,
    ) -> None:
        if min(length, batch_size, world_size) < 1 or seed < 0 or not 0 <= rank < world_size:
            raise ConfigError(
                "an order needs samples, a batch size, a seed from 0 and a rank below the world size, got "
                f"length {length}, batch_size {batch_size}, seed {seed}, rank {rank}, world_size {world_size}"
            )
        self._fixed = {"length": length, "batch_size": batch_size, "seed": seed, "world_size": world_size}
        self._fixed["drop_last"] = int(drop_last)
        self._rank, self._epochs = rank, epochs
        self._samples = length // world_size if drop_last else -(-length // world_size)
        """Of an epoch, on this rank."""
        self.epoch_batches = self._samples // batch_size if drop_last else -(-self._samples // batch_size)
        if not self.epoch_batches:
            raise ConfigError(
                f"{length} samples do not fill one batch of {batch_size} on each of {world_size} ranks. "
                "Pass a smaller batch_size, or drop_last=False"
            )
        self._position = (0, 0)
        self._dealt: tuple[int, NDArray[np.int64]] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = next(self.ahead())
        self.move_past(batch)
        return batch

    def ahead(self) -> Iterator[Batch]:
        """The batches from the position on, without moving it."""
        length, size, world_size = (self._fixed[name] for name in ("length", "batch_size", "world_size"))
        epoch, first_batch = self._position
        while self._epochs is None or epoch < self._epochs:
            if self._dealt is None or self._dealt[0] != epoch:
                places = np.arange(self._lane(), self._samples * world_size, world_size) % length
                self._dealt = epoch, self._order_of(epoch)[places]
            indices = self._dealt[1]
            for number in range(first_batch, self.epoch_batches):
                yield Batch(epoch, number, indices[number * size : (number + 1) * size])
            epoch, first_batch = epoch + 1, 0

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        """All samples of an epoch, in the order in which they are dealt out."""
        return permutation(self._fixed["length"], self._fixed["seed"], epoch)

    def _lane(self) -> int:
        """This rank's place in each turn of the dealing."""
        return self._rank

    def move_past(self, batch: Batch) -> None:
        """Note that a batch was handed out: the position is right after it."""
        is_last = batch.number + 1 == self.epoch_batches
        self._position = (batch.epoch + 1, 0) if is_last else (batch.epoch, batch.number + 1)

    def state_dict(self) -> dict[str, int]:
        """The position, for JSON: the same on every rank. A batch handed out counts as used."""
        epoch, number = self._position
        return {"epoch": epoch, "batch": number, **self._fixed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position; the next batch is the first one not handed out then.

        Raises:
            ConfigError: it is of another order, or no position at all; nothing has changed then.
        """
        for name, value in self._fixed.items():
            if state.get(name) != value:
                raise ConfigError(
                    f"the saved position is of an order with {name} {state.get(name)}, this one has {name} {value}: "
                    f"samples would come twice or not at all. Resume with {name} {state.get(name)}, or start anew"
                )
        epoch, number = state.get("epoch"), state.get("batch")
        if not (isinstance(epoch, int) and isinstance(number, int) and epoch >= 0 <= number < self.epoch_batches):
            raise ConfigError(
                f"the saved position, epoch {epoch} and batch {number}, is none of an order with {self.epoch_batches} "
                "batches an epoch. Was the file edited? Resume from another checkpoint"
            )
        self._position = (epoch, number)


class BlockSampler(BatchSampler):
    """As `BatchSampler`, but near in time is near on disk: shards are permuted and cut into blocks, and samples are
    shuffled inside a block. For a store in a bucket, of which only some shards lie on the local disk at a time.

    The sample of index n is the n-th of all rows, shard by shard: a dataset of all samples of a store has this order.

    Args:
        shard_rows: samples of each shard, in order.
        window: shards of a block.
        groups: groups of ranks, such as the machines of a training. Each group of neighbouring ranks reads its own part
            of an epoch's blocks, so a machine fetches one part of the store an epoch.
        batch_size, seed, rank, world_size, drop_last, epochs: as of `BatchSampler`.
    Raises:
        ConfigError: as `BatchSampler`, or the ranks cannot be divided into so many groups.
    """

    def __init__(
        self,
        shard_rows: Sequence[int],
        *,
        batch_size: int,
        window: int = SHUFFLE_WINDOW,
        groups: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        epochs: int | None = None,
    ) -> None:
        self._shard_rows = np.asarray(shard_rows, np.int64)
        super().__init__(
            int(self._shard_rows.sum()),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            epochs=epochs,
        )
        if window < 1 or groups < 1 or world_size % groups:
            raise ConfigError(
                f"blocks need a window from 1 and groups that divide the ranks, got window {window} and "
                f"{groups} groups of {world_size} ranks"
            )
        shards = int(xxhash.xxh3_64_intdigest(self._shard_rows.astype("<i8").tobytes()) >> 11)  # JSON keeps 53 bits
        self._fixed |= {"window": window, "groups": groups, "shards": shards}

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        window, groups = self._fixed["window"], self._fixed["groups"]
        return block_permutation(self._shard_rows, self._fixed["seed"], epoch, window=window, groups=groups)

    def _lane(self) -> int:
        group, member = divmod(self._rank, self._fixed["world_size"] // self._fixed["groups"])
        return member * self._fixed["groups"] + group


def block_permutation(
    shard_rows: Sequence[int] | NDArray[np.int64], seed: int, epoch: int, *, window: int, groups: int = 1
) -> NDArray[np.int64]:
    """All rows of some shards, shuffled inside blocks of `window` shards that come in a random order: a function of
    the arguments alone.

    Args:
        shard_rows: rows of each shard; those of the first are 0, 1, …
        groups: readers that each take every `groups`-th row: one of them sees one part of the blocks, and at its ends a
            block that it shares.
    """
    rows = np.asarray(shard_rows, np.int64)
    order_of_shards = permutation(len(rows), seed, epoch, 1) if len(rows) else rows
    block_of_shard = np.empty(len(rows), np.uint64)
    block_of_shard[order_of_shards] = np.arange(len(rows), dtype=np.uint64) // np.uint64(window)
    bits = np.uint64(int(block_of_shard.max(initial=0)).bit_length())
    words = np.random.PCG64([seed, epoch, 2]).random_raw(int(rows.sum()))
    if bits:
        words = words >> bits | np.repeat(block_of_shard, rows) << (np.uint64(64) - bits)
    order = np.argsort(words, kind="stable")
    # Parts differ by a row at most, longer ones first: each takes every `groups`-th row up to the end.
    sizes = (len(order) + groups - 1 - np.arange(groups)) // groups
    turns, part = np.divmod(np.arange(len(order)), groups)
    return order[(np.cumsum(sizes) - sizes)[part] + turns]


def permutation(length: int, seed: int, epoch: int, *stream: int) -> NDArray[np.int64]:
    """0 … length - 1, shuffled: sorted by raw PCG64 words, whose stream numpy keeps for ever, unlike its shuffles."""
    bits = length.bit_length()
    words = np.random.PCG64([seed, epoch, *stream]).random_raw(length) << np.uint64(bits) | np.arange(
        length, dtype=np.uint64
    )
    words.sort()
    return (words & np.uint64(2**bits - 1)).astype(np.int64)
