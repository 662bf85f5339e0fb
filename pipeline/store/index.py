"""Which keys a store holds and where: all commit records as arrays, and the snapshot of them on disk.

A million samples are 28 MB here, found by binary search, and open in a fraction of a second from the snapshot. The
snapshot is a cache: each record it speaks for must still be the file it was made from, and without it the records are
read. """

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from ..files.open_files import retried
from ..files.plain import open_file, read_file
from ..files.sealed import seal_tensors
from ..latents.keys import KEY_DIGITS, is_key
from .records import FORMAT, RECORD_LIMIT_BYTES, ShardRecord, record_number, record_path

SNAPSHOT = "index.safetensors"
SNAPSHOT_FROM_SHARDS = 64
"""Fewer records are read as fast one by one."""
SNAPSHOT_LIMIT_BYTES = 2**32
"""Of 100 million rows."""
_HEADER_LIMIT_BYTES = 2**16
_KEY = np.dtype(f"S{KEY_DIGITS // 2}")

Keys = NDArray[np.bytes_]
"""(N,) of sixteen bytes each. numpy orders and compares these like the keys' digits."""


class Stamp(NamedTuple):
    """Size and modification time, to notice a replaced record file. Records are never rewritten in place."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """What reading needs to know of one committed shard."""

    number: int
    bytes: int
    """Of the payload."""
    keys: Keys
    frames_crc32c: NDArray[np.uint32]
    """(rows, F): of the first frame in format 1, else of all."""
    stamp: Stamp

    @property
    def rows(self) -> int:
        return len(self.keys)


def shard_of(record: ShardRecord, stamp: Stamp) -> Shard:
    """The arrays of a record."""
    return Shard(record.shard, record.bytes, pack_keys(record.keys), record.checksums(), stamp)


def record_inodes(store: Path) -> dict[int, int]:
    """The shards that have a record, and the inode of each, from one listing; no file is looked at."""

    def listed() -> dict[int | None, int]:
        with os.scandir(store / "commits") as entries:
            return {record_number(entry.name): entry.inode() for entry in entries}

    numbers = retried(listed)
    return {number: inode for number, inode in numbers.items() if number is not None}


def record_stamp(store: Path, number: int) -> Stamp | None:
    """The stamp of a record; None where it was moved away meanwhile."""
    path = record_path(store, number)
    try:
        status = retried(path.stat)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):  # a server that does not answer took no record away
            raise
        return Stamp(0, 0) if path.is_symlink() else None  # to nothing, or to itself: reading it will say so
    return Stamp(status.st_size, status.st_mtime_ns)


def record_stamps(store: Path, numbers: Iterable[int] | None = None) -> dict[int, Stamp]:
    """The stamps of some records; None takes all there are."""
    stamps = {number: record_stamp(store, number) for number in (record_inodes(store) if numbers is None else numbers)}
    return {number: stamp for number, stamp in stamps.items() if stamp is not None}


class Index:
    """The visible rows of a store; never changes. Of shards that hold the same key, the lowest counts."""

    def __init__(self, shards: Mapping[int, Shard], shard_size: int) -> None:
        self.shards = shards
        """By number, ascending."""
        self._shard_size = shard_size

    @classmethod
    def from_shards(cls, shards: Iterable[Shard], shard_size: int) -> Index:
        """The index of some shards."""
        return cls({shard.number: shard for shard in sorted(shards, key=lambda shard: shard.number)}, shard_size)

    def __len__(self) -> int:
        return len(self._sorted[0])

    @property
    def array_rows(self) -> int:
        """N of the Zarr array: up to and with the last row of the highest shard."""
        last = self.shards[max(self.shards)] if self.shards else None
        return last.number * self._shard_size + last.rows if last else 0

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The array row of each key; -1 where it is not here."""
        sorted_keys, rows = self._sorted
        result = np.full(len(keys), -1, np.int64)
        sound = np.array([is_key(key) for key in keys], bool)
        if not len(sorted_keys) or not sound.any():
            return result
        packed = pack_keys(keys if sound.all() else [key for key, good in zip(keys, sound, strict=True) if good])
        places = np.minimum(np.searchsorted(sorted_keys, packed), len(sorted_keys) - 1)
        result[sound] = np.where(sorted_keys[places] == packed, rows[places], -1)
        return result

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every key once, by row."""
        return unpack_keys(self.by_row()[0])

    def by_row(self) -> tuple[Keys, NDArray[np.int64]]:
        """Every key once, packed, and its row, in the order of rows."""
        sorted_keys, rows = self._sorted
        order = np.argsort(rows)
        return sorted_keys[order], rows[order]

    def with_shards(self, shards: Iterable[Shard]) -> Index:
        """This and more shards."""
        added = Index.from_shards(shards, self._shard_size)
        index = Index.from_shards([*self.shards.values(), *added.shards.values()], self._shard_size)
        keys = np.concatenate([self._sorted[0], added._sorted[0]])
        index._sorted = _distinct(keys, np.concatenate([self._sorted[1], added._sorted[1]]))  # two runs: cheap
        return index

    def without(self, numbers: Iterable[int]) -> Index:
        """This but for some shards."""
        removed = set(numbers)
        return Index({n: shard for n, shard in self.shards.items() if n not in removed}, self._shard_size)

    @cached_property
    def _sorted(self) -> tuple[Keys, NDArray[np.int64]]:
        """Distinct keys in order, and their rows."""
        if not self.shards:
            return pack_keys([]), np.empty(0, np.int64)
        keys = np.concatenate([shard.keys for shard in self.shards.values()])
        places = [np.arange(s.rows, dtype=np.int64) + s.number * self._shard_size for s in self.shards.values()]
        return _distinct(keys, np.concatenate(places))


def pack_keys(keys: Sequence[str]) -> Keys:
    """The bytes of some keys."""
    return np.frombuffer(bytes.fromhex("".join(keys)), _KEY)


def unpack_keys(keys: Keys) -> tuple[str, ...]:
    """The digits of packed keys."""
    digits = keys.tobytes().hex()
    return tuple(digits[at : at + KEY_DIGITS] for at in range(0, len(digits), KEY_DIGITS))


def write_snapshot(index: Index, recipe_id: str) -> bytes:
    """The snapshot of an index that is not empty, for `read_snapshot`."""
    shards = list(index.shards.values())
    tensors: dict[str, NDArray[Any]] = {
        "shards": np.array([[s.number, s.rows, s.bytes, *s.stamp] for s in shards], np.int64),
        "keys": np.concatenate([shard.keys for shard in shards]).view(np.uint8).reshape(-1, _KEY.itemsize),
        "frames_crc32c": np.concatenate([shard.frames_crc32c for shard in shards]),
    }
    return safetensors.numpy.save({**tensors, "seal": _seal(tensors, recipe_id)})


def read_snapshot(store: Path, recipe_id: str, shard_size: int, stamps: Mapping[int, Stamp]) -> Index | None:
    """What the snapshot knows of the records that are still the files it was made from.

    Returns:
        None where there is no snapshot of use; whatever is wrong with one costs time, never rows.
    """
    # a row here takes less than in the records, whose sizes are known
    limit = 2**16 + sum(min(stamp.bytes, RECORD_LIMIT_BYTES) for stamp in stamps.values())
    index = read_whole_snapshot(store, recipe_id, shard_size, limit)
    if index is None:
        return None
    return index.without(n for n, shard in index.shards.items() if stamps.get(n) != shard.stamp)


def read_whole_snapshot(
    store: Path, recipe_id: str, shard_size: int, limit_bytes: int = SNAPSHOT_LIMIT_BYTES
) -> Index | None:
    """All that the snapshot knows, whether its records are still there or not; None where there is none of use."""
    try:
        content = read_file(store / SNAPSHOT, limit_bytes, within=store)
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
        seal = tensors.pop("seal")
        table, keys, crcs = (tensors[name] for name in ("shards", "keys", "frames_crc32c"))
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    if not np.array_equal(seal, _seal(tensors, recipe_id)) or not _consistent(table, keys, crcs, shard_size):
        return None
    packed = keys.view(_KEY)[:, 0]
    starts = np.cumsum(table[:, 1]) - table[:, 1]
    shards = [
        Shard(number, size, packed[start : start + rows], crcs[start : start + rows], Stamp(*stamp))
        for (number, rows, size, *stamp), start in zip(table.tolist(), starts.tolist(), strict=True)
    ]
    return Index.from_shards(shards, shard_size)


def snapshot_numbers(store: Path) -> set[int]:
    """The shards that the snapshot speaks of, from the first part of it alone; none where there is no snapshot."""
    try:
        with open_file(store / SNAPSHOT, SNAPSHOT_LIMIT_BYTES, within=store) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > _HEADER_LIMIT_BYTES:
                return set()
            entry = json.loads(file.read(header_bytes))["shards"]
            (count, columns), (start, end) = entry["shape"], entry["data_offsets"]
            if entry["dtype"] != "I64" or not 0 <= end - start == 8 * count * columns or not 1 <= columns < 100:
                return set()
            file.seek(8 + header_bytes + start)
            table = np.frombuffer(file.read(end - start), "<i8").reshape(count, columns)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return set(table[:, 0].tolist())


def _consistent(table: NDArray[Any], keys: NDArray[Any], crcs: NDArray[Any], shard_size: int) -> bool:
    """Whether tensors anybody may have sealed can be indexed as ours are."""
    if (table.dtype, keys.dtype, crcs.dtype) != (np.int64, np.uint8, np.uint32):
        return False
    if (table.ndim, keys.ndim, crcs.ndim) != (2, 2, 2):
        return False
    if (table.shape, keys.shape) != ((len(table), 5), (len(crcs), _KEY.itemsize)) or not len(table):
        return False
    if (np.diff(table[:, 0]) <= 0).any():
        return False
    return bool(1 <= table[:, 1].min() <= table[:, 1].max() <= shard_size and table[:, 1].sum() == len(keys))


def _distinct(keys: Keys, rows: NDArray[np.int64]) -> tuple[Keys, NDArray[np.int64]]:
    """Each key once, in order, with its lowest row."""
    start = keys.view(">u8")[::2].astype(np.uint64)  # sorts five times faster than the whole key, and nearly as well
    order = np.argsort(start, kind="stable")
    start, keys, rows = start[order], keys[order], rows[order]
    alike: NDArray[np.bool_] = np.concatenate([[False], start[1:] == start[:-1], [False]])
    if alike.any():  # the same key in two shards, or, once in a universe, two keys that begin alike
        positions = np.flatnonzero(alike[1:] | alike[:-1])
        order = positions[np.lexsort((rows[positions], keys[positions], start[positions]))]
        keys[positions], rows[positions] = keys[order], rows[order]
        first = np.concatenate([[True], keys[1:] != keys[:-1]])
        keys, rows = keys[first], rows[first]
    return keys, rows


def _seal(tensors: Mapping[str, NDArray[Any]], recipe_id: str) -> NDArray[np.uint8]:
    return seal_tensors(tensors, f"theworld index {FORMAT} {recipe_id}")


