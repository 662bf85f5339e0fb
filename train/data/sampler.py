"""Shuffled batches of a store's samples, with a position to save and restore, for your own training loop.

Our own training does not use it: training/update_order.py orders rows of questions, and weighs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError


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
                places = np.arange(self._rank, self._samples * world_size, world_size) % length
                self._dealt = epoch, permutation(length, self._fixed["seed"], epoch)[places]
            indices = self._dealt[1]
            for number in range(first_batch, self.epoch_batches):
                yield Batch(epoch, number, indices[number * size : (number + 1) * size])
            epoch, first_batch = epoch + 1, 0

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


def permutation(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """0 … length - 1, shuffled: sorted by raw PCG64 words, whose stream numpy keeps for ever, unlike its shuffles."""
    bits = length.bit_length()
    words = np.random.PCG64([seed, epoch]).random_raw(length) << np.uint64(bits) | np.arange(length, dtype=np.uint64)
    words.sort()
    return (words & np.uint64(2**bits - 1)).astype(np.int64)
