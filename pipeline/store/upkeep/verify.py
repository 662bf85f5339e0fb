"""Check every file of a store against its checksum or record. Changes nothing.

names   every record's seal, every payload's presence and size, the manifest, Zarr's metadata, both logs; and
        whether all is here that the index, the array and the sources promise
read    and the xxh3 of every payload: all its bytes
deep    and the sha256, and every row made again from its numbers, bit by bit: shape, finite, checksums, tar headers
        and a few rows read by zarr-python or webdataset
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from ...errors import ConfigError, DamagedShardError, LatentShapeError, StoreMismatchError
from ...files.inside import require_inside
from ...files.places.folder import path_or_url
from ...files.places.local import place_of
from ...files.places.place import Place
from ...messages import MAX_NAMES, command, format_bytes, name_some
from ...progress import Progress
from .. import ledger
from ..commit import leftovers
from ..find import MANIFEST
from ..folder import load_store
from ..keys.dropped import check_dropped, salvage
from ..keys.index import SNAPSHOT, Shard, record_tags
from ..keys.snapshot import read_snapshot
from ..latent_store import LatentStore
from ..payload_sizes import size_problem
from ..payloads import unrecorded_payloads
from ..promises import Unmade, lines_of, only_digests, promised_and_gone, promised_numbers, unmade_keys
from ..reading.views import second_opinion
from ..records import ShardRecord, read_record, record_name, record_path, unreadable
from ..sources.scan import sources_bytes
from .drop import dropped_rows
from .names import Stated, is_file, is_in_place, is_there, sound_records
from .retire import check_notes, pending_retirements

Level = Literal["names", "read", "deep"]
LEVELS: tuple[Level, ...] = ("names", "read", "deep")
_BLOCK_BYTES = 2**22
_AT_A_TIME = 256
"""Shards whose keys are compared at once."""
_REQUESTS, _DOWNLOADS = 64, 8
"""Shards of a bucket looked into at once: their records and sizes, or all their bytes."""
_MOST_ALIKE = 20
"""Findings of one sort that are told one by one; of a store without payloads there are tens of thousands."""
_MANY = {
    "record": "records are not what was committed",
    "payload": "payloads are not what their records state",
    "index": "records are not what the index says",
}
_ORPHANS = "left by killed writers (see gc), or their records were not copied"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a store a person should know."""

    damage: bool
    """False: harmless, only worth knowing."""
    what: str
    """One word: manifest, record, payload, missing, zarr, index, log, dropped, retiring, unmade, orphan, leftover,
    twice."""
    message: str
    paths: tuple[Path | str, ...] = ()
    """The files (in a bucket, their URLs) it is about; what a repair moves away."""
    shard: int | None = None
    count: int = 1
    """How many shards it stands for."""


_QUICK_SOURCES_BYTES = 2**28
"""About three million inputs, whose keys are compared in two seconds."""
_NOT_COMPARED = Finding(
    False, "log", "the inputs in sources/ are too many to be compared with the latents by names: add --read for that"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was looked at, and what was found."""

    store: Path | str
    level: Level
    shards: int
    """Looked into, of all."""
    of_shards: int
    samples: int
    """Visible ones, of the whole store."""
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def damage(self) -> tuple[Finding, ...]:
        """The findings that are damage."""
        return tuple(finding for finding in self.findings if finding.damage)

    @property
    def damaged(self) -> int:
        """How many files and shards are damaged or missing."""
        return sum(finding.count for finding in self.damage)

    def to_json(self) -> dict[str, Any]:
        """Plain values; of a finding that stands for many shards, the first paths."""
        findings = [
            {**asdict(replace(f, paths=())), "paths": [str(path) for path in f.paths[:_MOST_ALIKE]]}
            for f in self.findings
        ]
        fields = {name: getattr(self, name) for name in ("level", "shards", "of_shards", "samples", "bytes_read")}
        return {"store": str(self.store), **fields, "damaged": self.damaged, "findings": findings}

    def lines(self) -> list[str]:
        """As a person reads it."""
        total = f" of {self.of_shards}" if self.shards < self.of_shards else ""
        messages = [f"{'DAMAGE' if finding.damage else 'note'}: {finding.message}" for finding in self.findings]
        read = f", {format_bytes(self.bytes_read)} read" if self.bytes_read else ""
        deep = ["--deep"] if self.level == "deep" else []
        repair = command("cache", "repair", self.store, *deep, "--apply")
        heal = f"`{repair}` moves what is damaged aside, and keeps a list of what is missing; nothing is deleted"
        if any(finding.what == "manifest" for finding in self.damage):
            heal = "No repair can make this file again"
        unmade = " in what is here" if any(finding.what == "unmade" for finding in self.findings) else ""
        return [
            *messages,
            f"{self.store}: {self.samples} samples, {self.shards}{total} shards verified ({self.level}){read}: "
            + (f"{self.damaged} damaged. {heal}" if self.damage else f"no damage{unmade}"),
        ]


def verify(
    path: str | Path | Place,
    *,
    level: Level = "names",
    sample: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check a store against its records.

    Args:
        path: a store; in a bucket, with a line of what will be fetched before anything is.
        sample: (i, n), look only into every n-th shard from the i-th, 1 <= i <= n: n calls together see all.
    Raises:
        StoreNotFoundError: there is no store.
        StoreError: it is of another version, or a file cannot be read by this user.
        ConfigError: no such sample.
    """
    if sample is not None and not 1 <= sample[0] <= sample[1]:
        raise ConfigError(f"--sample must be i/n with 1 <= i <= n, got {sample[0]}/{sample[1]}")
    place = place_of(path)
    try:
        store = load_store(place)
    except DamagedShardError as error:
        finding = Finding(True, "manifest", str(error), (place.location(MANIFEST),))
        return Verification(
            store=path_or_url(place), level=level, shards=0, of_shards=0, samples=0, bytes_read=0, findings=(finding,)
        )
    numbers = sorted({*store.shards, *store.bad_records})  # what a writer commits from here on is not looked into
    chosen = numbers if sample is None else numbers[sample[0] - 1 :: sample[1]]
    of_shards = _OfShards(store)
    bytes_read = 0
    progress = progress or Progress.silent()
    if not place.is_local:
        size = sum(store.shards[number].bytes for number in chosen if number in store.shards)
        payloads = "" if level == "names" else f" and {format_bytes(size)} of payloads"
        progress.say(f"{place}: {len(chosen):,} records{payloads} are fetched, in {2 * len(chosen):,} requests or more")
    with progress.bar("verify", total=len(chosen), unit="shards") as bar:
        for start in range(0, len(chosen), _AT_A_TIME):
            part = chosen[start : start + _AT_A_TIME]
            stated = sound_records(store, part) if level == "names" else {}
            doubtful = [n for n in part if n not in stated or not is_in_place(store, n, stated[n].bytes)]
            for finding, read in _look_into(store, doubtful, level, stated):
                bytes_read += read
                of_shards.add(finding)
            bar.advance(len(part))
    findings = list(of_shards.findings())
    if level == "deep" and store.place.is_local:  # zarr-python and webdataset are shown files
        sound = (number for number in chosen if number not in of_shards.harmed and number in store.shards)
        findings += (Finding(True, "zarr", problem) for problem in second_opinion(store, sound))
    with_keys = level != "names" or sources_bytes(store.place) <= _QUICK_SOURCES_BYTES
    unmade = unmade_keys(store) if with_keys else only_digests(store)
    return Verification(
        store=path_or_url(place),
        level=level,
        shards=len(chosen),
        of_shards=len(numbers),
        samples=len(store),
        bytes_read=bytes_read,
        findings=(
            *findings,
            *_missing(store, unmade),
            *(() if with_keys else (_NOT_COMPARED,)),
            *_metadata(store, unmade if level == "names" else None),
            *_strays(store),
            *_unfinished(store),
        ),
    )


class _OfShards:
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
        if self._counts[finding.what] <= _MOST_ALIKE or finding.shard is None:
            self._first.append(finding)
        else:
            self._more.setdefault(finding.what, []).append(finding.shard)

    def findings(self) -> Iterator[Finding]:
        yield from self._first
        store = self._store
        for what, numbers in self._more.items():
            names = (name for n in numbers for name in (record_name(n), store.layout.payload_name(n)))
            there = (SNAPSHOT,) if what == "index" else tuple(name for name in names if is_there(store.place, name))
            locations = tuple(map(store.place.location, there))
            rows = int(store.shards.some(np.array(numbers), with_keys=False).rows.sum())
            samples = f", with {rows:,} samples" if rows and what != "index" else ""
            message = f"{store.place}: {len(numbers):,} more {_MANY[what]} (shards {name_some(numbers)}){samples}"
            yield Finding(True, what, message, locations, count=len(numbers))


def _shard(store: LatentStore, number: int, level: Level, stated: Stated | None) -> tuple[Finding | None, int]:
    """What is wrong with a shard, and how many bytes were read to know.

    Args:
        stated: by its record, if that is known to be sound.
    """
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
        problem = _size_problem(store, stated.bytes, number)
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


def _size_problem(store: LatentStore, stated_bytes: int, number: int) -> str | None:
    problem = size_problem(store.place, store.layout.payload_name(number), stated_bytes, number)
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


def _missing(store: LatentStore, unmade: Unmade) -> Iterator[Finding]:
    """What was promised and is not here."""
    gone = promised_and_gone(store)
    for line in lines_of(store, gone):
        yield Finding(True, "missing", line, gone.payloads)
    if not gone and len(unmade.keys):
        yield Finding(
            False,
            "unmade",
            f"{len(unmade.keys)} inputs of recorded jobs have no latent ({', '.join(unmade.names[:MAX_NAMES])}"
            f"{' …' if len(unmade.keys) > MAX_NAMES else ''}): never made, or missing in this copy. Running precompute "
            "with the same flags makes them",
        )


def _metadata(store: LatentStore, scanned: Unmade | None) -> Iterator[Finding]:
    """
    Args:
        scanned: of the sources, of which only the unsound files are read row by row; None reads all.
    """
    try:
        if store.zarr_group is not None:
            store.zarr_group.check()
    except StoreMismatchError as error:
        yield Finding(True, "zarr", str(error), (store.place.location("latents/zarr.json"),))
    stale = [] if store.zarr_group is None else store.zarr_group.stale(store.index)
    place = store.place
    for name in dict.fromkeys((*stale, SNAPSHOT)):
        location = place.location(name)
        if isinstance(location, Path) and is_there(place, name) and not location.is_file():
            yield Finding(True, "index", f"{location} is not a file, so nothing can be written there", (location,))
        elif name != SNAPSHOT:
            yield Finding(False, "index", f"{location} does not state what is here; repair makes it again")
    for name, message in ledger.check(place, sources=None if scanned is None else scanned.unsound).items():
        yield Finding(True, "log", message, (place.location(name),))
    for name, message in check_dropped(place).items():
        left = f"{len(salvage(place, name))} of its keys can be read and stay dropped; others may come back"
        yield Finding(True, "dropped", f"{message} ({left})", (place.location(name),))
    for path, message in check_notes(store.path).items() if place.is_local else ():
        yield Finding(True, "retiring", message, (path,))
    if is_file(place, SNAPSHOT):
        listed = len(record_tags(place))
        if read_snapshot(place, store.recipe.id, store.shard_size, listed=listed) is None:
            yield Finding(False, "index", f"{place.location(SNAPSHOT)} is of no use; the records are read instead")


def _strays(store: LatentStore) -> Iterator[Finding]:
    promised = promised_numbers(store)  # these are missing, and not nobody's
    orphans = [n for n in unrecorded_payloads(store) if n not in promised]
    if orphans:
        yield Finding(False, "orphan", f"{_count(orphans, 'payload')} without a record: {_ORPHANS}")
    if store.place.is_local and (unfinished := leftovers(store.path, quick=True)):
        hidden = any(file.parent.name != "tmp" for file in unfinished)
        where = ", some hidden beside their targets" if hidden else " in tmp/"
        message = f"{len(unfinished)} unfinished files{where}: of running or killed writers: see gc"
        yield Finding(False, "leftover", message)
    dropped = dropped_rows(store)
    if twice := int(store.shards.table()[:, 1].sum()) - sum(dropped.values()) - len(store):
        yield Finding(False, "twice", f"{twice} rows hold a key that another shard holds too; each is visible once")


def _unfinished(store: LatentStore) -> Iterator[Finding]:
    """What an interrupted drop or compact left for the next one."""
    if not store.place.is_local:  # only on a disk is anything dropped or compacted
        return
    bad = check_notes(store.path)
    for file, note in pending_retirements(store.path, but=bad).items():
        finish = command("cache", "gc", store.path, "--apply")
        shards = _count(note.shards, "shard")
        message = f"{note.why} was interrupted before {shards} were taken away ({file.name}): `{finish}` finishes it"
        yield Finding(False, "retiring", message)
    if hidden := dropped_rows(store):
        finish = command("cache", "drop", store.path, "--apply")
        message = f"{sum(hidden.values())} rows of dropped keys are invisible, but still in {_count(hidden, 'payload')}"
        yield Finding(False, "dropped", f"{message}: `{finish}` takes them out")


def _look_into(
    store: LatentStore, numbers: list[int], level: Level, stated: Mapping[int, Stated]
) -> Iterator[tuple[Finding | None, int]]:
    """`_shard` of some; in a bucket many at once, as each waits for answers."""
    if store.place.is_local or len(numbers) < 2:
        for number in numbers:
            yield _shard(store, number, level, stated.get(number))
        return
    with ThreadPoolExecutor(_REQUESTS if level == "names" else _DOWNLOADS) as pool:
        looks = [pool.submit(_shard, store, number, level, stated.get(number)) for number in numbers]
        yield from (look.result() for look in looks)


def _count(items: Collection[object], noun: str) -> str:
    return f"{len(items)} {noun}{'s' * (len(items) != 1)}"
