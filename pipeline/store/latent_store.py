"""An open store of latents: its keys, and checked reads.

Axes, everywhere:  B sample   C channel   T latent frame   K rollout steps   H, W latent row, column
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DamagedShardError, LatentShapeError, MissingLatentError, StoreError
from ..files.places.place import Place, parent_of
from ..latents.recipe import Recipe
from ..latents.spec import LatentSpec
from ..messages import command
from .catalog import Catalog
from .find import require_folder
from .formats import StoreFormat, StoreVersion
from .formats.layouts import layout_of
from .formats.zarr import ZarrLayout
from .keys.dropped import DroppedKeys
from .keys.index import SNAPSHOT_FROM_SHARDS, AnyKeys, Index, Keys, Shards, is_packed, unpack_keys
from .ledger import Failure, FailureLog
from .payload_sizes import size_problem
from .reading import views
from .reading.bucket_reader import BucketRowReader
from .reading.buffer import BatchBuffer
from .reading.readers import row_reader
from .reading.row_reader import GONE, RowReader
from .reading.shard_cache import ShardCache
from .records import ShardRecord, read_record
from .sources.table import SourceRow, read_prompts, read_source_rows, read_sources, read_starts, write_sources
from .writer import ShardWriter
from .zarr_group import ZarrGroup

_BLOCK_KEYS = 2**16
PUBLISH_EVERY_S = 60.0
"""What other programs see lags behind the commits by this much at most, while a job runs."""


class LatentStore:
    """The latents of one recipe. Get one from `open_store` or `create_store`.

    Several threads may read one store at once; several processes may read and write the same folder.
    A process forked off may go on reading.

    Attributes:
        place: the folder or the bucket that it is in.
        recipe, spec: what the latents are.
        format: zarr or webdataset.
        zarr_group: what other programs read beside the shards; None in format webdataset.
        shard_size: samples a full shard holds.
        damage: one message for each file that could not be used; empty in a store from `open_store`, which raises.
    """

    def __init__(
        self,
        place: Place,
        recipe: Recipe,
        spec: LatentSpec,
        shard_size: int,
        format: StoreFormat,
        version: StoreVersion,
        *,
        tolerate_damage: bool,
        load: bool = True,
    ) -> None:
        """
        Args:
            load: False looks at no record before somebody asks what is here: a worker that only adds shards never does.
        """
        self.place = place
        self.recipe = recipe
        self.spec = spec
        self.shard_size = shard_size
        self.format: StoreFormat = format
        self.layout = layout_of(recipe, spec, shard_size, format, version)
        self.damage: tuple[str, ...] = ()
        self.tolerates_damage = tolerate_damage
        self._recipe_id = recipe.id
        self._catalog = Catalog(place, self._recipe_id, shard_size, self.layout.is_possible)
        self._dropped = DroppedKeys(place)
        self.zarr_group = ZarrGroup(place, self.layout, recipe, spec) if isinstance(self.layout, ZarrLayout) else None
        self._publishes, self._publish_at = False, 0.0
        self._reader = row_reader(place, self.layout, self._recipe_id, self._catalog)
        self._failures = FailureLog(place)
        self._lock = threading.Lock()
        if load:
            self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder for itself, and checks for itself."""
        what = (self.place, self.recipe, self.spec, self.shard_size, self.format, self.layout.version)
        return _open_again, (*what, self.tolerates_damage, self._catalog.is_loaded)

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W)"""
        return self.layout.sample_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored latents; bfloat16 is ml_dtypes'."""
        return self.layout.dtype

    @property
    def keys(self) -> tuple[str, ...]:
        """Every visible key once, by shard and row. Of millions of samples, take `rows` or `packed_keys`."""
        return self.index.keys

    @property
    def dropped(self) -> Keys:
        """The keys that `cache drop` took out, in order: never visible, and not to be made again."""
        self._loaded()
        return self._dropped.keys

    @property
    def packed_keys(self) -> Keys:
        """`keys` as an array of sixteen bytes each, made anew."""
        return self.index.packed_keys()

    def sorted_keys(self) -> Iterator[str]:
        """`keys` in order of their digits, one by one."""
        keys = np.sort(self.packed_keys)
        for start in range(0, len(keys), _BLOCK_KEYS):
            yield from unpack_keys(keys[start : start + _BLOCK_KEYS])

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the Zarr array that hold `keys`, ascending."""
        return self.index.rows

    @property
    def shards(self) -> Shards:
        """The visible shards by number, ascending; another object after a change."""
        return self.index.shards

    @property
    def bad_records(self) -> Mapping[int, str]:
        """The shards whose record cannot be used, and why."""
        self._loaded()
        return self._catalog.bad

    @property
    def array_rows(self) -> int:
        """N of the Zarr array: up to and with the last row of the highest committed shard."""
        return self.index.array_rows

    @property
    def next_number(self) -> int:
        """The first shard number above all that have a record, or that a snapshot speaks for."""
        self._loaded()
        return self._catalog.next_number

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self.holds([key])[0])

    @property
    def index(self) -> Index:
        """Which keys are where, now; another object after a change."""
        self._loaded()
        return self._catalog.index

    def _loaded(self) -> None:
        if not self._catalog.is_loaded:
            self.refresh()

    def holds(self, keys: AnyKeys) -> NDArray[np.bool_]:
        """Which of some keys are here."""
        return self.index.find(keys) >= 0

    def holds_soundly(self, keys: AnyKeys) -> bool:
        """Whether all of some keys are here, in payloads that are there with their sizes."""
        rows = self.index.find(keys)
        numbers = np.unique(rows // self.shard_size).tolist()
        return bool((rows >= 0).all()) and not any(
            size_problem(self.place, self.layout.payload_name(number), self.shards[number].bytes, number)
            for number in numbers
        )

    def rows_of(self, keys: AnyKeys) -> NDArray[np.int64]:
        """Where latents are in the Zarr array: `zarr.open(path)["latents"][row]`.

        Raises:
            MissingLatentError: names the first key that is not here.
        """
        rows = self.index.find(keys)
        if (rows < 0).any():
            first = int(np.argmax(rows < 0))
            missing_key = unpack_keys(keys[first : first + 1])[0] if is_packed(keys) else keys[first]
            more_count = int((rows < 0).sum()) - 1
            more_text = f" and {more_count} more of {len(keys)}" if more_count else ""
            raise MissingLatentError(
                f"{self.place} (recipe {self._recipe_id[:12]}, {len(self)} latents) holds no latent for key "
                f"{missing_key}{more_text}. With the same flags over the images, run "
                f"{command('precompute', 'IMAGES', '--cache', parent_of(self.place))}"
            )
        return rows

    def row_of(self, key: str) -> int:
        """`rows_of` one key."""
        return int(self.rows_of([key])[0])

    def records(self) -> list[ShardRecord]:
        """Of the visible shards, by number, read anew.

        Raises:
            DamagedShardError: one is not what was committed, or is gone.
        """
        return [self._record(number) for number in self.shards]

    def refresh(self) -> None:
        """See what has been committed, or moved away, since. Opens only the records not yet read.

        Raises:
            DamagedShardError: a record is not what was committed. A store from `create_store` notes it in `damage`
                instead and goes on.
        """
        with self._lock:
            try:
                self._dropped.refresh(tolerate_damage=self.tolerates_damage)
                gone = self._catalog.refresh(tolerate_damage=self.tolerates_damage)
                self._catalog.index = self._catalog.index.hiding(self._dropped.keys)
                self._reader.forget(gone)
            finally:
                self.damage = self._all_damage()

    def disregard(self, numbers: Collection[int], problem: str) -> None:
        """Go on as if some shards were not here: their keys are missing from now on, and `damage` says why."""
        with self._lock:
            self._catalog.disregard(numbers, problem)
            self.damage = self._all_damage()

    def committed(self, record: ShardRecord) -> None:
        """Know a shard that was just committed, and tell others at times; for its writer, who looks for no others."""
        with self._lock:
            self._catalog.add(record)
        if self._publishes:
            with suppress(StoreError):  # the shard is safe; the next publish tells of it, or says what is wrong
                self.publish_at_times()

    def read(self, keys: AnyKeys, *, rollout_steps: int | None = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The latents of some keys. A frame's checksum is checked when this process first touches it.

        Args:
            keys: B of them, in any order, also repeatedly.
            rollout_steps: K, read the observed frame and the first K future ones; a prefix costs only its own bytes.
                None reads all.
            out: filled and returned, if given: (B, C, 1 + K, H, W) of the store's dtype. `buffer` and `read_rows` save
                its copy.
        Returns:
            (B, C, 1 + K, H, W), standardised, of the store's dtype; without `out` a strided view.
        Raises:
            MissingLatentError: a key is not in the store; nothing was read then.
            DamagedShardError: bytes on disk are not the bytes committed.
            ConfigError: the rollouts are shorter than `rollout_steps`.
            LatentShapeError: `out` does not fit.
        """
        while True:
            index = self.index
            try:
                return self._read(keys, rollout_steps, out)
            except DamagedShardError:
                self.refresh()
                if self.index is index:
                    raise
                # else `cache compact` has moved the rows since this store was opened

    def _read(self, keys: AnyKeys, rollout_steps: int | None, out: NDArray[Any] | None) -> NDArray[Any]:
        rows = self.rows_of(keys)
        if out is None:
            return self._read_some(rows, self.buffer(len(rows), rollout_steps=rollout_steps))
        buffer = self.buffer(1, rollout_steps=rollout_steps)
        shape = (len(rows), *buffer.latents.shape[1:])
        if out.shape != shape or out.dtype != self.dtype or not out.flags.writeable:
            raise LatentShapeError(
                f"out must be a writeable {self.dtype} array of shape {shape}, got {out.dtype} {out.shape}"
            )
        for number in range(len(rows)):
            out[number] = self._read_some(rows[number : number + 1], buffer)[0]
        return out

    def _read_some(self, rows: NDArray[np.int64], buffer: BatchBuffer) -> NDArray[Any]:
        """`read_rows` for whoever reads few of a shard's rows: with a local cache, none is fetched whole for them."""
        self._loaded()
        return self._reader.read(rows, buffer, whole_shards=False)

    def buffer(
        self, samples: int, *, rollout_steps: int | None = None, memory: NDArray[np.uint8] | None = None
    ) -> BatchBuffer:
        """Memory for batches of up to so many samples, for `read_rows`.

        Args:
            rollout_steps: K of what is read into it.
            memory: contiguous bytes to use, pinned ones for example; None takes new ones.
        Raises:
            ConfigError: the rollouts are shorter than `rollout_steps`.
            LatentShapeError: `memory` is too small.
        """
        steps = self.recipe.rollout_steps if rollout_steps is None else rollout_steps
        if not 0 <= steps <= self.recipe.rollout_steps:
            raise ConfigError(
                f"{self.place} holds rollouts of {self.recipe.rollout_steps} steps, {steps} were asked for. "
                f"Pass --steps between 0 and {self.recipe.rollout_steps}, or precompute longer rollouts"
            )
        return BatchBuffer(self.layout, samples, steps, memory)

    def read_rows(self, rows: NDArray[np.int64], buffer: BatchBuffer) -> NDArray[Any]:
        """The latents at some rows (`rows_of`), each in one read straight into the buffer.

        Returns:
            (len(rows), C, 1 + K, H, W): the first of `buffer.latents`, valid until the buffer is used again.
        Raises:
            DamagedShardError: bytes on disk are not the bytes committed.
            StoreError: a payload cannot be opened by this user, or now.
            LatentShapeError: the buffer is too small.
        """
        self._loaded()
        return self._reader.read(rows, buffer)

    def use_local_cache(self, cache: ShardCache, *, window: int | None) -> None:
        """Read whole shards of a store in a bucket by way of this machine's disk, for `read_rows`, in many epochs.

        Args:
            window: shards that are read at a time, as a `BlockSampler` does; None is all of them, in any order.
        Raises:
            ConfigError: the cache may not hold so many; names the size that works.
        """
        self._loaded()
        if isinstance(self._reader, BucketRowReader):
            self._reader.use_cache(cache, window=window)

    @property
    def reader(self) -> RowReader:
        """How rows are read: from files, by requests, or by way of a local cache."""
        return self._reader

    def new_shard(self, number: int | None = None) -> ShardWriter:
        """A writer for up to `shard_size` samples: `with store.new_shard() as shard: ...`

        Args:
            number: wanted for the shard, if it is free: parallel writers then end in the order of the plan.
        """
        return ShardWriter(self, number)

    def publish(self) -> int:
        """Tell other programs, and later openings, what is here: Zarr's shape, and the snapshot of a large store.

        Returns:
            N of the Zarr array, up to and with the last row of the highest committed shard. Writers that race all
            end at the same N.
        Raises:
            StoreError: a file cannot be written.
        """
        while True:
            self.refresh()
            samples = self.index.array_rows
            with self.place.writing():
                if self.zarr_group is not None:
                    self.zarr_group.publish(self.index)
                if len(self.shards) >= SNAPSHOT_FROM_SHARDS:
                    with self._lock:
                        self._catalog.publish()
            self.refresh()
            if samples == self.index.array_rows:  # else a commit came between, and its N may already be overwritten
                self._publish_at = monotonic() + PUBLISH_EVERY_S
                return samples

    def publish_at_times(self) -> None:
        """Publish, if it was not done for a minute: other programs follow a job that runs for days."""
        if monotonic() >= self._publish_at:
            self.publish()

    def begin_writing(self) -> None:
        """Publish what a writer that was killed left unsaid; from here on, commits are published at times.

        Raises:
            StoreError: a file cannot be written.
        """
        self._publishes = True
        if self.zarr_group is not None and self.zarr_group.is_behind(self.index.array_rows):
            self.publish()

    as_zarr, as_xarray = views.as_zarr, views.as_xarray
    as_dask, as_webdataset = views.as_dask, views.as_webdataset

    def record_sources(
        self,
        rows: Iterable[tuple[str, str]],
        prompts: Mapping[str, str] | None = None,
        starts: Mapping[str, float] | None = None,
    ) -> int:
        """Keep which input is which key: rows of (source, key). Those kept already are not written again.

        Args:
            prompts: key -> the prompt that is part of it, where samples have their own.
            starts: key -> the second of a video at which its clip or picture is, where one was chosen.
        Returns:
            How many rows were new.
        """
        with self.place.writing():
            return write_sources(self.place, rows, prompts, starts)

    def source_rows(self) -> Iterator[SourceRow]:
        """What is kept of every input, some perhaps twice, without holding it all in memory."""
        return read_source_rows(self.place)

    def prompts(self) -> dict[str, str]:
        """Key -> the prompt that is part of it, where samples have their own."""
        return read_prompts(self.place)

    def starts(self) -> dict[str, float]:
        """Key -> the second of a video at which its clip or picture is, where one was chosen."""
        return read_starts(self.place)

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Source -> its keys, over all runs. Of millions of inputs, take `source_rows`.

        More than one key means that the input changed between runs. No run is "the last" (clocks decide nothing here):
        whoever needs one key hashes the input as it is now, or refuses.
        """
        return read_sources(self.place)

    def record_failure(self, failure: Failure) -> None:
        """`record_failures` of one."""
        self.record_failures([failure])

    def record_failures(self, failures: Iterable[Failure]) -> None:
        """Keep that inputs failed, in one file; an earlier row of the same input (key, else source) gives way."""
        with self.place.writing():
            self._failures.record(failures)

    def failures(self) -> list[Failure]:
        """The inputs that failed, by source."""
        return self._failures.failures()

    def clear_failure(self, failure: Failure) -> None:
        """`clear_failures` of one."""
        self.clear_failures([failure])

    def clear_failures(self, failures: Iterable[Failure]) -> None:
        """Forget failures: their inputs have a latent now, or are no longer wanted."""
        with self.place.writing():
            self._failures.clear(failures)

    def close(self) -> None:
        """Close the payload files. Reading again opens them again."""
        self._reader.close()

    @property
    def path(self) -> Path:
        """The store's folder.

        Raises:
            ConfigError: it is in a bucket.
        """
        return require_folder(self.place)

    def payload_path(self, shard: int) -> Path:
        """Where the payload of a shard belongs, of a store in a folder; raises as `path`."""
        return self.path / self.layout.payload_name(shard)

    def payload_location(self, shard: int) -> Path | str:
        """Where the payload of a shard belongs: a path, or a URL."""
        return self.place.location(self.layout.payload_name(shard))

    def _all_damage(self) -> tuple[str, ...]:
        messages = [message for _, message in sorted(self._catalog.bad.items())]
        return tuple(dict.fromkeys([*messages, *self._dropped.damage]))

    def _record(self, number: int) -> ShardRecord:
        try:
            return read_record(self.place, number, self._recipe_id)
        except FileNotFoundError as error:
            raise self._reader.damaged(number, GONE) from error


def _open_again(
    place: Place,
    recipe: Recipe,
    spec: LatentSpec,
    shard_size: int,
    format: StoreFormat,
    version: StoreVersion,
    tolerate_damage: bool,
    load: bool,
) -> LatentStore:
    return LatentStore(place, recipe, spec, shard_size, format, version, tolerate_damage=tolerate_damage, load=load)
