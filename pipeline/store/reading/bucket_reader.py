"""Reading rows of a store in a bucket: each by a request of its own, or from whole shards in the local cache.

ranges           one request a row, many in flight, straight into the batch's memory: `ask`, evaluation, full shuffle
the local cache  whole shards, fetched once a machine, then read as files: training in blocks, second epochs
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedShardError, TheWorldError
from ...files.places.place import Place
from ...latents.spec import latent_frames
from ..catalog import Catalog
from ..formats.base import ShardLayout
from ..keys.index import Shard
from ..records import unreadable
from .buffer import BatchBuffer
from .row_reader import GONE, RowReader
from .shard_cache import ShardCache
from .shard_fetch import CachedShards
from .shard_files import OpenShardFiles, ShardFile

ROWS_IN_FLIGHT = 128
"""At 30 ms a request, enough for 4,000 rows/s: 64 held a fast line at two thirds of its rate."""
_BATCHES_AHEAD = 6
"""Batches read ahead by requests: more than are in flight, so that none waits for the slowest of a batch."""
_SHARDS_AHEAD = 4
"""Shards fetched ahead at once; their ranges share the threads of one fetch."""


class BucketRowReader(RowReader):
    """As `RowReader`, of a store whose files have no paths."""

    def __init__(
        self,
        place: Place,
        layout: ShardLayout,
        recipe_id: str,
        catalog: Catalog,
        shards: CachedShards | None = None,
    ) -> None:
        """
        Args:
            place: of the store.
            shards: its local cache; None reads every row by a request.
        """
        super().__init__(place, layout, recipe_id, catalog)
        self.shards = shards
        if shards is None:
            self.batches_ahead = _BATCHES_AHEAD
        self._pools: dict[str, tuple[int, ThreadPoolExecutor]] = {}
        self._ahead: dict[tuple[int, int], Future[None]] = {}
        """The shards being fetched ahead, by process and number."""
        self._healed: set[int] = set()
        self._most_shards = 1
        self._files = OpenShardFiles(None, lambda number: self._layout.payload_name(number), self._open_copy)

    def forget(self, numbers: Iterable[int]) -> None:
        """As `RowReader.forget`."""
        numbers = list(numbers)
        super().forget(numbers)
        if self.shards is not None:
            self.shards.forget(numbers)

    def read(self, rows: NDArray[np.int64], buffer: BatchBuffer, *, whole_shards: bool = True) -> NDArray[Any]:
        """As `RowReader.read`.

        Args:
            whole_shards: with a local cache, fetch whole shards, for whoever reads most of their rows; False fetches
                single rows of those that are not there.
        """
        numbers, places = self._shards_and_places(rows, buffer)
        samples, opened = range(len(numbers)), self._files.current()
        if self.shards is not None and all(number in opened for number in numbers):  # hot: as from a disk
            self._read_files(samples, numbers, places, buffer)
            return buffer.latents[: len(rows)]
        if self.shards is None:
            apart = set(samples)
        elif whole_shards:
            apart = set[int]()
        else:
            held = {number: self._is_held(number) for number in set(numbers)}
            apart = {sample for sample in samples if not held[numbers[sample]]}
        together = [sample for sample in samples if sample not in apart]
        reads = self._start_ranges(sorted(apart), numbers, places, buffer)
        try:
            for number in {numbers[sample] for sample in together}:
                self.fetch_ahead(number)
            self._read_files(together, [numbers[n] for n in together], [places[n] for n in together], buffer)
        except BaseException:
            for each in reads:
                each.cancel()
            raise
        finally:  # none may write into memory that its owner uses again
            wait(reads)
        for each in reads:
            each.result()
        return buffer.latents[: len(rows)]

    def use_cache(self, cache: ShardCache, *, window: int | None) -> None:
        """Read whole shards by way of a local cache from now on.

        Args:
            window: shards that are read at a time; None is all of them, in any order.
        Raises:
            ConfigError: it may not hold so many.
        """
        table = self._catalog.index.shards.table()
        largest = max((size for _, _, size in table.tolist()), default=0)
        wanted = len(table) if window is None else min(window, len(table))
        cache.require_room(largest, wanted)
        self.shards = CachedShards(cache, self._store, url=str(self._store), recipe_id=self._recipe_id)
        self.batches_ahead = RowReader.batches_ahead  # whole shards are fetched ahead, by `ReadingOrder`
        self._most_shards = max(wanted, min(2 * wanted, cache.limit_bytes // max(1, largest) - 1))

    def in_order(self, batches: Iterable[Iterable[int]]) -> ReadingOrder | None:
        """Fetch ahead the shards that coming batches read.

        Args:
            batches: the numbers of the shards of each batch.
        Returns:
            To be advanced once for each batch that was read; None without a local cache.
        """
        return None if self.shards is None else ReadingOrder(self, batches, most_shards=self._most_shards)

    def fetch_ahead(self, number: int) -> None:
        """Begin to fetch a shard that will be read, once. What goes wrong is told by who reads it."""
        if self.shards is None or self._is_held(number):
            return
        fetch: Future[None] = Future()
        if self._ahead.setdefault((os.getpid(), number), fetch) is fetch:
            self._pool("ahead", _SHARDS_AHEAD).submit(self._fetch_ahead, number, fetch)

    def _fetch_ahead(self, number: int, fetch: Future[None]) -> None:
        try:
            if fetch.set_running_or_notify_cancel():
                self._fetch(number)
        finally:
            self._ahead.pop((os.getpid(), number), None)
            if not fetch.cancelled():
                fetch.set_result(None)

    def _open(self, number: int) -> ShardFile:
        if (payload := self._files.current().get(number)) is not None:  # hot where the disk is slow: `_prefetch`
            return payload
        # fetched before: while a file is opened, no other thread can open one
        ahead = self._ahead.get((os.getpid(), number))
        if ahead is None or ahead.cancel():  # nobody is at it
            self._fetch(number)
        else:
            ahead.result()
        return super()._open(number)

    def _fetch(self, number: int) -> None:
        shard = self._catalog.index.shards.get(number)
        with suppress(TheWorldError, OSError, ValueError):
            if shard is not None:
                os.close(self._open_copy(shard))

    def _is_held(self, number: int) -> bool:
        return number in self._files.current() or (self.shards is not None and self.shards.has(number))

    def _open_copy(self, shard: Shard) -> int:
        assert self.shards is not None
        return self.shards.open(shard.number, self._layout.payload_name(shard.number), shard.bytes)

    def _start_ranges(
        self, samples: Sequence[int], numbers: Sequence[int], places: Sequence[int], buffer: BatchBuffer
    ) -> list[Future[None]]:
        if not samples:
            return []
        pool = self._pool("rows", ROWS_IN_FLIGHT)
        return [pool.submit(self._read_range, numbers[n], places[n], buffer, n) for n in samples]

    def _read_range(self, number: int, place: int, buffer: BatchBuffer, sample: int) -> None:
        """Read and check a row by a request; every time, for what comes over a line was not there before."""
        shard = self._catalog.index.shards.get(number)
        if shard is None:  # a refresh in another thread
            raise self.damaged(number, GONE)
        name, start = self._layout.payload_name(number), place * self._layout.row_bytes
        for offset, size, memory in buffer.pieces:
            try:
                read = self._store.read_into(name, start + offset, memory[sample][0])
            except OSError as error:
                raise self._unreadable(number, error) from error
            if read != size:
                raise self.damaged(number, f"it ends within row {place}")
        self._require_committed(shard, place, buffer.rows[sample], latent_frames(buffer.rollout_steps))

    def _check(self, payload: ShardFile, place: int, buffer: BatchBuffer, sample: int, frames: int) -> None:
        """As of `RowReader`; a copy that is damaged where the payload is not is fetched again."""
        try:
            super()._check(payload, place, buffer, sample, frames)
        except DamagedShardError:
            number = payload.shard.number
            if self.shards is None or number in self._healed:
                raise
            self._healed.add(number)
            self._files.forget([number])
            self.shards.discard(number)
            payload = self._open(number)
            for offset, _, memory in buffer.pieces:
                self._read_slowly(payload, place, memory[sample][0], offset)
            super()._check(payload, place, buffer, sample, frames)

    def _unreadable(self, number: int, error: OSError) -> Exception:
        store_error = unreadable(self._location(number), number, error)
        return self.damaged(number, str(error)) if isinstance(store_error, DamagedShardError) else store_error

    def _pool(self, name: str, threads: int) -> ThreadPoolExecutor:
        pid, pool = self._pools.get(name, (0, None))
        if pool is None or pid != os.getpid():  # forked: the threads stayed behind
            pool = ThreadPoolExecutor(threads, name)
            self._pools[name] = os.getpid(), pool
        return pool


class ReadingOrder:
    """Fetches the shards that will be read next while others are read: some at a time, in the order of first use.

    Call `advance` once for each batch that is read. It looks as many batches ahead as take `most_shards` shards.
    """

    def __init__(self, reader: BucketRowReader, batches: Iterable[Iterable[int]], *, most_shards: int) -> None:
        """
        Args:
            batches: the numbers of the shards that each batch reads.
            most_shards: that are wanted on disk at a time, those of the current batch included.
        """
        self._reader, self._most_shards = reader, most_shards
        self._batches: Iterator[frozenset[int]] = (frozenset(batch) for batch in batches)
        self._ahead: deque[frozenset[int]] = deque()
        self._uses: dict[int, int] = {}
        self._next = next(self._batches, None)
        self._look_ahead()

    def advance(self) -> None:
        """A batch was read: what no later batch in sight needs makes room for others."""
        if self._ahead:
            for number in self._ahead.popleft():
                self._uses[number] -= 1
                if not self._uses[number]:
                    del self._uses[number]
        self._look_ahead()

    def _look_ahead(self) -> None:
        while self._next is not None:
            new = self._next - self._uses.keys()
            if self._uses and len(self._uses) + len(new) > self._most_shards:
                return
            for number in self._next:
                self._uses[number] = self._uses.get(number, 0) + 1
            for number in sorted(new):
                self._reader.fetch_ahead(number)
            self._ahead.append(self._next)
            self._next = next(self._batches, None)
