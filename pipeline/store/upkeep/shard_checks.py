"""Verify single shards: a record by its seal, a payload by its size, its checksums and its rows made again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash

from ...errors import DamagedShardError, LatentShapeError
from ...files.inside import require_inside
from ...messages import name_some
from ..keys.index import SNAPSHOT, Shard
from ..latent_store import LatentStore
from ..payload_sizes import listed_problem, size_problem
from ..records import ShardRecord, read_record, record_name, record_path, unreadable
from .findings import MOST_ALIKE, Finding, Level
from .names import Stated, is_there

_BLOCK_BYTES = 2**22
_REQUESTS, _DOWNLOADS = 64, 8
"""Shards of a bucket looked into at once: their records and sizes, or all their bytes."""
_MANY = {
    "record": "records are not what was committed",
    "payload": "payloads are not what their records state",
    "index": "records are not what the index says",
}


class ShardFindings:
    """What was found of single shards: the first of each sort in full, of all others their number and their files."""

    def __init__(self, store: LatentStore) -> None:
        self._store = store
        self._first: list[Finding] = []
        self._more: dict[str, list[int]] = {}
        self._counts = Counter[str]()
        self.harmed: set[int | None] = set()

    def add(self, finding: Finding | None) -> None:
        if finding is None:
            return
        self.harmed.add(finding.shard)
        self._counts[finding.what] += 1
        if self._counts[finding.what] <= MOST_ALIKE or finding.shard is None:
            self._first.append(finding)
        else:
            self._more.setdefault(finding.what, []).append(finding.shard)

    def findings(self) -> Iterator[Finding]:
        yield from self._first
        store = self._store
        for what, numbers in self._more.items():
            names = (name for n in numbers for name in (record_name(n), store.layout.payload_name(n)))
            existing = (SNAPSHOT,) if what == "index" else tuple(name for name in names if is_there(store.place, name))
            locations = tuple(map(store.place.location, existing))
            rows = int(store.shards.some(np.array(numbers), with_keys=False).rows.sum())
            samples = f", with {rows:,} samples" if rows and what != "index" else ""
            message = f"{store.place}: {len(numbers):,} more {_MANY[what]} (shards {name_some(numbers)}){samples}"
            yield Finding(True, what, message, locations, count=len(numbers))


def look_into(
    store: LatentStore,
    numbers: list[int],
    level: Level,
    stated: Mapping[int, Stated],
    sizes: Mapping[str, int] | None,
) -> Iterator[tuple[Finding | None, int]]:
    """What is wrong with each of some shards, and how many bytes were read to know.

    In a bucket many are looked into at once, as each waits for answers.

    Args:
        stated: by the records that are known to be sound.
        sizes: of the payloads, where they were listed; None looks at each.
    """
    if store.place.is_local or len(numbers) < 2:
        for number in numbers:
            yield _shard(store, number, level, stated.get(number), sizes)
        return
    with ThreadPoolExecutor(_REQUESTS if level == "names" else _DOWNLOADS) as pool:
        looks = [pool.submit(_shard, store, number, level, stated.get(number), sizes) for number in numbers]
        yield from (look.result() for look in looks)


def _shard(
    store: LatentStore, number: int, level: Level, stated: Stated | None, sizes: Mapping[str, int] | None
) -> tuple[Finding | None, int]:
    record_file, payload = record_path(store.place, number), store.payload_location(number)
    record = None
    if stated is None:
        try:
            record = read_record(store.place, number, store.recipe.id)
        except FileNotFoundError:  # moved away meanwhile
            return None, 0
        except DamagedShardError as error:
            return Finding(True, "record", str(error), (record_file, payload), number), 0
        shard = store.shards.get(number)
        if shard is None:
            return Finding(True, "record", store.bad_records[number], (record_file, payload), number), 0
        if not _agree(record, shard):
            path = store.place.location(SNAPSHOT)
            return Finding(True, "index", f"{path} does not say what {record_file} does", (path,), number), 0
        stated = Stated(record.rows, record.bytes)
    read = 0
    try:
        problem = _size_problem(store, stated.bytes, number, sizes)
        if problem is None and level != "names" and record is not None:
            read = record.bytes
            problem = _bytes_problem(store, record, level)
        if problem is None and level == "deep" and record is not None:
            problem = _row_problem(store, record)
    except ValueError as error:
        problem = str(error)
    except OSError as error:
        if not isinstance(store_error := unreadable(payload, number, error), DamagedShardError):
            raise store_error from error
        problem = error.strerror or str(error)
    if problem is None:
        return None, read
    keys = f"{stated.rows} samples are lost until precompute makes them again"
    message = f"{payload} (shard {number}): {problem}; {keys}"
    return Finding(True, "payload", message, (record_file, payload), number), read


def _agree(record: ShardRecord, shard: Shard) -> bool:
    same_rows = ("".join(record.keys), record.bytes) == (shard.keys.tobytes().hex(), shard.bytes)
    return same_rows and np.array_equal(record.checksums(), shard.frames_crc32c)


def _size_problem(store: LatentStore, stated_bytes: int, number: int, sizes: Mapping[str, int] | None) -> str | None:
    name = store.layout.payload_name(number)
    if sizes is not None:
        return listed_problem(sizes, name, stated_bytes)
    problem = size_problem(store.place, name, stated_bytes, number)
    if problem is None and store.place.is_local:
        require_inside(store.path, store.payload_path(number))
    return problem


def _bytes_problem(store: LatentStore, record: ShardRecord, level: Level) -> str | None:
    digests: list[tuple[Any, str, str]] = [(xxhash.xxh3_128(), record.xxh3_128, "xxh3")]
    if level == "deep":
        digests.append((hashlib.sha256(), record.sha256, "sha256"))
    with store.place.open(store.layout.payload_name(record.shard), record.bytes) as file:
        while block := file.read(_BLOCK_BYTES):
            for digest, _, _ in digests:
                digest.update(block)
    for digest, stated, name in digests:
        if digest.hexdigest() != stated:
            return f"its content does not match the {name} in its record"
    return None


def _row_problem(store: LatentStore, record: ShardRecord) -> str | None:
    """Whether a row is not, byte for byte, what this version writes for its key and numbers."""
    layout = store.layout
    frames = layout.sample_shape[1]
    reads = layout.reads(frames)
    recorded: list[list[int]] = record.checksums().tolist()
    memory = np.zeros((1, reads.memory_bytes), np.uint8)
    values, rewritten = layout.values(memory, frames)[0], layout.new_row()
    with store.place.open(layout.payload_name(record.shard), record.bytes) as file:
        for place, key in enumerate(record.keys):
            row = file.read(layout.row_bytes)
            for offset, at, size in reads.segments:
                memory[0, at : at + size] = np.frombuffer(row[offset : offset + size], np.uint8)
            try:
                checksums = layout.encode(key, values, rewritten)
            except LatentShapeError as error:
                return f"row {place}: {error}"
            if rewritten.tobytes() != row:
                return f"row {place} ({key}) is not what its numbers would be written as"
            if checksums != recorded[place]:
                return f"row {place} ({key}) is not the one its record describes"
        if file.read() != layout.trailer(record.rows):
            return "what follows its last row is not what a shard ends with"
    return None
