"""Delete what killed writers left: unfinished files, and payloads that no record names, once nobody can name them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ...errors import DamagedShardError
from ...files.atomic import remove
from ...files.places.folder import Folder
from ...files.places.local import place_of
from ...files.places.lock_object import freed_locks, require_held
from ...files.places.place import Place
from ..commit import LOST_AND_FOUND, leftovers, link_on_the_way
from ..folder import load_store
from ..latent_store import LatentStore
from ..payloads import unrecorded_payloads
from ..promises import promised_numbers
from .maintenance import alone, name_in
from .retire import check_notes, finish_retirements, pending_retirements

GRACE_S = 14 * 24 * 3600
"""A file no record names may belong to a writer between two of its steps; none takes two weeks."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a gc deleted, or would delete."""

    files: tuple[Path | str, ...]
    """Paths, or URLs."""
    bytes: int
    young: int
    """Files no record names that may still be in use, kept."""
    promised: int
    """Payloads whose record is missing, though the index states it: kept, and a matter for repair."""
    unfinished: int
    """Interrupted drops and compacts; with `apply`, finished."""
    set_aside: tuple[int, int]
    """Files and bytes in lost+found/, which gc never touches."""


class _Unnamed(NamedTuple):
    """A file that no record names."""

    location: Path | str
    modified: float
    bytes: int
    """That are free once it is deleted."""


def gc(path: Path | Place, *, apply: bool, grace_s: float = GRACE_S, break_lock: bool = False) -> Sweep:
    """Delete unfinished files and payloads that no record names, if nobody has touched them for `grace_s` seconds.

    Args:
        apply: False only says what would be deleted.
        break_lock: as for `alone`.
    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: another repair or gc is at work.
        DamagedShardError: a record is damaged, so which payload it names is not known: repair first.
        StoreError: the store cannot be written.
    """
    place = place_of(path)
    if not apply:
        return _sweep(place, time.time() - grace_s, apply=False)
    with alone(place, break_lock=break_lock), place.writing():
        unfinished = len(pending_retirements(place, but=check_notes(place)))
        if finish_retirements(store := load_store(place)).shards:
            store.publish()
        sweep = _sweep(place, place.now() - grace_s, apply=True)
        load_store(place).begin_writing()
        return replace(sweep, unfinished=unfinished)


def _sweep(place: Place, before: float, *, apply: bool) -> Sweep:
    store = load_store(place)
    if store.bad_records:
        raise DamagedShardError(
            f"{next(iter(store.bad_records.values()))} Until then it is not known which payloads are in use, so "
            "nothing is deleted"
        )
    unnamed_numbers = unrecorded_payloads(store)
    promised = unnamed_numbers & promised_numbers(store)
    names = [store.layout.payload_name(number) for number in sorted(unnamed_numbers - promised)]
    unnamed = list(_in_folder(store, place.path, names) if isinstance(place, Folder) else _in_bucket(place, names))
    old = [file for file in unnamed if file.modified < before]
    if apply:
        require_held(place)
        if isinstance(place, Folder):
            for file in old:
                remove(Path(file.location), within=place.path)
        else:
            place.remove_once([name_in(place, file.location) for file in old])
    kept_sizes = _sizes_aside(place)
    return Sweep(
        files=tuple(file.location for file in old),
        bytes=sum(file.bytes for file in old),
        young=len(unnamed) - len(old),
        promised=len(promised),
        unfinished=len(pending_retirements(place, but=check_notes(place))),
        set_aside=(len(kept_sizes), sum(kept_sizes)),
    )


def _in_folder(store: LatentStore, path: Path, payloads: list[str]) -> Iterator[_Unnamed]:
    """Unfinished files and some payloads, but for those behind links, which are no files of this store."""
    top = path / store.layout.payload_folder
    for file in [*leftovers(path), *(path / name for name in payloads)]:
        if link_on_the_way(file, top):
            continue
        try:
            status = file.lstat()
        except FileNotFoundError:  # its writer has finished with it
            continue
        size = status.st_size if status.st_nlink == 1 else 0
        yield _Unnamed(file, max(status.st_mtime, status.st_ctime), size)


def _in_bucket(place: Place, payloads: list[str]) -> Iterator[_Unnamed]:
    """Probes and locks of killed commands, and some payloads."""
    probes = [f"tmp/{name}" for name in place.names("tmp")]
    for name in [*probes, *freed_locks(place), *payloads]:
        if (entry := place.entry(name)) is not None:
            yield _Unnamed(place.location(name), entry.modified, entry.bytes)


def _sizes_aside(place: Place) -> list[int]:
    if isinstance(place, Folder):
        files = (place.path / LOST_AND_FOUND).rglob("*")
        return [file.lstat().st_size for file in files if file.is_symlink() or not file.is_dir()]
    return [entry.bytes for entry in place.entries(LOST_AND_FOUND, deep=True)]
