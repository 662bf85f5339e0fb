"""An open store of latents: its keys, and checked reads.

Axes, everywhere:  B sample   C channel   T latent frame   K rollout steps   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DamagedShardError, LatentShapeError, StoreError
from ..files.places.place import Place
from ..latents.recipe import Recipe
from ..latents.spec import LatentSpec
from .find import require_folder
from .formats import StoreFormat, StoreVersion
from .formats.layouts import layout_of
from .formats.zarr import ZarrLayout
from .keys.index import SNAPSHOT_FROM_SHARDS, AnyKeys
from .reading import views
from .reading.bucket_reader import BucketRowReader
from .reading.buffer import BatchBuffer
from .reading.readers import row_reader
from .reading.row_reader import GONE, RowReader
from .reading.shard_cache import ShardCache
from .records import ShardRecord, read_record
from .store_keys import StoreKeys, at_times_s
from .store_logs import StoreLogs
from .writer import ShardWriter
from .zarr_group import ZarrGroup


class LatentStore(StoreKeys, StoreLogs):
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
        layout = layout_of(recipe, spec, shard_size, format, version)
        StoreKeys.__init__(self, place, recipe, layout, tolerate_damage=tolerate_damage)
        StoreLogs.__init__(self, place)
        self.spec = spec
        self.format: StoreFormat = format
        self.zarr_group = ZarrGroup(place, self.layout, recipe, spec) if isinstance(self.layout, ZarrLayout) else None
        self._publishes, self._publish_at = False, 0.0
        self._reader = row_reader(place, self.layout, self._recipe_id, self._catalog)
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

    def records(self) -> list[ShardRecord]:
        """Of the visible shards, by number, read anew.

        Raises:
            DamagedShardError: one is not what was committed, or is gone.
        """
        return [self._record(number) for number in self.shards]

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

    def committed(self, record: ShardRecord) -> None:
        """Know a shard that was just committed, and tell others at times; for its writer, who looks for no others."""
        with self._lock:
            self._catalog.add(record)
        if self._publishes:
            with suppress(StoreError):  # the shard is safe; the next publish tells of it, or says what is wrong
                self.publish_at_times()

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
        began = monotonic()
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
                self._publish_at = monotonic() + at_times_s(monotonic() - began)
                return samples

    def publish_at_times(self) -> None:
        """Publish, if it was not done for a minute (of a large store, longer): others follow a long job."""
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

    def _record(self, number: int) -> ShardRecord:
        try:
            return read_record(self.place, number, self._recipe_id)
        except FileNotFoundError as error:
            raise self._reader.damaged(number, GONE) from error

    def _forget(self, gone: Collection[int]) -> None:
        self._reader.forget(gone)


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
