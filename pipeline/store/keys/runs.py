"""Sorted runs: the keys of some shards in order, and the row of each. Nothing changes them.

A key is found by binary search over its first eight bytes, as a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...files.places.place import Place
from ..records import ShardRecord, record_number
from .packed_keys import Halves, Keys, join_halves, key_order, pack_keys, split_halves


class Stamp(NamedTuple):
    """How a record file is known again without being parsed. Records are never rewritten in place."""

    tag: int
    """In the folder that it was read from: its inode there, which a copy does not share."""
    seal: int
    """The first 64 bits of its seal, which is the hash of its content: a copy has the same."""


class Shard:
    """What reading needs to know of one committed shard."""

    __slots__ = ("_keys", "_places", "_run", "bytes", "frames_crc32c", "number", "stamp")

    def __init__(
        self, number: int, bytes: int, keys: Keys | Run, frames_crc32c: NDArray[np.uint32], stamp: Stamp, first: int = 0
    ) -> None:
        """
        Args:
            keys: of its rows; or the run that holds them, from row `first` on.
        """
        self.number = number
        self.bytes = bytes
        """Of the payload."""
        self.frames_crc32c = frames_crc32c
        """(rows, F): CRC-32C of the first F frames of each row."""
        self.stamp = stamp
        self._keys, self._run = (None, keys) if isinstance(keys, Run) else (keys, None)
        self._places = slice(first, first + len(frames_crc32c))

    @property
    def rows(self) -> int:
        return len(self.frames_crc32c)

    @property
    def keys(self) -> Keys:
        """Of its rows, in their order."""
        if self._keys is None:
            assert self._run is not None
            self._keys = self._run.keys_of(self._places)
        return self._keys


def record_tags(store: Place) -> dict[int, int]:
    """The shards that have a record, and the tag of each, from one listing; no file is looked at."""
    tags = store.tags("commits")
    return {number: tag for name, tag in tags.items() if (number := record_number(name)) is not None}


def shard_of(record: ShardRecord, stamp: Stamp) -> Shard:
    """The arrays of a record."""
    return Shard(record.shard, record.bytes, pack_keys(record.keys), record.checksums(), stamp)


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """Some shards and their keys. Arrays may be mapped from a file: nothing writes to them.

    Rows of the run are those of its shards one after another. A place is a position in the sorted keys.
    """

    numbers: NDArray[np.int64]
    """(S,) ascending; so are the next three by shard."""
    shard_rows: NDArray[np.int64]
    shard_bytes: NDArray[np.int64]
    """Of the payloads."""
    stamps: NDArray[np.uint64]
    """(S, 2) tag and seal of the records."""
    high: NDArray[np.uint64]
    """(N,) by place: the first eight bytes of each key."""
    low: NDArray[np.uint64]
    """(N,) by place: the last eight bytes."""
    rows: NDArray[np.int64]
    """(N,) by place: the row in the Zarr array. A key that several shards hold has its lowest row first."""
    places: NDArray[np.uint32]
    """(N,) by row of the run."""
    frames_crc32c: NDArray[np.uint32]
    """(N, F) by row of the run."""
    distinct: int
    """How many different keys there are."""

    def __len__(self) -> int:
        return len(self.high)

    def firsts(self) -> NDArray[np.int64]:
        """(S,) the first row of the run of each shard."""
        return np.cumsum(self.shard_rows) - self.shard_rows

    def keys_of(self, rows: slice | NDArray[np.int64]) -> Keys:
        """The keys of some rows of the run."""
        places = self.places[rows]
        return join_halves(self.high[places], self.low[places])

    def find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The first place of each key; -1 where it is not here."""
        if not len(self):
            return np.full(len(high), -1, np.int64)
        places = np.searchsorted(self.high, high)
        at = np.minimum(places, len(self) - 1)
        begins_alike, here = self.high[at] == high, self.low[at]
        result = np.where(begins_alike & (here == low), at, -1)
        # once in a universe two keys begin alike; but a test, or a stranger, may make them so
        others = np.flatnonzero(begins_alike & (here < low))
        if others.size:
            result[others] = self._find_among_alike(places[others], high[others], low[others])
        return result

    def _find_among_alike(
        self, places: NDArray[np.int64], high: NDArray[np.uint64], low: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        begin, end = places, np.searchsorted(self.high, high, "right")
        ends = end.copy()
        while (open_ones := begin < end).any():
            middle = np.minimum((begin + end) // 2, len(self) - 1)
            is_before = self.low[middle] < low
            begin = np.where(open_ones & is_before, middle + 1, begin)
            end = np.where(open_ones & ~is_before, middle, end)
        at = np.minimum(begin, len(self) - 1)
        return np.where((begin < ends) & (self.low[at] == low), at, -1)


def run_of(shards: Iterable[Shard], shard_size: int) -> Run:
    """The run of at least one shard."""
    ordered = sorted(shards, key=lambda shard: shard.number)
    high, low = split_halves(np.concatenate([shard.keys for shard in ordered]))
    return sorted_run(
        np.array([[shard.number, shard.rows, shard.bytes] for shard in ordered], np.int64).T,
        np.array([shard.stamp for shard in ordered], np.uint64),
        (high, low),
        np.concatenate([shard.frames_crc32c for shard in ordered]),
        shard_size,
    )


def sorted_run(
    table: NDArray[np.int64],
    stamps: NDArray[np.uint64],
    halves: Halves,
    crcs: NDArray[np.uint32],
    shard_size: int,
) -> Run:
    """A run of shards in order of their numbers, `halves` and `crcs` by row."""
    numbers, shard_rows, shard_bytes = table
    high, low = halves
    order = key_order(high, low)
    places = np.empty(len(order), np.uint32)
    places[order] = np.arange(len(order), dtype=np.uint32)
    firsts = np.cumsum(shard_rows) - shard_rows
    rows = np.arange(len(high)) + np.repeat(numbers * shard_size - firsts, shard_rows)
    high, low = high[order], low[order]
    repeats = int(np.count_nonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1])))
    return Run(
        numbers, shard_rows, shard_bytes, stamps, high, low, rows[order], places, crcs, distinct=len(high) - repeats
    )
