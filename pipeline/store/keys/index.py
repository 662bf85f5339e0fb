"""Which keys a store holds and where: the shards' keys in sorted runs, searched like a dictionary.

A large store has one run that was mapped from disk (snapshot.py), and small ones of the shards committed since. Runs of
about one size are merged, so that a store that grows shard by shard has few.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .packed_keys import (
    AnyKeys,
    Halves,
    Keys,
    are_keys,
    is_in,
    is_packed,
    join_halves,
    pack_keys,
    split_halves,
    unpack_keys,
)
from .runs import Run, Shard, Stamp, record_tags, run_of, shard_of, sorted_run

__all__ = [
    "SNAPSHOT",
    "SNAPSHOT_FROM_SHARDS",
    "AnyKeys",
    "Index",
    "Keys",
    "Run",
    "Shard",
    "Shards",
    "Stamp",
    "pack_keys",
    "record_tags",
    "shard_of",
    "unpack_keys",
]

SNAPSHOT = "index.safetensors"
"""The first file of a snapshot (snapshot.py)."""
SNAPSHOT_FROM_SHARDS = 64
"""Fewer records are read as fast one by one."""
_BLOCK = 2**21
"""Keys looked up at a time: what that takes of memory stays small."""
_GROUP_FROM = 4096
"""So many keys are looked up in groups that begin alike, whose neighbours in memory are then still in the cache."""


class Shards(Mapping[int, Shard]):
    """Shards by number, ascending; each is an object only while it is looked at."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._firsts = [part.run.firsts() for part in parts]

    def __getitem__(self, number: int) -> Shard:
        for part, firsts in zip(self._parts, self._firsts, strict=True):
            run = part.run
            at = int(np.searchsorted(run.numbers, number))
            if at < len(run.numbers) and run.numbers[at] == number and part.has_shard(at):
                first, rows = int(firsts[at]), int(run.shard_rows[at])
                stamp = Stamp(*run.stamps[at].tolist())
                crcs = run.frames_crc32c[first : first + rows]
                return Shard(int(number), int(run.shard_bytes[at]), run, crcs, stamp, first)
        raise KeyError(number)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers.tolist())

    def __len__(self) -> int:
        return sum(len(part.numbers) for part in self._parts)

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """All numbers."""
        return np.sort(np.concatenate([part.numbers for part in self._parts] or [np.empty(0, np.int64)]))

    def table(self) -> NDArray[np.int64]:
        """(S, 3) number, rows and bytes of the payload of each, without making an object of any."""
        some = self.some(self.numbers, with_keys=False)
        return np.stack([some.numbers, some.rows, some.bytes], 1)

    def some(self, numbers: NDArray[np.int64], *, with_keys: bool = True) -> SomeShards:
        """Some shards at once, many times as fast as one by one; those that are not here have no rows."""
        rows, sizes = np.zeros((2, len(numbers)), np.int64)
        seals = np.zeros(len(numbers), np.uint64)
        found: list[tuple[Run, NDArray[np.int64], NDArray[np.int64]]] = []
        for part, firsts in zip(self._parts, self._firsts, strict=True):
            run = part.run
            at = np.minimum(np.searchsorted(run.numbers, numbers), len(run.numbers) - 1)
            is_here = run.numbers[at] == numbers
            if not isinstance(part.shown, slice):
                is_here &= part.shown[at]
            places, at = np.flatnonzero(is_here), at[is_here]
            rows[places], sizes[places], seals[places] = run.shard_rows[at], run.shard_bytes[at], run.stamps[at, 1]
            found.append((run, firsts[at], places))
        keys = np.zeros(rows.sum() if with_keys else 0, pack_keys([]).dtype)
        starts = np.cumsum(rows) - rows
        for run, firsts, places in found if with_keys else ():
            counts = rows[places]
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            keys[np.repeat(starts[places], counts) + within] = run.keys_of(np.repeat(firsts, counts) + within)
        return SomeShards(numbers, rows, sizes, seals, keys)


@dataclass(frozen=True, eq=False, slots=True)
class SomeShards:
    """What is known of some shards, as arrays."""

    numbers: NDArray[np.int64]
    """(S,); so are the next three."""
    rows: NDArray[np.int64]
    bytes: NDArray[np.int64]
    """Of the payloads."""
    seals: NDArray[np.uint64]
    """The first 64 bits of the records' seals."""
    keys: Keys
    """Of all rows, shard after shard."""


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """A run, and which of its shards still have the record that it was made from."""

    run: Run
    shown: slice | NDArray[np.bool_]
    """(S,), or a slice of all: nearly always."""

    @property
    def is_whole(self) -> bool:
        return isinstance(self.shown, slice)

    @property
    def numbers(self) -> NDArray[np.int64]:
        return self.run.numbers[self.shown]

    def has_shard(self, at: int) -> bool:
        return isinstance(self.shown, slice) or bool(self.shown[at])

    def has_row(self, rows: NDArray[np.int64], shard_size: int) -> NDArray[np.bool_]:
        """Whether rows of the Zarr array, of this run, are of a shard that is shown."""
        if isinstance(self.shown, slice):
            return np.ones(len(rows), bool)
        return self.shown[np.searchsorted(self.run.numbers, rows // shard_size)]

    def without(self, numbers: NDArray[np.int64]) -> _Part:
        kept = ~np.isin(self.run.numbers, numbers)
        if not isinstance(self.shown, slice):
            kept &= self.shown
        return self if kept.all() else _Part(self.run, kept)


class Index:
    """The visible rows of a store; never changes. Of shards that hold the same key, the lowest counts."""

    def __init__(self, runs: Iterable[Run], shard_size: int) -> None:
        self.shard_size = shard_size
        self._parts = tuple(_Part(run, slice(None)) for run in runs)
        self._hidden = pack_keys([])
        """Keys that are never found, in order."""

    @classmethod
    def from_shards(cls, shards: Iterable[Shard], shard_size: int) -> Index:
        """The index of some shards."""
        return cls([], shard_size).with_shards(shards)

    def with_shards(self, shards: Iterable[Shard]) -> Index:
        """This and more shards."""
        added = list(shards)
        return self.with_run(run_of(added, self.shard_size)) if added else self

    def with_run(self, run: Run) -> Index:
        """This and the shards of a run."""
        parts = [*self._parts, _Part(run, slice(None))]
        # the first may be mapped, and is merged only when a snapshot is written
        while len(parts) > 2 and len(parts[-2].run) <= 2 * len(parts[-1].run):
            parts[-2:] = [_Part(merge_parts(parts[-2:], self.shard_size), slice(None))]
        return self._with_parts(parts)

    def held_by(self, run: Run) -> Index:
        """The same rows, held by one run."""
        return self._with_parts([_Part(run, slice(None))])

    def without(self, numbers: Iterable[int]) -> Index:
        """This but for some shards."""
        gone = np.array([*numbers], np.int64)
        parts = [part.without(gone) for part in self._parts]
        return self._with_parts([part for part in parts if len(part.numbers)])

    @property
    def hidden(self) -> Keys:
        """The keys that are never found, in order."""
        return self._hidden

    def rows_and_keys(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], Keys]:
        """The array rows of some shards and the key of each, but for hidden keys."""
        some = self.shards.some(numbers)
        firsts = np.cumsum(some.rows) - some.rows
        rows = np.arange(len(some.keys)) + np.repeat(numbers * self.shard_size - firsts, some.rows)
        if not len(self._hidden):
            return rows, some.keys
        is_shown = ~is_in(some.keys, self._hidden)
        return rows[is_shown], some.keys[is_shown]

    def hiding(self, keys: Keys) -> Index:
        """This, without the rows of some keys, which are in order: they were dropped (dropped.py)."""
        if len(keys) == len(self._hidden) and (keys == self._hidden).all():
            return self
        index = self._with_parts(self._parts)
        index._hidden = keys
        return index

    @cached_property
    def shards(self) -> Shards:
        """By number, ascending."""
        return Shards(self._parts)

    @property
    def array_rows(self) -> int:
        """N of the Zarr array: up to and with the last row of the highest shard."""
        if not len(self.shards):
            return 0
        last = int(self.shards.numbers[-1])
        return last * self.shard_size + self.shards[last].rows

    @property
    def merged(self) -> Run | None:
        """All visible shards as one run; None where there are none."""
        if len(self._parts) == 1 and self._parts[0].is_whole:
            return self._parts[0].run
        return merge_parts(self._parts, self.shard_size) if self._parts else None

    @property
    def tail(self) -> Run | None:
        """The visible shards that the first run does not hold; None where there are none."""
        return merge_parts(self._parts[1:], self.shard_size) if self._parts[1:] else None

    @property
    def head(self) -> Run | None:
        """The first run, if all of it is visible."""
        return self._parts[0].run if self._parts and self._parts[0].is_whole else None

    @cached_property
    def _len(self) -> int:
        count = 0
        for number, part in enumerate(self._parts):
            if number == 0 and part.is_whole:  # nearly all there are: not gone through
                count += part.run.distinct
                continue
            earlier = self._with_parts(self._parts[:number])
            places = self._with_parts([part])._visible_places(part)
            found = earlier._find_in_parts(part.run.high[places], part.run.low[places])
            count += int(np.count_nonzero(found < 0))
        return count

    def __len__(self) -> int:
        return self._len - (int((self._find(*split_halves(self._hidden)) >= 0).sum()) if len(self._hidden) else 0)

    def find(self, keys: AnyKeys) -> NDArray[np.int64]:
        """The array row of each key; -1 where it is not here, or is no key."""
        if not is_packed(keys):
            digits = cast(Sequence[str], keys)
            if not are_keys(digits):
                return self._find_some(digits)
            keys = pack_keys(digits)
        result = np.empty(len(keys), np.int64)
        for start in range(0, len(keys), _BLOCK):
            block = keys[start : start + _BLOCK]
            rows = self._find(*split_halves(block))
            if len(self._hidden):
                rows[is_in(block, self._hidden)] = -1
            result[start : start + _BLOCK] = rows
        return result

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The array row of every key once, ascending."""
        visible = [self._visible(part) for part in self._parts]
        return np.sort(np.concatenate(visible)) if visible else np.empty(0, np.int64)

    def packed_keys(self) -> Keys:
        """Every key once, by row."""
        rows, keys = [np.empty(0, np.int64)], [pack_keys([])]
        for part in self._parts:
            places = self._shown_places(part)
            rows.append(part.run.rows[places])
            keys.append(join_halves(part.run.high[places], part.run.low[places]))
        return np.concatenate(keys)[np.argsort(np.concatenate(rows))]

    def by_row(self) -> tuple[Keys, NDArray[np.int64]]:
        """Every key once, by row, and these rows."""
        return self.packed_keys(), self.rows

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every key once, by row."""
        return unpack_keys(self.packed_keys())

    def _with_parts(self, parts: Sequence[_Part]) -> Index:
        index = Index([], self.shard_size)
        index._parts = tuple(parts)
        index._hidden = self._hidden
        return index

    def _find_some(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """`find` where some are no keys."""
        sound = np.array([are_keys([key]) for key in keys], bool)
        result = np.full(len(keys), -1, np.int64)
        result[sound] = self.find(pack_keys([key for key, good in zip(keys, sound, strict=True) if good]))
        return result

    def _find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        if len(high) < _GROUP_FROM:
            return self._find_in_parts(high, low)
        order = np.argsort((high >> np.uint64(48)).astype(np.uint16), kind="stable")  # 16 bits: numpy's radix sort
        result = np.empty(len(high), np.int64)
        result[order] = self._find_in_parts(high[order], low[order])
        return result

    def _find_in_parts(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        result = np.full(len(high), -1, np.int64)
        for part in self._parts:
            rows = self._find_in_part(part, high, low)
            result = np.where((rows >= 0) & ((result < 0) | (rows < result)), rows, result)
        return result

    def _find_in_part(self, part: _Part, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        run = part.run
        places = run.find(high, low)
        hits = np.flatnonzero(places >= 0)
        rows = np.full(len(high), -1, np.int64)
        while hits.size:
            at = places[hits]
            shown = part.has_row(run.rows[at], self.shard_size)
            rows[hits[shown]] = run.rows[at[shown]]
            hits = hits[~shown]  # of a shard that is gone: the next shard with the same key counts
            places[hits] += 1
            hits = hits[places[hits] < len(run)]
            at = places[hits]
            hits = hits[(run.high[at] == high[hits]) & (run.low[at] == low[hits])]
        return rows

    def _visible(self, part: _Part) -> NDArray[np.int64]:
        return part.run.rows[self._shown_places(part)]

    def _shown_places(self, part: _Part) -> NDArray[np.int64]:
        """`_visible_places`, but for hidden keys."""
        places = self._visible_places(part)
        if not len(self._hidden):
            return places
        return places[~is_in(join_halves(part.run.high[places], part.run.low[places]), self._hidden)]

    def _visible_places(self, part: _Part) -> NDArray[np.int64]:
        """The places of a run whose row is the one that counts for its key."""
        run = part.run
        if len(self._parts) == 1 and part.is_whole and run.distinct == len(run):
            return np.arange(len(run))
        is_first = part.has_row(run.rows, self.shard_size)  # a shard's number may be another's by now, its keys too
        for start in range(0, len(run), _BLOCK):
            block = slice(start, start + _BLOCK)
            is_first[block] &= self._find_in_parts(run.high[block], run.low[block]) == run.rows[block]
        return np.flatnonzero(is_first)


def merge_parts(parts: Sequence[_Part], shard_size: int) -> Run:
    """One run of the shards shown in several."""
    tables: list[NDArray[np.int64]] = []
    stamps: list[NDArray[np.uint64]] = []
    halves: list[Halves] = []
    crcs: list[NDArray[np.uint32]] = []
    for part in parts:
        run = part.run
        tables.append(np.stack([run.numbers, run.shard_rows, run.shard_bytes])[:, part.shown])
        stamps.append(run.stamps[part.shown])
        places, kept_crcs = run.places, run.frames_crc32c
        if not isinstance(part.shown, slice):
            kept = np.repeat(part.shown, run.shard_rows)
            places, kept_crcs = places[kept], kept_crcs[kept]
        halves.append((run.high[places], run.low[places]))
        crcs.append(kept_crcs)
    table, stamp = np.concatenate(tables, 1), np.concatenate(stamps)
    high, low = (np.concatenate([half[number] for half in halves]) for number in (0, 1))
    crc = np.concatenate(crcs)
    order = np.argsort(table[0], kind="stable")
    if (np.diff(order) < 0).any():
        firsts = (np.cumsum(table[1]) - table[1])[order]
        table, stamp = table[:, order], stamp[order]
        moved = np.cumsum(table[1]) - table[1]
        rows = np.arange(len(high)) + np.repeat(firsts - moved, table[1])
        high, low, crc = high[rows], low[rows], crc[rows]
    return sorted_run(table, stamp, (high, low), crc, shard_size)
