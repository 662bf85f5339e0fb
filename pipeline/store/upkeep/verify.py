"""Check every file of a store against its checksum or record. Changes nothing.

names   every record's seal, every payload's presence and size, the manifest, Zarr's metadata, both logs; and
        whether all is here that the index, the array and the sources promise
read    and the xxh3 of every payload: all its bytes
deep    and the sha256, and every row made again from its numbers, bit by bit: shape, finite, checksums, tar headers
        and a few rows read by zarr-python or webdataset
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from ...errors import ConfigError, DamagedShardError, StoreMismatchError
from ...files.places.folder import Folder, path_or_url
from ...files.places.local import place_of
from ...files.places.lock_object import freed_locks, lock_of
from ...files.places.place import Place
from ...messages import MAX_NAMES, command, format_bytes
from ...progress import Progress
from .. import ledger
from ..commit import leftovers
from ..find import MANIFEST
from ..folder import load_store
from ..keys.dropped import check_dropped, salvage
from ..keys.index import SNAPSHOT, record_tags
from ..keys.snapshot import read_snapshot
from ..latent_store import LatentStore
from ..payload_sizes import listed_sizes
from ..payloads import unrecorded_payloads
from ..promises import Unmade, lines_of, only_digests, promised_and_gone, promised_numbers, unmade_keys
from ..reading.views import second_opinion
from ..sources.scan import sources_bytes
from .drop import dropped_rows
from .findings import LEVELS, Finding, Level, Verification
from .names import is_file, is_in_place, is_there, sound_records
from .retire import check_notes, pending_retirements
from .shard_checks import ShardFindings, look_into

__all__ = ["LEVELS", "Finding", "Level", "Verification", "verify"]

_AT_A_TIME = 256
"""Shards whose keys are compared at once."""
_ORPHANS = "left by killed writers (see gc), or their records were not copied"
_QUICK_SOURCES_BYTES = 2**28
"""About three million inputs, whose keys are compared in two seconds."""
_NOT_COMPARED = Finding(
    False, "log", "the inputs in sources/ are too many to be compared with the latents by names: add --read for that"
)


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
    of_shards = ShardFindings(store)
    bytes_read = 0
    progress = progress or Progress.silent()
    sizes = None
    if not place.is_local:
        size = sum(store.shards[number].bytes for number in chosen if number in store.shards)
        payloads, requests = ("", 1) if level == "names" else (f" and {format_bytes(size)} of payloads", 2)
        requests *= len(chosen)
        progress.say(f"{place}: {len(chosen):,} records{payloads} are fetched, in {requests:,} requests or more")
        sizes = listed_sizes(place, store.layout.payload_folder)
    with progress.bar("verify", total=len(chosen), unit="shards") as bar:
        for start in range(0, len(chosen), _AT_A_TIME):
            part = chosen[start : start + _AT_A_TIME]
            stated = sound_records(store, part) if level == "names" else {}
            doubtful = [n for n in part if n not in stated or not is_in_place(store, n, stated[n].bytes)]
            for finding, read in look_into(store, doubtful, level, stated, sizes):
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
    for name, message in check_notes(place).items():
        yield Finding(True, "retiring", message, (place.location(name),))
    if is_file(place, SNAPSHOT):
        listed = len(record_tags(place))
        if read_snapshot(place, store.recipe.id, store.shard_size, listed=listed) is None:
            yield Finding(False, "index", f"{place.location(SNAPSHOT)} is of no use; the records are read instead")


def _strays(store: LatentStore) -> Iterator[Finding]:
    promised = promised_numbers(store)  # these are missing, and not nobody's
    orphans = [n for n in unrecorded_payloads(store) if n not in promised]
    if orphans:
        yield Finding(False, "orphan", f"{_count(orphans, 'payload')} without a record: {_ORPHANS}")
    place = store.place
    if isinstance(place, Folder) and (unfinished := leftovers(place.path, quick=True)):
        hidden = any(file.parent.name != "tmp" for file in unfinished)
        where = ", some hidden beside their targets" if hidden else " in tmp/"
        message = f"{len(unfinished)} unfinished files{where}: of running or killed writers: see gc"
        yield Finding(False, "leftover", message)
    if not isinstance(place, Folder):
        if probes := [*place.names("tmp"), *freed_locks(place)]:
            yield Finding(False, "leftover", f"{_count(probes, 'probe')} of running or killed commands: see gc")
        if (holder := lock_of(place)) is not None:
            yield Finding(False, "locked", f"a repair, gc, drop or compact is at work, or was killed. {holder}")
    dropped = dropped_rows(store)
    if twice := int(store.shards.table()[:, 1].sum()) - sum(dropped.values()) - len(store):
        yield Finding(False, "twice", f"{twice} rows hold a key that another shard holds too; each is visible once")


def _unfinished(store: LatentStore) -> Iterator[Finding]:
    """What an interrupted drop or compact left for the next one."""
    where = path_or_url(store.place)
    for name, note in pending_retirements(store.place, but=check_notes(store.place)).items():
        finish = command("cache", "gc", where, "--apply")
        shards, file = _count(note.shards, "shard"), name.rpartition("/")[2]
        message = f"{note.why} was interrupted before {shards} were taken away ({file}): `{finish}` finishes it"
        yield Finding(False, "retiring", message)
    if hidden := dropped_rows(store):
        finish = command("cache", "drop", where, "--apply")
        message = f"{sum(hidden.values())} rows of dropped keys are invisible, but still in {_count(hidden, 'payload')}"
        yield Finding(False, "dropped", f"{message}: `{finish}` takes them out")


def _count(items: Collection[object], noun: str) -> str:
    return f"{len(items)} {noun}{'s' * (len(items) != 1)}"
