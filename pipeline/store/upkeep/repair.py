"""`repair` moves damaged files to lost+found/; `gc` deletes old files that no record names."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import DamagedShardError
from ...files.atomic import TempFile, remove, writing
from ...files.inside import held_folder
from ...files.places.place import Place
from ...progress import Progress
from ..commit import LOST_AND_FOUND, leftovers, link_on_the_way
from ..find import require_folder
from ..folder import load_store
from ..keys.dropped import add_dropped, salvage
from ..keys.snapshot import remove_snapshot
from ..payloads import unrecorded_payloads
from ..promises import promised_and_gone, promised_numbers, report_gone
from .maintenance import alone, set_aside
from .retire import check_notes, finish_retirements, pending_retirements
from .verify import Finding, Level, Verification, verify

GRACE_S = 14 * 24 * 3600
"""A file no record names may belong to a writer between two of its steps; none takes two weeks."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, or would do."""

    verification: Verification
    moved: tuple[Path, ...]
    """What was moved to lost+found/; without `apply`, what would be."""
    unhealed: tuple[Finding, ...]
    """Damage that moving files away cannot heal."""
    report: Path | str | None = None
    """The list in lost+found/ of what was promised and is gone."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a gc deleted, or would delete."""

    files: tuple[Path, ...]
    bytes: int
    young: int
    """Files no record names that may still be in use, kept."""
    promised: int
    """Payloads whose record is missing, though the index states it: kept, and a matter for repair."""
    unfinished: int
    """Interrupted drops and compacts; with `apply`, finished."""
    set_aside: tuple[int, int]
    """Files and bytes in lost+found/, which gc never touches."""


def repair(path: Path | Place, *, apply: bool, level: Level = "read", progress: Progress | None = None) -> Repair:
    """Move damaged shards to lost+found/, record first, so that they are missing and precompute makes them again.

    Args:
        apply: False only says what would be moved.
        level: how deeply to look for damage.
    Raises:
        StoreNotFoundError, ConfigError: as `verify`.
        StoreLockedError: another repair or gc is at work.
        StoreError: the store cannot be written.
    """
    path = require_folder(path)
    if not apply:
        verification = verify(path, level=level, progress=progress)
        return Repair(verification, *_moves(verification))
    with alone(path):
        finish_retirements(load_store(path))
        verification = verify(path, level=level, progress=progress)
        moves, unhealed = _moves(verification)
        store = load_store(path)
        report = report_gone(store, promised_and_gone(store))  # first: publishing forgets what was promised
        with writing(path):
            for finding in verification.damage:
                if finding.what == "dropped":
                    names = (Path(file).relative_to(path).as_posix() for file in finding.paths)
                    add_dropped(store.place, [key for name in names for key in salvage(store.place, name)])
            if any(finding.damage or finding.what == "index" for finding in verification.findings):
                remove_snapshot(store.place)  # first: it must not speak for a record that is gone
            moves = tuple(file for file in moves if os.path.lexists(file))  # but for the snapshot, if it was one
            for file in moves:
                set_aside(path, file)
        load_store(path).publish()
    return Repair(verification, moves, unhealed, report)


def gc(path: Path | Place, *, apply: bool, grace_s: float = GRACE_S) -> Sweep:
    """Delete unfinished files and payloads that no record names, if nobody has touched them for `grace_s` seconds.

    Args:
        apply: False only says what would be deleted.
    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: another repair or gc is at work.
        DamagedShardError: a record is damaged, so which payload it names is not known: repair first.
        StoreError: the store cannot be written.
    """
    path = require_folder(path)
    if not apply:
        return _sweep(path, time.time() - grace_s, apply=False)
    with alone(path), writing(path):
        unfinished = len(pending_retirements(path, but=check_notes(path)))
        if finish_retirements(store := load_store(path)).shards:
            store.publish()
        # the file system's clock, which dates the files
        with held_folder(path, path / "tmp") as tmp:
            probe = TempFile(tmp)
            try:
                now = probe.path.stat().st_mtime
            finally:
                probe.discard()
        sweep = _sweep(path, now - grace_s, apply=True)
        load_store(path).begin_writing()
        return replace(sweep, unfinished=unfinished)


def _moves(verification: Verification) -> tuple[tuple[Path, ...], tuple[Finding, ...]]:
    unhealed = tuple(f for f in verification.damage if f.what == "manifest")
    files = [file for f in verification.damage if f not in unhealed for file in f.paths]
    # a link itself, never where it leads
    movable = (link_on_the_way(Path(file), Path(verification.store)) or Path(file) for file in files)
    return tuple(file for file in dict.fromkeys(movable) if os.path.lexists(file)), unhealed


def _sweep(path: Path, before: float, *, apply: bool) -> Sweep:
    store = load_store(path)
    if store.bad_records:
        raise DamagedShardError(
            f"{next(iter(store.bad_records.values()))} Until then it is not known which payloads are in use, so "
            "nothing is deleted"
        )
    unnamed_numbers = unrecorded_payloads(store)
    promised = unnamed_numbers & promised_numbers(store)
    orphans = sorted(unnamed_numbers - promised)
    old: list[tuple[Path, int]] = []
    young = 0
    payloads_top = path / store.layout.payload_folder
    unnamed = [store.payload_path(number) for number in orphans]
    for file in [*leftovers(path), *unnamed]:
        if link_on_the_way(file, payloads_top):  # not a file of this store
            continue
        try:
            status = file.lstat()
        except FileNotFoundError:  # its writer has finished with it
            continue
        if max(status.st_mtime, status.st_ctime) < before:
            old.append((file, status.st_size if status.st_nlink == 1 else 0))
        else:
            young += 1
    if apply:
        for file, _ in old:
            remove(file, within=path)
    kept_sizes = [
        file.lstat().st_size for file in (path / LOST_AND_FOUND).rglob("*") if file.is_symlink() or not file.is_dir()
    ]
    return Sweep(
        files=tuple(file for file, _ in old),
        bytes=sum(size for _, size in old),
        young=young,
        promised=len(promised),
        unfinished=len(pending_retirements(path, but=check_notes(path))),
        set_aside=(len(kept_sizes), sum(kept_sizes)),
    )
