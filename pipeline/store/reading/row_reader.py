"""Reading rows: each in one read straight into a batch's memory, and checked when it is first touched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedShardError, LatentShapeError
from ...files.open_files import is_lost
from ...files.places.folder import Folder
from ...files.places.place import Place
from ...latents.spec import latent_frames
from ...messages import command
from ..catalog import Catalog
from ..formats.base import ShardLayout
from ..keys.index import Shard
from ..records import read_record, record_path, unreadable
from .buffer import BatchBuffer
from .shard_files import OpenShardFiles, ShardFile

_PATIENCE_S, _MEMORY_BYTES_PER_S = 50e-6, 2e9
"""A read that takes longer than this had to wait for the disk."""
GONE = "its record was moved away while it was read"


class RowReader:
    """The open payloads of one store. Knows no store: a circle would keep the files open until it is collected."""

    def __init__(self, store: Place, layout: ShardLayout, recipe_id: str, catalog: Catalog) -> None:
        self._store, self._layout, self._recipe_id, self._catalog = store, layout, recipe_id, catalog
        name_of = layout.payload_name
        path = store.path if isinstance(store, Folder) else None
        self._files = OpenShardFiles(path, lambda number: f"{path}/{name_of(number)}")

    def forget(self, numbers: Iterable[int]) -> None:
        """Close the payloads of some shards; if they come back, they are checked anew."""
        self._files.forget(numbers)

    def close(self) -> None:
        """Close all; what was checked need not be checked again."""
        self._files.close()

    batches_ahead: int = 2
    """Batches worth reading ahead."""

    def read(self, rows: NDArray[np.int64], buffer: BatchBuffer, *, whole_shards: bool = True) -> NDArray[Any]:  # noqa: ARG002
        """The latents at some rows: `LatentStore.read_rows`.

        Args:
            whole_shards: see `BucketRowReader`.
        Raises:
            DamagedShardError, StoreError, LatentShapeError: as there.
        """
        numbers, places = self._shards_and_places(rows, buffer)
        self._read_files(range(len(numbers)), numbers, places, buffer)
        return buffer.latents[: len(rows)]

    def _shards_and_places(self, rows: NDArray[np.int64], buffer: BatchBuffer) -> tuple[list[int], list[int]]:
        if len(rows) > len(buffer):
            raise LatentShapeError(f"{len(rows)} samples do not fit a buffer of {len(buffer)}")
        numbers, places = np.divmod(rows, self._layout.shard_size)
        return numbers.tolist(), places.tolist()

    def _read_files(
        self, samples: Sequence[int], numbers: Sequence[int], places: Sequence[int], buffer: BatchBuffer
    ) -> None:
        """Read rows of payloads that are files into some samples of a buffer."""
        frames, row_bytes = latent_frames(buffer.rollout_steps), self._layout.row_bytes
        opened, has_prefetched = self._files.current(), False
        patience = _PATIENCE_S + buffer.rows.shape[1] / _MEMORY_BYTES_PER_S
        for done, (sample, number, place) in enumerate(zip(samples, numbers, places, strict=True), 1):
            payload = opened.get(number) or self._open(number)  # hot: a microsecond counts
            started = perf_counter()
            for offset, size, memory in buffer.pieces:
                try:
                    if os.preadv(payload.fd, memory[sample], place * row_bytes + offset) != size:
                        self._read_slowly(payload, place, memory[sample][0], offset)
                except OSError as error:
                    payload = self._read_anew(payload, place, buffer, sample, error)
                    break
            payload.used = started
            if not has_prefetched and perf_counter() - started > patience:  # from the disk: ask for all others at once
                has_prefetched = True
                self._prefetch(zip(numbers[done:], places[done:], strict=True), buffer)
            if payload.checked[place] < frames:
                self._check(payload, place, buffer, sample, frames)

    def damaged(self, number: int, problem: str) -> DamagedShardError:
        """The error for a shard whose payload is not what was committed, and how to heal it."""
        payload = self._location(number)
        return DamagedShardError(
            f"{payload} (shard {number}, recipe {self._recipe_id[:12]}): {problem}. None of its latents can be "
            f"trusted. `{command('cache', 'repair', str(self._store), '--apply')}` moves it and its record "
            f"{record_path(self._store, number)} to lost+found; `theworld precompute` with the same flags then makes "
            "these rollouts again"
        )

    def _location(self, number: int) -> Path | str:
        return self._store.location(self._layout.payload_name(number))

    def _open(self, number: int) -> ShardFile:
        shard = self._catalog.index.shards.get(number)
        if shard is None:  # a refresh in another thread
            raise self.damaged(number, GONE)
        try:
            return self._files.open(shard)
        except ValueError as error:
            raise self.damaged(number, str(error)) from error
        except OSError as error:
            store_error = unreadable(self._location(number), number, error)
            is_damaged = isinstance(store_error, DamagedShardError)
            raise (self.damaged(number, str(error)) if is_damaged else store_error) from error

    def _prefetch(self, rows: Iterable[tuple[int, int]], buffer: BatchBuffer) -> None:
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        for number, place in rows:
            payload = self._open(number)  # held: whoever opens another one may close it
            start = place * self._layout.row_bytes
            for offset, size, _ in buffer.pieces:
                with suppress(OSError):  # only a hint
                    os.posix_fadvise(payload.fd, start + offset, size, os.POSIX_FADV_WILLNEED)

    def _read_slowly(self, payload: ShardFile, place: int, memory: memoryview, offset: int) -> None:
        """A read came back short: go on until the bytes are there or the file has ended."""
        at, start = 0, place * self._layout.row_bytes + offset
        while at < len(memory):
            read = os.preadv(payload.fd, (memory[at:],), start + at)
            if read == 0:
                raise self.damaged(payload.shard.number, f"it ends within row {place}")
            at += read

    def _read_anew(self, payload: ShardFile, place: int, buffer: BatchBuffer, sample: int, error: OSError) -> ShardFile:
        """A read failed: once more where the file system had lost the open file; else say whether that is damage."""
        number = payload.shard.number
        try:
            if not is_lost(error):
                raise error
            payload = self._files.open_anew(payload)
            for offset, _, memory in buffer.pieces:
                self._read_slowly(payload, place, memory[sample][0], offset)
        except ValueError as changed:
            raise self.damaged(number, str(changed)) from error
        except OSError as again:
            store_error = unreadable(self._location(number), number, again)
            problem = f"row {place} cannot be read: {again.strerror or again}"
            is_damaged = isinstance(store_error, DamagedShardError)
            raise (self.damaged(number, problem) if is_damaged else store_error) from again
        return payload

    def _check(self, payload: ShardFile, place: int, buffer: BatchBuffer, sample: int, frames: int) -> None:
        """The first touch of these frames: they must be what was committed."""
        self._require_committed(payload.shard, place, buffer.rows[sample], frames)
        payload.checked[place] = frames

    def _require_committed(self, shard: Shard, place: int, memory: NDArray[np.uint8], frames: int) -> None:
        """The frames in memory must match their checksums, and those that the record states."""
        number = shard.number
        stated = self._layout.checksums(memory, frames)
        if stated is None:
            raise self.damaged(number, f"row {place} does not match its checksums")
        recorded: list[int] = shard.frames_crc32c[place, :frames].tolist()
        if stated[: len(recorded)] != recorded:  # by the index, and a snapshot's checksums have no seal
            recorded = read_record(self._store, number, self._recipe_id).checksums()[place, :frames].tolist()
        if stated[: len(recorded)] != recorded:
            problem = f"row {place} does not match its checksums, or is not the one its record describes"
            raise self.damaged(number, problem)
