"""The index of an open store, kept true to the commit records that are in its folder.

A record is known by its name and inode, which one listing shows without looking at a file. A snapshot speaks for the
records that are still listed with the inode that it was made from. That is as good as reading them: a record is never
rewritten in place, and no writer takes a number that a snapshot speaks for (`next_number`). In a copy of a store, whose
inodes are others, it speaks for the records that end in the seal it was made from, the hash of their content. An edit
in place goes unnoticed here, and changes no row; `verify` reads the records themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ..errors import DamagedShardError
from ..files.places.place import Place
from ..files.sealed import seal
from .keys.index import Index
from .keys.runs import Run, Shard, Stamp, record_tags, shard_of
from .keys.snapshot import Snapshot, read_snapshot, write_snapshot
from .records import ShardRecord, damaged, read_sealed, record_name, record_path, record_seal, seal_of

_THREADS = 16
"""Look at the records of a copy: on a network file system each takes a millisecond, nearly all of it waiting."""
_REQUESTS = 64
"""Records of a bucket fetched at once."""
_SHARE_OF_NEW = 4
"""The second file of a snapshot has at most one row for so many of the first."""


class Catalog:
    """What is known of the records of one store. Not thread-safe.

    Attributes:
        index: of the visible shards; read only after `refresh`.
        bad: number -> why its record cannot be used.
    """

    def __init__(
        self, store: Place, recipe_id: str, shard_size: int, is_possible: Callable[[int, int, int], bool]
    ) -> None:
        """
        Args:
            is_possible: whether a shard of this store can have so many rows, bytes, and checksums a row.
        """
        self._store, self._recipe_id, self._shard_size, self._is_possible = store, recipe_id, shard_size, is_possible
        self.index = Index([], shard_size)
        self.bad: dict[int, str] = {}
        self._highest_known = -1
        """The highest number that the snapshot speaks for, though its record may be gone."""
        self.is_loaded = False
        self._tags: dict[int, int] = {}
        """Of the records that `index` and `bad` know."""

    def refresh(self, *, tolerate_damage: bool) -> set[int]:
        """See what has been committed, or moved away, since. Opens only the records not yet read.

        Returns:
            The shards that are gone, or have another record by now.
        Raises:
            DamagedShardError: a record is not what was committed, unless that is tolerated; then it is in `bad`.
        """
        listed = record_tags(self._store)
        gone = {number for number, inode in self._tags.items() if listed.get(number) != inode}
        if gone:
            self.index = self.index.without(gone)
            self.bad = {number: message for number, message in self.bad.items() if number not in gone}
            for number in gone:
                del self._tags[number]
        if not self.is_loaded:
            self._load(listed)
            self.is_loaded = True
        shards, bad = self._read(sorted(listed.keys() - self._tags.keys()), listed, tolerate_damage=tolerate_damage)
        self.index = self.index.with_shards(shards)
        self.bad |= bad
        self._tags |= {number: listed[number] for number in (*bad, *(shard.number for shard in shards))}
        return gone

    def add(self, record: ShardRecord) -> None:
        """Know a record that this process has just committed, without listing the others."""
        if not self.is_loaded or record.shard in self._tags:
            return
        try:
            entry = self._store.entry(record_name(record.shard))
        except (OSError, ValueError):
            return
        seal_bits = seal_of(seal(record.to_json()))
        if entry is None or seal_bits is None:  # moved away already
            return
        self.index = self.index.with_shards([shard_of(record, Stamp(entry.tag, seal_bits))])
        self._tags[record.shard] = entry.tag

    def learn(self, number: int, *, tolerate_damage: bool) -> bool:
        """Know one record, without listing the others; whether there is one.

        Raises:
            DamagedShardError: as `refresh`.
        """
        if number in self._tags:
            return True
        try:
            entry = self._store.entry(record_name(number))
        except ValueError:
            return False
        if entry is None:
            return False
        shards, bad = self._read([number], {number: entry.tag}, tolerate_damage=tolerate_damage)
        if not shards and not bad:  # moved away meanwhile
            return False
        self.index = self.index.with_shards(shards)
        self.bad |= bad
        self._tags[number] = entry.tag
        return True

    def disregard(self, numbers: Collection[int], problem: str) -> None:
        """Count shards as unusable, whose record is sound."""
        self.index = self.index.without(numbers)
        self.bad |= dict.fromkeys(numbers, problem)

    @property
    def next_number(self) -> int:
        """The first shard number above all that have a record, or that a snapshot speaks for."""
        return 1 + max(self._highest_known, *self.index.shards.numbers[-1:].tolist(), *self.bad, -1)

    def publish(self) -> None:
        """Write the snapshot, where that of the folder does not speak for all that is here."""
        folder = self._store.tag_of_folder("commits")
        on_disk = [
            snapshot
            for snapshot in self._snapshots(len(self._tags))
            if snapshot.folder == folder and self._knows_all(snapshot.run)
        ]
        numbers = self.index.shards.numbers
        for snapshot in on_disk:
            numbers = np.setdiff1d(numbers, snapshot.run.numbers)
        if not len(numbers) and on_disk:
            return
        if on_disk:
            base = on_disk[0]
            new = self.index.without(base.run.numbers.tolist()).merged
            if new is not None and len(new) * _SHARE_OF_NEW <= len(base.run):
                write_snapshot(self._store, self._stamped(new), self._recipe_id, folder=folder, base=base.seal)
                return
        if (whole := self.index.merged) is not None:
            write_snapshot(self._store, self._stamped(whole), self._recipe_id, folder=folder)
            self._map_anew(whole)

    def _map_anew(self, written: Run) -> None:
        """Use the file just written in place of the same arrays in this process's memory."""
        snapshot = read_snapshot(self._store, self._recipe_id, self._shard_size, listed=len(self._tags))
        if snapshot is not None and np.array_equal(snapshot.run.numbers, written.numbers):
            self.index = self.index.held_by(snapshot.run)

    def _knows_all(self, run: Run) -> bool:
        """Whether each record that a run speaks for is here, as the run knows it."""
        inodes = self._tags
        return all(
            inodes.get(n) == inode for n, inode in zip(run.numbers.tolist(), run.stamps[:, 0].tolist(), strict=True)
        )

    def _stamped(self, run: Run) -> Run:
        """A run with the inodes that the records have here."""
        stamps = run.stamps.copy()
        stamps[:, 0] = [self._tags[number] for number in run.numbers.tolist()]
        return replace(run, stamps=stamps)

    def _snapshots(self, listed: int) -> list[Snapshot]:
        base = read_snapshot(self._store, self._recipe_id, self._shard_size, listed=listed)
        if base is None:
            return []
        new = read_snapshot(self._store, self._recipe_id, self._shard_size, listed=listed, base=base.seal)
        return [base] if new is None else [base, new]

    def _load(self, listed: dict[int, int]) -> None:
        """Take what the snapshot knows of the records that are still the ones it was made from."""
        folder = self._store.tag_of_folder("commits")
        has_inodes = len(set(listed.values())) == len(listed)  # some file systems in user space have none
        for snapshot in self._snapshots(len(listed)):
            run = snapshot.run
            self._highest_known = max(self._highest_known, int(run.numbers[-1]))
            if not self._is_possible_run(run):
                continue
            numbers = run.numbers.tolist()
            inodes = np.array([listed.get(number, 0) for number in numbers], np.uint64)
            is_listed = (inodes > 0) & [number not in self._tags for number in numbers]
            is_known = is_listed & (inodes == run.stamps[:, 0]) & (snapshot.folder == folder and has_inodes)
            if (doubtful := np.flatnonzero(is_listed & ~is_known)).size:
                seals = self._seals(run.numbers[doubtful].tolist())
                own_seals = run.stamps[doubtful, 1].tolist()
                is_known[doubtful] = [seal == own for seal, own in zip(seals, own_seals, strict=True)]
            self.index = self.index.with_run(run).without(run.numbers[~is_known].tolist())
            self._tags |= dict(zip(run.numbers[is_known].tolist(), inodes[is_known].tolist(), strict=True))

    def _is_possible_run(self, run: Run) -> bool:
        sizes = np.unique(np.stack([run.shard_rows, run.shard_bytes]), axis=1)
        return all(self._is_possible(rows, size, run.frames_crc32c.shape[1]) for rows, size in sizes.T.tolist())

    def _seals(self, numbers: Sequence[int]) -> list[int | None]:
        if len(numbers) < _THREADS * _THREADS:
            return self._seals_of_part(numbers)
        size = -(-len(numbers) // _THREADS)
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = pool.map(self._seals_of_part, (numbers[at : at + size] for at in range(0, len(numbers), size)))
            return [seal for part in parts for seal in part]

    def _seals_of_part(self, numbers: Sequence[int]) -> list[int | None]:
        return [record_seal(self._store, number) for number in numbers]

    def _read(
        self, numbers: Iterable[int], listed: dict[int, int], *, tolerate_damage: bool
    ) -> tuple[list[Shard], dict[int, str]]:
        shards: list[Shard] = []
        bad: dict[int, str] = {}
        for number, found in self._read_each(list(numbers), listed):
            if isinstance(found, DamagedShardError):
                if not tolerate_damage:
                    raise found
                bad[number] = str(found)
            elif found is not None:
                shards.append(found)
        return shards, bad

    def _read_each(
        self, numbers: Sequence[int], listed: dict[int, int]
    ) -> Iterator[tuple[int, Shard | DamagedShardError | None]]:
        if self._store.is_local or len(numbers) < 2:
            for number in numbers:
                yield number, self._read_one(number, listed[number])
            return
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for start in range(0, len(numbers), _REQUESTS * _REQUESTS):  # what is ahead takes memory
                part = numbers[start : start + _REQUESTS * _REQUESTS]
                yield from zip(part, pool.map(self._read_one, part, map(listed.__getitem__, part)), strict=True)

    def _read_one(self, number: int, tag: int) -> Shard | DamagedShardError | None:
        """The shard of a record, what is wrong with it, or None where it was moved away since it was listed."""
        try:
            record, seal = read_sealed(self._store, number, self._recipe_id)
        except FileNotFoundError:
            return None
        except DamagedShardError as error:
            return error
        shard = shard_of(record, Stamp(tag, seal))
        if not self._is_possible(shard.rows, shard.bytes, shard.frames_crc32c.shape[1]):
            return damaged(
                record_path(self._store, number),
                f"it states {shard.rows} rows in {shard.bytes} bytes, which no shard of this store can have",
            )
        return shard
