"""Take latents out of a store for good: a withdrawn licence, an opt-out, a wrong folder.

    the keys are listed in dropped/: from here on no reader sees them, and precompute does not make them
    ->  each shard that holds some is written again without them, under a new number
    ->  the old record, then the old payload, go to a folder of lost+found/ with a report (retire.py)

Each step may be interrupted: a dropped key stays invisible, every other row stays visible, and the next `drop` goes on.
The old payloads are kept, as a pattern may match more than was meant: a person deletes that folder at the end.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedShardError, LatentShapeError
from ...files.places.folder import path_or_url
from ...files.places.local import place_of
from ...files.places.place import Place
from ...messages import command, name_some
from ...progress import Progress
from ..commit import LOST_AND_FOUND
from ..folder import load_store
from ..keys.dropped import add_dropped, remove_dropped
from ..keys.packed_keys import is_in, pack_keys, unpack_keys
from ..latent_store import LatentStore
from ..records import origins_of, read_record
from ..sources.scan import sources_of
from .maintenance import alone
from .retire import finish_retirements, held_elsewhere, new_folder_aside, retiring

_AT_A_TIME = 64
"""Shards that are there twice for a while."""
_BLOCK_BYTES = 64 * 2**20
"""Rows of a bucket that are read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """What a drop did, or would do."""

    keys: tuple[str, ...]
    """That were asked for; all that were dropped before too where none were."""
    present: tuple[str, ...]
    """Of these, the ones with a latent that is visible now."""
    shards: tuple[int, ...]
    """Written again without them."""
    bytes: int
    """Of their old payloads."""
    folders: tuple[Path | str, ...] = ()
    """Of lost+found/, with the old payloads, records and a report: paths, or URLs. A person deletes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Undone:
    """What the undoing of a drop did, or would do."""

    keys: tuple[str, ...]
    """No longer dropped: precompute makes them again."""


def drop(
    path: Path | Place,
    keys: Collection[str],
    *,
    apply: bool,
    progress: Progress | None = None,
    break_lock: bool = False,
) -> Dropped:
    """Take latents out of a store. Without keys, finish what an interrupted drop began.

    Args:
        keys: with or without a latent here: those without are not made either.
        apply: False only says what would be done.
        break_lock: as for `alone`.
    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: another repair, gc, drop or compact is at work.
        DamagedShardError: a record, or a shard that would be written again, is damaged: repair first.
        StoreError: the store cannot be written.
    """
    place = place_of(path)
    wanted = sorted(set(keys))
    if not apply:
        return _plan(load_store(place), wanted)
    with alone(place, break_lock=break_lock):
        store = load_store(place)
        _require_sound_records(store)
        plan = _plan(store, wanted)
        add_dropped(store.place, wanted)
        store.publish()  # at once: other programs need not see what is still to be written again
        folders = list(finish_retirements(store).folders)
        _rewrite_all(store, folders, progress or Progress.silent())
        store.publish()  # always: an interrupted drop may have come to its end but for this
    return Dropped(
        keys=plan.keys,
        present=plan.present,
        shards=plan.shards,
        bytes=plan.bytes,
        folders=tuple(dict.fromkeys(folders)),
    )


def undo_drop(path: Path | Place, keys: Collection[str] | None, *, apply: bool, break_lock: bool = False) -> Undone:
    """Let precompute make dropped keys again; None takes all. What a drop moved to lost+found/ stays there.

    Raises:
        StoreNotFoundError, StoreLockedError, StoreError: as `drop`.
    """
    place = place_of(path)
    if not apply:
        return _undone(load_store(place), keys)
    with alone(place, break_lock=break_lock):
        store = load_store(place)
        undone = _undone(store, keys)
        _require_sound_records(store)
        folders: list[Path | str] = []
        finish_retirements(store)
        _rewrite_all(store, folders, Progress.silent())  # else rows still in a payload would come back by themselves
        remove_dropped(store.place, undone.keys)
        load_store(place).publish()
    return undone


def dropped_rows(store: LatentStore) -> dict[int, int]:
    """How many rows of dropped keys are still in the payload of which shards."""
    if not len(store.dropped):
        return {}
    rows = {number: int(is_in(shard.keys, store.dropped).sum()) for number, shard in store.shards.items()}
    return {number: count for number, count in rows.items() if count}


def follow_drops(source: LatentStore, target: LatentStore) -> None:
    """What was dropped in a store stays dropped in a copy of it, but for what the copy holds by itself."""
    dropped = unpack_keys(source.dropped[~is_in(source.dropped, target.dropped)])
    new = [key for key, is_held in zip(dropped, target.holds(dropped).tolist(), strict=True) if not is_held]
    if new:
        add_dropped(target.place, new)
        target.refresh()


def _undone(store: LatentStore, keys: Collection[str] | None) -> Undone:
    dropped = unpack_keys(store.dropped)
    return Undone(keys=dropped if keys is None else tuple(sorted(set(dropped) & set(keys))))


def _plan(store: LatentStore, keys: Sequence[str]) -> Dropped:
    keys = keys or unpack_keys(store.dropped)
    packed = np.unique(pack_keys(keys))
    shards = {number: shard.bytes for number, shard in store.shards.items() if is_in(shard.keys, packed).any()}
    present = [key for key, is_held in zip(keys, store.holds(keys).tolist(), strict=True) if is_held]
    return Dropped(keys=tuple(keys), present=tuple(present), shards=tuple(shards), bytes=sum(shards.values()))


def _require_sound_records(store: LatentStore) -> None:
    for message in store.bad_records.values():
        raise DamagedShardError(f"{message} Until then it is not known which keys its shard holds, so none is dropped")


def _rewrite_all(store: LatentStore, folders: list[Path | str], progress: Progress) -> None:
    """Write every shard with dropped rows again without them; the folders of the old ones are added to `folders`."""
    while rows := dropped_rows(store):  # a job that began before the drop may have committed more meanwhile
        numbers = list(rows)
        aside = _report(store, rows)
        folders.append(store.place.location(f"{LOST_AND_FOUND}/{aside}"))
        written = _held_by_others(store, numbers)
        with progress.bar("drop", total=len(numbers), unit="shards") as bar:
            for start in range(0, len(numbers), _AT_A_TIME):
                part = numbers[start : start + _AT_A_TIME]
                with retiring(store, part, why="drop", aside=aside) as outcome:
                    for number in part:
                        _write_again(store, number, written)
                if outcome[0].kept:
                    repair = command("cache", "repair", path_or_url(store.place), "--apply")
                    raise DamagedShardError(
                        f"{store.place}: the rows of shards {name_some(outcome[0].kept)} that stay could not all be "
                        f"written again, so these shards stay. Run `{repair}`, then the same command again"
                    )
                bar.advance(len(part))
        store.refresh()


def _held_by_others(store: LatentStore, numbers: Sequence[int]) -> set[str]:
    """The keys of some shards that sound other shards hold: an interrupted drop wrote them already."""
    keys = np.unique(np.concatenate([store.shards[number].keys for number in numbers]))
    return set(unpack_keys(keys[held_elsewhere(store, keys, without=set(numbers))]))


def _write_again(store: LatentStore, number: int, written: set[str]) -> None:
    """Commit the rows of a shard that were not dropped and not yet written; their keys are added to `written`."""
    record = read_record(store.place, number, store.recipe.id)
    dropped = is_in(pack_keys(record.keys), store.dropped).tolist()
    places = [at for at, key in enumerate(record.keys) if not dropped[at] and key not in written]
    if not places:
        return
    origins = [{**asdict(origin), "rows": origin.rows * len(places) / record.rows} for origin in origins_of(record)]
    with store.new_shard() as shard:
        for place, latent in _rows_of(store, number, places):
            try:
                shard.add(record.keys[place], latent)
            except LatentShapeError as error:  # its checksums are right, its numbers were never a latent
                repair = command("cache", "repair", path_or_url(store.place), "--deep", "--apply")
                raise DamagedShardError(f"{store.payload_location(number)}: {error}. Run `{repair}` first") from error
        shard.commit({"copied_from": origins}, again=True)
    written.update(record.keys[place] for place in places)


def _rows_of(store: LatentStore, number: int, places: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Some places of a shard and the latent at each, valid until the next one is asked for."""
    # in a bucket each read waits for an answer, so many are on their way at once
    block = 1 if store.place.is_local else max(1, min(len(places), _BLOCK_BYTES // store.layout.row_bytes))
    buffer = store.buffer(block)
    for start in range(0, len(places), block):
        part = places[start : start + block]
        yield from zip(part, store.read_rows(number * store.shard_size + np.array(part), buffer), strict=True)


def _report(store: LatentStore, rows: dict[int, int]) -> str:
    """Say in a folder of lost+found/ what will lie there, and why, before anything does; the folder's name."""
    aside = new_folder_aside(store.place, "dropped")
    of_shards = [store.shards[number].keys for number in rows]
    keys = np.unique(np.concatenate([keys[is_in(keys, store.dropped)] for keys in of_shards]))
    sources = sources_of(store.place, keys)
    report: dict[str, Any] = {
        "what": "shards that held latents which `theworld cache drop` took out of this store",
        "how to erase them": "delete this folder; no program reads it. The other rows of these shards were copied",
        "recipe_id": store.recipe.id,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "shards": list(rows),
        "dropped": [{"key": key, "sources": sources.get(key, [])} for key in unpack_keys(keys)],
    }
    content = f"{json.dumps(report, indent=1)}\n".encode()
    with store.place.writing():
        store.place.create(f"{LOST_AND_FOUND}/{aside}/report.json", content)
    return aside
