"""Read latents of a store into memory before the training needs them.

    dataset = LatentDataset(open_store(path), rollout_steps=4)
    order = BatchOrder(len(dataset), batch_size=32, seed=0, rank=rank, world_size=world_size)
    with Prefetcher(dataset, order) as batches:
        for indices, latents in batches: ...        # order.state_dict() at any time is the exact place to go on from

Without workers on purpose: there is nothing to decode, a read releases the GIL, and a worker process would cost a
start, a copy through shared memory and new memory for every batch.

Axes, everywhere:  B sample   C channel   K rollout steps   H, W latent row, column
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...pipeline.errors import ConfigError, DamagedShardError
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.store.folder import LatentStore, open_store
from ...pipeline.store.keys.packed_keys import AnyKeys, is_packed, unpack_keys
from ...pipeline.store.reading.bucket_reader import BucketRowReader, ReadingOrder
from ...pipeline.store.reading.buffer import BatchBuffer
from .sampler import Batch, BatchSampler

Indices = Sequence[int] | NDArray[np.int64]


class _Samples(list[Tensor]):
    """Of one batch, and the tensor they are views of."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__(latents.unbind())
        self.latents = latents


class LatentDataset(Dataset[Tensor]):
    """Samples of a store as tensors (C, 1 + K, H, W) of the store's dtype, strided views of what was read.

    With fewer `rollout_steps` than the store has, these are the first frames of the longer rollouts, not the rollouts
    that a recipe of fewer steps would have made: a world model denoises all frames of a rollout together.

    Give it to a DataLoader with `collate_fn=LatentDataset.collate`. It may be forked or pickled. It holds the
    samples that the store had when it was made, not those added later.

    Args:
        store: opened, or where it is, for `open_store`.
        keys: which samples, in this order, also repeatedly; None takes all there are now, in the store's order. Of
            millions, give an array as `LatentStore.packed_keys` has them.
        rollout_steps: K; None takes all.
    Raises:
        MissingLatentError: a key is not in the store.
        ConfigError: the rollouts are shorter than `rollout_steps`.
        StoreError: as `open_store`.
    """

    read_ahead = True
    """Whether a batch is worth reading before it is wanted."""

    def __init__(
        self, store: LatentStore | str | Path, *, keys: AnyKeys | None = None, rollout_steps: int | None = None
    ) -> None:
        store = open_store(store) if isinstance(store, str | Path) else store
        self.store: LatentStore = store
        self._given = None if keys is None else keys if is_packed(keys) else tuple(keys)
        self.rollout_steps = store.buffer(0, rollout_steps=rollout_steps).rollout_steps
        self._index = store.index
        self._rows = store.rows if self._given is None else store.rows_of(self._given)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process looks the keys up anew: shards may have moved since."""
        return partial(type(self), keys=self._any_keys, rollout_steps=self.rollout_steps), (self.store,)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of each sample, made when it is first asked for."""
        keys = self._any_keys
        return unpack_keys(keys) if is_packed(keys) else tuple(map(str, keys))

    def index_in_update(self, index: int, update: int, updates: int) -> int:
        """The sample shown for one in an update of a training of so many: the same, but where an arm varies it."""
        del update, updates
        return index

    @property
    def _any_keys(self) -> AnyKeys:
        if self._given is None:
            self._given = self._index.packed_keys()  # of then, whatever was added since
        return self._given

    def __getitem__(self, index: int) -> Tensor:
        return self.read([index])[0]

    def __getitems__(self, indices: Indices) -> list[Tensor]:
        """Several at once, read into one memory; what a DataLoader calls where it can."""
        return _Samples(self.read(indices))

    @staticmethod
    def collate(samples: Sequence[Tensor]) -> Tensor:
        """(B, C, 1 + K, H, W) of a list from `__getitems__`, without a copy; of any other list, stacked."""
        return samples.latents if isinstance(samples, _Samples) else torch.stack(list(samples))

    def read(self, indices: Indices, buffer: BatchBuffer | None = None) -> Tensor:
        """The latents at some indices.

        Args:
            buffer: memory for them, from `store.buffer`; None takes new one.
        Returns:
            (B, C, 1 + K, H, W), a view of the memory.
        Raises:
            DamagedShardError: bytes on disk are not the bytes committed.
        """
        while True:
            try:
                return self._read(indices, buffer)
            except DamagedShardError:
                index = self.store.index
                self.store.refresh()
                if self.store.index is index:
                    raise
                # else `cache compact` has moved the rows since this store was opened

    def _read(self, indices: Indices, buffer: BatchBuffer | None) -> Tensor:
        if self._index is not self.store.index:  # refreshed since: a shard's number may stand for another one now
            keys, index = self._any_keys, self.store.index
            self._rows = self.store.rows_of(keys)
            self._index = index
        rows = self._rows[np.asarray(indices, np.int64)]
        return as_tensor(self.store.read_rows(rows, self.buffer(len(rows)) if buffer is None else buffer))

    def read_in_order(self, batches: Iterable[Iterable[int]]) -> ReadingOrder | None:
        """Fetch ahead the shards that coming batches read, where they come by way of a local cache.

        Args:
            batches: the numbers of the shards of each batch.
        Returns:
            To be advanced once for each batch that was read; None where nothing is to be fetched.
        """
        if not self.read_ahead or not isinstance(reader := self.store.reader, BucketRowReader):
            return None
        return reader.in_order(batches)

    def shards_of(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """The number of the shard that holds each of some keys of this dataset."""
        return self.store.rows_of(tuple(keys)) // self.store.shard_size

    def buffer(self, samples: int, memory: NDArray[np.uint8] | None = None) -> BatchBuffer:
        """Memory for so many samples of this dataset, for `read`; as `LatentStore.buffer`."""
        return self.store.buffer(samples, rollout_steps=self.rollout_steps, memory=memory)


@dataclass(slots=True)
class LoaderStats:
    """What a `Prefetcher` has done."""

    batches: int = 0
    samples: int = 0
    waited_s: float = 0.0
    """Seconds in which the consumer stood still, asking for a batch."""


class _Slot:
    """One of the memories that batches are read into in turn, and the batch it is for."""

    copied: Any = None
    """A CUDA event after which the memory may be used again."""

    def __init__(self, dataset: LatentDataset, samples: int, *, pinned: bool) -> None:
        size = dataset.buffer(samples).rows.nbytes
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.buffer = dataset.buffer(samples, self.memory.numpy())

    def start(self, pool: ThreadPoolExecutor, dataset: LatentDataset, item: Batch | Indices) -> None:
        self.item, self.indices = item, item.indices if isinstance(item, Batch) else item
        self.latents: Future[Tensor] = pool.submit(self._fill, dataset, self.indices)

    def copy_to(self, device: torch.device) -> Tensor:
        """The latents as the same view of a copy of all bytes. To copy a strided view, torch would first gather it in
        memory that is not pinned, and wait."""
        latents = self.latents.result()
        device_memory = self.memory[: len(latents) * self.buffer.rows.shape[1]].to(device, non_blocking=True, copy=True)
        if device.type == "cuda":
            self.copied = torch.cuda.current_stream(device).record_event()
        return device_memory.view(latents.dtype).as_strided(latents.shape, latents.stride())

    def _fill(self, dataset: LatentDataset, indices: Indices) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        return dataset.read(indices, self.buffer)


class Prefetcher:
    """Batches of a dataset, read ahead by threads into memory that is used again: an iterator of (indices, latents).

    The batches and their order do not depend on `depth` and `threads`. The order is drawn `depth` batches ahead; a
    `BatchSampler` moves on only as batches are handed out. An error while reading is raised at the batch it belongs to,
    an error of the order when it is drawn; both end the iteration. The threads end with the `with` block, at `close`,
    or when nobody holds the object any more. A forked process has a copy that continues on its own.

    Args:
        order: lists of indices into the dataset, or a `BatchSampler`, from its position on.
        depth: batches read ahead.
        threads: that read.
        keep: a batch stays valid until `keep` more are asked for: by default, until the next but one is. Its memory
            is then read into again.
        device: copy each batch there, into memory of its own that stays valid; to a CUDA device from pinned memory,
            without waiting. None leaves it in the memory it was read into.

    """

    def __init__(
        self,
        dataset: LatentDataset,
        order: BatchSampler | Iterable[Indices],
        *,
        depth: int = 2,
        threads: int = 2,
        keep: int = 2,
        device: torch.device | None = None,
    ) -> None:
        if min(depth, threads, keep) < 1:
            raise ConfigError(f"depth, threads and keep count from 1, got {depth}, {threads} and {keep}")
        self.stats = LoaderStats()
        self._dataset, self._device = dataset, device
        self._depth, self._threads, self._keep = depth, threads, keep
        self._order = order if isinstance(order, BatchSampler) else None
        self._upcoming: Iterator[Batch | Indices] = order.ahead() if isinstance(order, BatchSampler) else iter(order)
        self._free: list[_Slot | None] = [None] * (depth + keep)
        self._ahead: deque[_Slot] = deque()
        self._handed_out: deque[_Slot] = deque()
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, "latents")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Indices, Tensor]:
        if self._pool is None:
            raise StopIteration
        started = time.perf_counter()
        try:
            return self._next(self._pool)
        except BaseException:  # also at the end, and when interrupted
            self.close()
            raise
        finally:
            self.stats.waited_s += time.perf_counter() - started

    def close(self) -> None:
        """End the threads. Batches handed out stay valid."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _next(self, pool: ThreadPoolExecutor) -> tuple[Indices, Tensor]:
        if self._pid != os.getpid():  # forked: the threads stayed behind
            self._pid = os.getpid()
            self._pool = pool = ThreadPoolExecutor(self._threads, "latents")
            for slot in self._ahead:
                slot.start(pool, self._dataset, slot.item)
        if len(self._handed_out) == self._keep:
            slot = self._handed_out.popleft()
            del slot.latents  # now: torch frees it without the GIL, which a busy reader would not give back soon
            self._free.append(slot)
        while len(self._ahead) <= self._depth and (item := next(self._upcoming, None)) is not None:
            samples = len(item.indices if isinstance(item, Batch) else item)
            slot = self._free.pop()
            if slot is None or len(slot.buffer) < samples:
                pinned = self._device is not None and self._device.type == "cuda"
                slot = _Slot(self._dataset, samples, pinned=pinned)
            slot.start(pool, self._dataset, item)
            self._ahead.append(slot)
        if not self._ahead:
            raise StopIteration
        slot = self._ahead[0]
        latents = slot.latents.result() if self._device is None else slot.copy_to(self._device)
        self._handed_out.append(self._ahead.popleft())
        if isinstance(slot.item, Batch) and self._order is not None:
            self._order.move_past(slot.item)
        self.stats.batches += 1
        self.stats.samples += len(slot.indices)
        return slot.indices, latents
