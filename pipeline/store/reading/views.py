"""A store as objects of other people's libraries: zarr, xarray, dask, webdataset.

Each shows what is committed and nothing else: no row without a sample, no leftover of a killed writer. Each library is
imported when it is asked for. xarray and dask read through our own checked reads, a chunk for each shard; zarr-python
and webdataset read the files themselves, so that `verify --deep` can ask them for a second opinion.

Axes:  B sample   C channel   T latent frame   H, W latent row, column
"""

# the libraries shown here have few types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, DamagedShardError, StoreMismatchError
from ...files.places.place import Place
from ...files.plain import open_file, read_file
from ...latents.keys import KEY_DIGITS
from ...latents.recipe import Recipe
from ...latents.spec import LatentSpec, latent_frames
from ...latents.time_axis import seconds_of_frames
from ...messages import command, install_extra
from ..formats import StoreFormat
from ..formats.base import ShardLayout
from ..keys.index import Index, Keys, Shard, unpack_keys
from ..records import stated_fps
from ..zarr_group import ZarrGroup, content_of
from ..zarr_metadata import AXES, KEY, LATENTS, TIME, attributes_of, attributes_of_store
from .buffer import BatchBuffer

_CHUNK_BYTES = 64 * 2**20
"""Small shards share a chunk of dask's up to here; a larger shard has its own."""
_KEYS_IN_MEMORY = 2**20
"""Above, the coordinate `key` is made when it is looked at: 128 bytes a key."""
_USERS_FILE_LIMIT_BYTES = 2**31
_TAR_LIMIT_BYTES = 2**50
"""It is read member by member."""
SECOND_OPINION_ROWS = 8


class OpenStore(Protocol):
    """What a view needs of a `LatentStore`, whose methods the functions here are."""

    place: Place
    recipe: Recipe
    spec: LatentSpec
    format: StoreFormat
    shard_size: int
    layout: ShardLayout
    zarr_group: ZarrGroup | None

    @property
    def index(self) -> Index: ...
    @property
    def shards(self) -> Mapping[int, Shard]: ...
    @property
    def sample_shape(self) -> tuple[int, int, int, int]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def row_of(self, key: str) -> int: ...
    @property
    def path(self) -> Path: ...

    def payload_path(self, shard: int) -> Path: ...
    def buffer(self, samples: int, *, rollout_steps: int | None = None) -> BatchBuffer: ...
    def read_rows(self, rows: NDArray[np.int64], buffer: BatchBuffer) -> NDArray[Any]: ...


def as_zarr(store: OpenStore) -> Any:
    """The store as a `zarr.Group` that cannot be written to, as it is now.

    Raises:
        ConfigError: the store is of format webdataset.
        StoreMismatchError: zarr-python does not open it: somebody has put something else into a zarr.json.
    """
    if store.zarr_group is None:
        raise ConfigError(
            f"{store.path} is of format webdataset, so zarr cannot read it. Use as_xarray() or as_webdataset(), or "
            f"copy it: {command('cache', 'export', store.path, 'FOLDER', '--format', 'zarr')}"
        )
    import zarr
    from zarr.storage import MemoryStore

    if store.recipe.dtype == "bfloat16":
        from ..formats import zarr_bfloat16 as _  # noqa: F401 - registers the type
    files: Any = _CommittedFiles(store, store.zarr_group)
    try:
        return zarr.open_group(MemoryStore(files, read_only=True), mode="r")
    except Exception as error:  # of half a dozen classes, builtin ones among them
        raise StoreMismatchError(
            f"{store.path / 'zarr.json'}: zarr-python does not open this store: {str(error)[:500]}. Move the zarr.json "
            f"that it means away; `{command('cache', 'repair', store.path, '--apply')}` makes ours again"
        ) from error


def as_xarray(store: OpenStore, *, rollout_steps: int | None = None) -> Any:
    """The store as an `xarray.Dataset`: `latents` in chunks of whole shards, with the coordinates `key` and `time_s`.

    Args:
        rollout_steps: K, show the observed frame and the first K future ones, and read no more; None shows all. dask
            reads whole chunks, however few of their frames are used.
    Raises:
        ConfigError: xarray or dask is not installed, or the rollouts are shorter than `rollout_steps`.
    """
    try:
        import dask.array
        import xarray
    except ImportError as error:
        raise ConfigError(
            f"as_xarray and as_dask need xarray and dask ({error}). Install them: {install_extra('xarray')}"
        ) from error
    keys, rows = store.index.by_row()
    chunks = _chunks(store, rows)
    array: Any = dask.array
    shown = _Rows(store, rows, store.buffer(0, rollout_steps=rollout_steps).rollout_steps)
    sizes = ((size,) for size in shown.shape[1:])
    meta = np.empty((0,) * shown.ndim, shown.dtype)
    latents = array.from_array(shown, chunks=(chunks, *sizes), fancy=False, meta=meta)
    names: Any = _Names(keys)
    names = array.from_array(names, chunks=(chunks,), fancy=False) if len(keys) > _KEYS_IN_MEMORY else names[:]
    coordinates: dict[str, Any] = {KEY: (AXES[:1], names, attributes_of(KEY, store.spec))}
    fps = store.recipe.fps or stated_fps(store.place, store.shards, store.recipe.id)
    seconds = seconds_of_frames(store.recipe, store.spec, fps)
    if seconds is not None:
        coordinates[TIME] = (AXES[2:3], seconds[: shown.shape[2]], attributes_of(TIME, store.spec))
    variables = {LATENTS: (AXES, latents, attributes_of(LATENTS, store.spec))}
    return xarray.Dataset(variables, coordinates, attributes_of_store(store.recipe))


def as_dask(store: OpenStore, *, rollout_steps: int | None = None) -> Any:
    """The latents of `as_xarray` alone, as a `dask.array.Array` (B, C, 1 + K, H, W)."""
    return as_xarray(store, rollout_steps=rollout_steps)["latents"].data


def as_webdataset(store: OpenStore) -> Any:
    """The committed tars as a pipeline of webdataset, of {"__key__", "npy": latent, "json": what it is}.

    It has `shuffle`, `batched` and the rest of what a `webdataset.WebDataset` has. Nothing is unpickled. Ranks and
    DataLoader workers share the shards; where those are too few for each to have one, they share the samples.

    Raises:
        ConfigError: the store is of format zarr, or holds no sample yet.
    """
    if store.format != "webdataset":
        raise ConfigError(
            f"{store.path} is of format zarr, so there are no tars. Use as_zarr() or as_xarray(), or "
            f"copy it: {command('cache', 'export', store.path, 'FOLDER', '--format', 'webdataset')}"
        )
    if not len(store):
        raise ConfigError(f"{store.path} holds no latents yet")
    from webdataset.compat import FluidWrapper
    from webdataset.shardlists import SimpleShardList

    tars = [str(store.payload_path(number).absolute()) for number in store.shards]
    samples: Any = FluidWrapper(SimpleShardList(tars)).compose(_ShareOfShards(len(tars)), _Samples(store.path))
    return samples.compose(_ShareOfSamples(len(tars))).select(_IsShown(store)).map(_Decoder(store))


def second_opinion(store: OpenStore, shards: Iterable[int], rows: int = SECOND_OPINION_ROWS) -> Iterator[str]:
    """What zarr-python or webdataset reads differently than we do, of a few rows of sound shards."""
    numbers = list(shards)
    chosen = [numbers[int(at)] for at in np.linspace(0, len(numbers) - 1, min(rows, len(numbers)))]
    if not chosen:
        return
    name = "zarr-python" if store.format == "zarr" else "webdataset"
    try:
        group = as_zarr(store) if store.format == "zarr" else None
    except StoreMismatchError as error:
        yield str(error)
        return
    buffer = store.buffer(1)
    for number in chosen:
        row = number * store.shard_size + store.shards[number].rows - 1
        ours = store.read_rows(np.array([row]), buffer)[0]
        try:
            theirs = _last_of_tar(store, number) if group is None else np.asarray(group[LATENTS][row])
        except Exception as error:  # whatever it is, another program cannot read this row
            yield f"{store.payload_path(number)}: {name} cannot read row {row}, which is sound: {error}"
            continue
        if theirs.dtype != ours.dtype or theirs.shape != ours.shape or theirs.tobytes() != ours.tobytes():
            yield f"{store.payload_path(number)}: {name} reads other numbers in row {row}, which is sound"


class _CommittedFiles(MutableMapping[str, Any]):
    """The files of a store's Zarr group as they would be if it was published now; the payloads are mapped."""

    def __init__(self, store: OpenStore, group: ZarrGroup) -> None:
        self._store, self._group, self._index = store, group, store.index
        documents = group.documents(store.index.array_rows)
        self._documents = {name: content_of(document) for name, document in documents.items()}
        self._key_chunks = {f"{KEY}/c/{chunk}": (chunk, at) for chunk, at, _ in group.key_chunks(self._index)}
        self._payloads = {store.layout.payload_name(number): number for number in store.shards}
        ours = (LATENTS, KEY, TIME)
        self._others = tuple(
            f"{name}/" for name in documents["zarr.json"].get("consolidated_metadata", {}).get("metadata", {})
            if name.partition("/")[0] not in ours
        )  # fmt: skip

    def __getitem__(self, name: str) -> Any:
        from zarr.buffer.cpu import Buffer

        content = self._content(name)
        array: Any = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content
        return Buffer.from_array_like(array)

    def _content(self, name: str) -> bytes | NDArray[np.uint8]:
        if name in self._documents:
            return self._documents[name]
        if name in self._key_chunks:
            chunk, shards = self._key_chunks[name]
            return self._group.key_chunk(self._index, chunk, shards)
        if name in self._payloads:
            return self._mapped(self._payloads[name])
        if name == f"{TIME}/c/0" or name.startswith(self._others):
            try:
                return read_file(self._store.path / name, _USERS_FILE_LIMIT_BYTES, within=self._store.path)
            except (FileNotFoundError, NotADirectoryError):
                raise KeyError(name) from None
        raise KeyError(name)

    def _mapped(self, number: int) -> NDArray[np.uint8]:
        path, stated = self._store.payload_path(number), self._store.shards[number].bytes
        content = np.memmap(path, np.uint8, "r")
        if len(content) != stated:  # reading beyond the end of a mapping would kill the process
            raise DamagedShardError(f"{path} has {len(content)} bytes, its record states {stated}")
        return content

    def __iter__(self) -> Iterator[str]:
        yield from (*self._documents, *self._key_chunks, *self._payloads)

    def __len__(self) -> int:
        return len(self._documents) + len(self._key_chunks) + len(self._payloads)

    def __setitem__(self, name: str, content: object) -> NoReturn:
        raise TypeError(f"a view of {self._store.path} cannot be written to")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"a view of {self._store.path} cannot be written to")


class _Rows:
    """Committed rows as an array (B, C, T, H, W) that dask takes slices of; only the frames asked for are read."""

    def __init__(self, store: OpenStore, rows: NDArray[np.int64], rollout_steps: int) -> None:
        self._store, self._rows = store, rows
        channels, _, height, width = store.sample_shape
        self.shape = (len(rows), channels, latent_frames(rollout_steps), height, width)
        self.ndim, self.dtype = len(self.shape), store.dtype

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return (type(self).__qualname__, str(self._store.path), self.shape, self._rows.tobytes())

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        samples, channels, times, *cells = index
        rows = np.atleast_1d(self._rows[samples])
        frames = np.arange(self.shape[2])[times]
        steps = int(frames.max()) if frames.size else 0
        latents = self._store.read_rows(rows, self._store.buffer(len(rows), rollout_steps=steps))
        if isinstance(times, slice):
            times = slice(*times.indices(self.shape[2]))
        return latents[0 if isinstance(samples, int) else slice(None), channels, times, *cells]


class _Names:
    """The keys of committed rows as text (B,), for dask to take slices of."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.shape, self.ndim, self.dtype = (len(keys),), 1, np.dtype(f"U{KEY_DIGITS}")

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return (type(self).__qualname__, self._keys.tobytes())

    def __getitem__(self, index: Any) -> NDArray[np.str_]:
        (index,) = index if isinstance(index, tuple) else (index,)
        digits = np.frombuffer(self._keys[index].tobytes().hex().encode(), f"S{KEY_DIGITS}")
        return digits.astype(self.dtype)


def _chunks(store: OpenStore, rows: NDArray[np.int64]) -> tuple[int, ...]:
    """How many visible rows each chunk has: those of whole shards."""
    channels, frames, height, width = store.sample_shape
    most = max(1, _CHUNK_BYTES // (channels * frames * height * width * store.dtype.itemsize))
    _, counts = np.unique(rows // store.shard_size, return_counts=True)
    chunks: list[int] = []
    for count in counts.tolist():
        if chunks and chunks[-1] + count <= most:
            chunks[-1] += count
        else:
            chunks.append(count)
    return tuple(chunks) or (0,)


class _ShareOfShards:
    """Gives each rank and worker its own shards, where there are enough of them."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        place, places = _place()
        yield from islice(source, place, None, places) if places <= self._shards else source


class _ShareOfSamples:
    """Gives each rank and worker its own samples, where there are fewer shards than of those."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        place, places = _place()
        yield from source if places <= self._shards else islice(source, place, None, places)


class _Samples:
    """Reads tars with webdataset, and opens them without: its secure mode, WDS_SECURE=1, opens no file of this disk."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def __call__(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        yield from group_by_keys(tar_file_expander(self._opened(tars)))

    def _opened(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for tar in tars:
            with open_file(Path(tar["url"]), _TAR_LIMIT_BYTES, within=self._store) as stream:
                yield {**tar, "stream": stream}


class _IsShown:
    """Whether the store shows a sample of a tar: not where an earlier shard holds its key, too."""

    def __init__(self, store: OpenStore) -> None:
        has_doubles = sum(shard.rows for shard in store.shards.values()) > len(store)
        self._hidden = {
            (store.payload_path(number).name, key)
            for number, shard in (store.shards.items() if has_doubles else ())
            for key in unpack_keys(shard.keys)
            if store.row_of(key) // store.shard_size != number
        }

    def __call__(self, sample: dict[str, Any]) -> bool:
        return (Path(sample["__url__"]).name, sample["__key__"]) not in self._hidden


class _Decoder:
    """Makes a latent of the npy, and a mapping of the json, of one sample."""

    def __init__(self, store: OpenStore) -> None:
        self._dtype = store.recipe.dtype

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        latent: NDArray[Any] = np.load(BytesIO(sample["npy"]), allow_pickle=False)
        if self._dtype == "bfloat16":
            latent = latent.view(ml_dtypes.bfloat16)
        return {**sample, "npy": latent, "json": json.loads(sample["json"])}


def _place() -> tuple[int, int]:
    """Which of all workers of all ranks this process is, and how many there are."""
    from webdataset.utils import pytorch_worker_info

    rank, ranks, worker, workers = pytorch_worker_info()
    return rank * workers + worker, ranks * workers


def _last_of_tar(store: OpenStore, number: int) -> NDArray[Any]:
    *_, last = _Samples(store.path)([{"url": str(store.payload_path(number).absolute())}])
    return _Decoder(store)(last)["npy"]
