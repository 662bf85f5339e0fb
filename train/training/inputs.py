"""The inputs of a training: its settings, its rows and their latents, its progress and its signals."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...pipeline.progress import Progress
from ..config import TrainConfig
from ..data.batches import Example, texts, with_latents
from ..data.loader import LatentDataset
from ..data.vision import VisionInputs
from ..runs.partial import PartialRun
from .distributed import Ranks
from .memory_plan import MemoryPlan
from .signals import Stop
from .update_order import Blocks, UpdateOrder

Rows = list[tuple[Example, ...]]


@dataclass(frozen=True, slots=True)
class TrainData:
    """Rows of a split, and their latents."""

    rows: Rows
    images: LatentDataset | None
    """None for an arm without latents."""
    pictures: VisionInputs | None = None
    """The images, for a language model that reads them itself."""

    def shard_of_row(self) -> NDArray[np.int64] | None:
        """The shard that the latents of each row are in; None for an arm without latents."""
        return None if self.images is None else self.images.shards_of(row[0].key for row in self.rows)

    def batches(
        self,
        order: UpdateOrder,
        updates: Iterable[int],
        *,
        pad_id: int,
        device: torch.device,
        total: int | None = None,
    ) -> Generator[dict[str, Tensor]]:
        """The pieces of some updates on this process, in order, with their latents, which are read ahead.

        A batch is valid until the next one is asked for. Closing the generator ends the threads that read.

        Args:
            total: updates of the whole training; None is no training, and shows each image as in an evaluation.
        """
        batches = (
            texts(
                [self.rows[row] for row in order.piece(update, number).rows],
                pad_id=pad_id,
                pictures=self.pictures,
                update=None if total is None else (update, total),
            )
            for update in updates
            for number in range(order.pieces_of(update))
        )
        coming = None if self.images is None else self.images.read_in_order(self._shards_read(order, updates))
        for batch in with_latents(batches, self.images, keep=1, device=device if device.type == "cuda" else None):
            yield batch
            if coming is not None:
                coming.advance()

    def _shards_read(self, order: UpdateOrder, updates: Iterable[int]) -> Iterator[list[int]]:
        """The shards of each piece of some updates on this process."""
        shards = self.shard_of_row()
        assert shards is not None
        for update in updates:
            for number in range(order.pieces_of(update)):
                yield shards[list(order.piece(update, number).rows)].tolist()


@dataclass(frozen=True, slots=True)
class Training:
    """The settings, data and surroundings of a training."""

    config: TrainConfig
    train_data: TrainData
    partial_run: PartialRun
    """The folder of its checkpoints."""
    pad_id: int
    validation: TrainData | None = None
    plan: MemoryPlan | None = None
    """How it was planned to fit into memory; None takes the settings as they are."""
    ranks: Ranks = field(default_factory=Ranks)
    progress: Progress = field(default_factory=Progress.silent)
    stop: Stop = field(default_factory=Stop)

    def order(self, pass_rows: int | None) -> UpdateOrder:
        """Which rows this process learns from, update by update.

        Args:
            pass_rows: rows of a pass; None is all of a process in an update.
        """
        config, data = self.config, self.train_data
        shards = data.shard_of_row() if config.shuffle == "blocks" else None
        return UpdateOrder(
            data.rows,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            micro_batch=pass_rows,
            group_by_length=config.group_by_length,
            blocks=None if shards is None else Blocks(shards, config.shuffle_window, config.shuffle_groups),
        )
