"""Replace shards: commit new ones, then take the old ones away. Interrupted anywhere, no row is lost or comes back.

    note in retiring/, fsync  ->  the new shards are committed as ever
    ->  the records of the old shards go, then their payloads  ->  the note goes

The note is only a list of what to look at. Whoever goes through it, at once or after a crash, takes an old shard away
only if each of its keys was dropped (dropped.py) or stands in another shard whose payload is there. So a note that is
out of date, half done or a stranger's takes nothing away that is not there twice. What is to be deleted for good, or
kept in a folder of lost+found/, stands in the note, so that a crash does not change it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import DamagedShardError
from ...files.atomic import remove_all, sync_folder
from ...files.inside import held_folder
from ...files.places.folder import Folder
from ...files.places.local import place_of
from ...files.places.lock_object import require_held
from ...files.places.place import Place
from ...files.plain import limited_json
from ...files.sealed import seal, unseal
from ...messages import list_problems
from ..commit import LOST_AND_FOUND, link_on_the_way
from ..keys.packed_keys import Keys, is_in, pack_keys
from ..latent_store import LatentStore
from ..records import Sha256, damaged, is_gone, read_record, record_name, unreadable
from .maintenance import set_aside
from .names import is_there

RETIRING = "retiring"
_NOTE_NAME = re.compile(r"[0-9a-f]{32}\.json")
_NOTE_LIMIT_BYTES = 64 * 2**20

Why = Literal["compact", "drop"]


class Note(BaseModel):
    """Which shards are to be taken away, once others hold what they hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    why: Why
    aside: Annotated[str, Field(pattern=r"^[a-z]{1,20}-[0-9]{1,9}$")] | None
    """The folder of lost+found/ that keeps what is taken away; None deletes it."""
    shards: dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")], Sha256]
    """Number -> SHA-256 of the payload: a number may belong to another shard later."""

    checked: bool = False
    """Whether other shards were seen to hold all that these do, before the first of these was taken away."""

    @property
    def payloads(self) -> dict[int, str]:
        """`shards`, by number."""
        return {int(number): sha256 for number, sha256 in self.shards.items()}


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of the shards that were to be taken away."""

    shards: tuple[int, ...] = ()
    """Taken away."""
    kept: tuple[int, ...] = ()
    """Still the only ones that hold some of their rows."""
    folders: tuple[Path | str, ...] = ()
    """Where what was taken away is kept: paths, or URLs."""


@contextmanager
def retiring(
    store: LatentStore, numbers: Collection[int], *, why: Why, aside: str | None = None
) -> Generator[list[Retired]]:
    """Inside the block commit shards that hold the rows of some old ones; at its end the old ones are taken away.

    The store must be locked (maintenance.py `alone`), and the caller publishes it afterwards. Use
    `commit(…, again=True)`: without it nothing is committed where all keys are held already.

        with alone(path):
            store = load_store(path)
            finish_retirements(store)
            with retiring(store, [3, 4, 5], why="compact") as outcome:
                with store.new_shard() as shard:
                    …
                    shard.commit(facts, again=True)
            store.publish()

    Args:
        numbers: shards of `store` with a sound record.
        aside: folder of lost+found/ (`new_folder_aside`) that keeps their files. None deletes them.
    Yields:
        A list that holds the one `Retired` after the block. Where the block raises, it stays empty, all shards stay,
        and the next repair, gc, drop or compact finishes what can be finished.
    Raises:
        DamagedShardError: a record is not what was committed.
        StoreError: the store cannot be written.
    """
    outcome: list[Retired] = []
    shards = {str(number): read_record(store.place, number, store.recipe.id).sha256 for number in sorted(numbers)}
    if not shards:
        yield outcome
        return
    before = set(store.shards)
    file = write_note(store.place, Note(why=why, aside=aside, shards=shards))
    yield outcome
    outcome.append(_finish(store, file, before=before))


def pending_retirements(where: Path | Place, *, but: Collection[str] = ()) -> dict[str, Note]:
    """The notes that an interrupted command left, by the names of their files.

    Args:
        but: files that are left out, as they are damaged.
    Raises:
        DamagedShardError: another note is not what was written.
    """
    store = place_of(where)
    pending: dict[str, Note] = {}
    for name in _notes(store):
        with suppress(FileNotFoundError):  # finished meanwhile
            if name not in but:
                pending[name] = _read_note(store, name)
    return pending


def check_notes(store: Place) -> dict[str, str]:
    """The notes that are not what was written, by the names of their files, and what is wrong with each."""
    bad: dict[str, str] = {}
    for name in _notes(store):
        try:
            _read_note(store, name)
        except FileNotFoundError:
            continue
        except DamagedShardError as error:
            bad[name] = str(error)
    return bad


def finish_retirements(store: LatentStore) -> Retired:
    """Finish what an interrupted drop or compact began. The store must be locked; the caller publishes it.

    A damaged note is left alone: the shards it named stay, which costs room and nothing else.

    Raises:
        StoreError: the store cannot be written.
    """
    bad = check_notes(store.place)
    done = [_finish(store, file) for file in _notes(store.place) if file not in bad]
    return Retired(
        tuple(number for retired in done for number in retired.shards),
        tuple(number for retired in done for number in retired.kept),
        tuple(dict.fromkeys(folder for retired in done for folder in retired.folders)),
    )


def new_folder_aside(where: Path | Place, name: str) -> str:
    """Make a folder of lost+found/ that nothing else uses, such as `dropped-3`; its name."""
    store = place_of(where)
    if not isinstance(store, Folder):  # there it is made with its first object
        taken, number = store.below(LOST_AND_FOUND).folders(), 1
        while f"{name}-{number}" in taken:
            number += 1
        return f"{name}-{number}"
    with store.writing(), held_folder(store.path, store.path / LOST_AND_FOUND) as top:
        number = 1
        while True:
            with suppress(FileExistsError):
                os.mkdir(top / f"{name}-{number}")  # noqa: PTH102
                sync_folder(top)
                return f"{name}-{number}"
            number += 1


def held_elsewhere(
    store: LatentStore, keys: Keys, *, without: Collection[int], among: Iterable[int] | None = None
) -> NDArray[np.bool_]:
    """Which keys stand in a shard other than some, whose payload is there with its size.

    Args:
        among: look only at these shards. None looks at all.
    """
    ordered, back = np.unique(keys, return_inverse=True)
    held = np.zeros(len(ordered), bool)
    for number in store.shards if among is None else among:
        shard = store.shards[number]
        if number in without or not len(ordered):
            continue
        places = np.minimum(np.searchsorted(ordered, shard.keys), len(ordered) - 1)
        hits = places[ordered[places] == shard.keys]
        if len(hits) and not held[hits].all() and _payload_size(store, number) == shard.bytes:
            held[hits] = True
    return held[back]


def _finish(store: LatentStore, file: str, *, before: Collection[int] | None = None) -> Retired:
    """Take away what a note names, as far as nothing is lost by it, and then the note.

    Args:
        before: the shards there were when the note was written. Later ones are looked at first: mostly they are enough.
    """
    place = store.place
    try:
        note = _read_note(place, file)
    except FileNotFoundError:
        return Retired()
    store.refresh()
    retired, kept = _sort_out(store, note, before)
    with place.writing():
        if not note.checked:  # from here on a payload without its record is known to be one of ours
            checked = note.model_copy(update={"checked": True, "shards": {str(n): note.payloads[n] for n in retired}})
            remove_before, file = file, write_note(place, checked)
            place.remove([remove_before])
        require_held(place)
        records = [name for number in retired if is_there(place, name := record_name(number))]
        if note.aside is None:
            place.remove_once(records)
        for name in () if note.aside is None else records:
            set_aside(place, name, folder=note.aside or "")
        named = set(records)
        for number in retired:
            with_record = record_name(number) in named
            if _is_payload(store, number, None if with_record else note.payloads[number]):
                _take_payload(store, number, note.aside)
        if isinstance(place, Folder):
            sync_folder(place.path / store.layout.payload_folder)
        place.remove([file])
    store.refresh()
    folders = () if note.aside is None else (place.location(f"{LOST_AND_FOUND}/{note.aside}"),)
    return Retired(tuple(retired), tuple(kept), folders)


def _sort_out(store: LatentStore, note: Note, before: Collection[int] | None) -> tuple[list[int], list[int]]:
    """Which of a note's shards can go, and which hold rows that nothing else holds."""
    retired: list[int] = []
    rows: dict[int, Keys] = {}
    for number, sha256 in note.payloads.items():
        try:
            record = read_record(store.place, number, store.recipe.id)
        except FileNotFoundError:
            if note.checked:  # an interrupted run came this far
                retired.append(number)
            continue
        except DamagedShardError:  # a matter for repair
            continue
        if record.sha256 == sha256:  # else the number is another shard's by now
            keys = pack_keys(record.keys)
            rows[number] = keys[~is_in(keys, store.dropped)]
    needed = np.concatenate([pack_keys([]), *rows.values()])
    held = np.zeros(len(needed), bool)
    later = None if before is None else [number for number in store.shards if number not in before]
    for among in (later, None) if later is not None else (None,):
        if not held.all():
            held[~held] = held_elsewhere(store, needed[~held], without=note.payloads.keys(), among=among)
    kept: list[int] = []
    start = 0
    for number, keys in rows.items():
        (retired if held[start : start + len(keys)].all() else kept).append(number)
        start += len(keys)
    return sorted(retired), kept


def _is_payload(store: LatentStore, number: int, sha256: str | None) -> bool:
    """Whether there is a payload to take away.

    Args:
        sha256: where its record was gone already: of its bytes, which may be those of a writer at work by now.
    """
    place, name = store.place, store.layout.payload_name(number)
    if isinstance(place, Folder) and link_on_the_way(place.path / name, place.path / store.layout.payload_folder):
        return False
    if not is_there(place, name):
        return False
    if sha256 is None:
        return True
    try:
        with place.open(name, sys.maxsize) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except (OSError, ValueError):
        return False


def _take_payload(store: LatentStore, number: int, aside: str | None) -> None:
    place, name = store.place, store.layout.payload_name(number)
    if aside is not None:
        set_aside(place, name, folder=aside)
    elif not isinstance(place, Folder):
        place.remove_once([name])
    if not isinstance(place, Folder):
        return
    payload, top = place.path / name, place.path / store.layout.payload_folder
    if aside is None:
        # its folders go too, or the one above all is synced: should a power cut bring it back, gc takes it
        remove_all(payload.parent, [payload.name], within=place.path, durable=False)
    for folder in payload.parents:  # the folders of a Zarr shard take inodes; one that a writer just uses is not empty
        if folder == top:
            return
        try:
            folder.rmdir()
        except OSError:
            return


def write_note(where: Path | Place, note: Note) -> str:
    """Keep a note; the same twice is one file. Its name."""
    store = place_of(where)
    content = seal(note.model_dump(mode="json"))
    name = f"{RETIRING}/{hashlib.sha256(content).hexdigest()[:32]}.json"
    with store.writing():
        store.create(name, content)
    return name


def _payload_size(store: LatentStore, number: int) -> int | None:
    try:
        entry = store.place.entry(store.layout.payload_name(number))
    except (OSError, ValueError):
        return None
    return None if entry is None else entry.bytes


def _notes(store: Place) -> list[str]:
    try:
        return [f"{RETIRING}/{name}" for name in store.names(RETIRING) if _NOTE_NAME.fullmatch(name)]
    except OSError as error:
        raise unreadable(store.location(RETIRING), None, error) from error


def _read_note(store: Place, name: str) -> Note:
    file = store.location(name)
    try:
        return Note.model_validate_json(unseal(limited_json(store.read(name, _NOTE_LIMIT_BYTES))))
    except ValidationError as error:
        raise damaged(file, list_problems(error)) from error
    except ValueError as error:
        raise damaged(file, str(error)) from error
    except OSError as error:
        if is_gone(error, file):
            raise
        raise unreadable(file, None, error) from error
