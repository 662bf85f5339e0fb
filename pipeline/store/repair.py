"""`repair` moves damaged files to lost+found/; `gc` deletes old files that no record names."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import DamagedShardError, StoreError
from ..files.atomic import TempFile, place, remove, sync_folder, writing
from ..files.inside import held_folder
from ..files.lock import exclusive_lock
from ..progress import Progress
from .commit import link_on_the_way
from .folder import load_store, make_own_folders
from .index import record_inodes
from .snapshot import remove_snapshot
from .verify import Finding, Level, Verification, verify

_LOCKED = "theworld.json"
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


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a gc deleted, or would delete."""

    files: tuple[Path, ...]
    bytes: int
    young: int
    """Files no record names that may still be in use, kept."""
    set_aside: tuple[int, int]
    """Files and bytes in lost+found/, which gc never touches."""


def repair(path: Path, *, apply: bool, level: Level = "read", progress: Progress | None = None) -> Repair:
    """Move damaged shards to lost+found/, record first, so that they are missing and precompute makes them again.

    Args:
        apply: False only says what would be moved.
        level: how deeply to look for damage.
    Raises:
        StoreNotFoundError, ConfigError: as `verify`.
        StoreLockedError: another repair or gc is at work.
        StoreError: the store cannot be written.
    """
    if not apply:
        verification = verify(path, level=level, progress=progress)
        return Repair(verification, *_moves(verification))
    with _alone(path):
        verification = verify(path, level=level, progress=progress)
        moves, unhealed = _moves(verification)
        with writing(path):
            if any(finding.damage or finding.what == "index" for finding in verification.findings):
                remove_snapshot(path)  # first: it must not speak for a record that is gone
            for file in moves:
                _set_aside(path, file)
        load_store(path).publish()
    return Repair(verification, moves, unhealed)


def gc(path: Path, *, apply: bool, grace_s: float = GRACE_S) -> Sweep:
    """Delete unfinished files and payloads that no record names, if nobody has touched them for `grace_s` seconds.

    Args:
        apply: False only says what would be deleted.
    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: another repair or gc is at work.
        DamagedShardError: a record is damaged, so which payload it names is not known: repair first.
        StoreError: the store cannot be written.
    """
    if not apply:
        return _sweep(path, time.time() - grace_s, apply=False)
    with _alone(path), writing(path):
        # the file system's clock, which dates the files
        with held_folder(path, path / "tmp") as tmp:
            probe = TempFile(tmp)
            try:
                now = probe.path.stat().st_mtime
            finally:
                probe.discard()
        return _sweep(path, now - grace_s, apply=True)


def _moves(verification: Verification) -> tuple[tuple[Path, ...], tuple[Finding, ...]]:
    unhealed = tuple(f for f in verification.damage if f.what == "manifest")
    files = [file for f in verification.damage if f not in unhealed for file in f.paths]
    # a link itself, never where it leads
    movable = (link_on_the_way(file, verification.store) or file for file in files)
    return tuple(file for file in dict.fromkeys(movable) if os.path.lexists(file)), unhealed


def _set_aside(store: Path, file: Path) -> None:
    """Give a file a name in lost+found/ that nothing there has, then take its own away."""
    stem = "-".join(file.relative_to(store).parts)
    number = 0
    with held_folder(store, file.parent) as here, held_folder(store, store / "lost+found") as aside:
        held = here / file.name
        while True:
            target = aside / (f"{stem}.{number}" if number else stem)
            if held.is_dir() or held.is_symlink():  # these have no hard links
                if not os.path.lexists(target):
                    os.rename(held, target)  # noqa: PTH104
                    break
            elif place(held, target):
                sync_folder(aside)
                remove(held)
                break
            number += 1
        sync_folder(aside)
        sync_folder(here)


def _sweep(path: Path, before: float, *, apply: bool) -> Sweep:
    store = load_store(path)
    if store.bad_records:
        raise DamagedShardError(
            f"{next(iter(store.bad_records.values()))} Until then it is not known which payloads are in use, so "
            "nothing is deleted"
        )
    # payloads first: one whose record appears between the two listings is in use
    try:
        payloads = store.layout.payload_numbers(path)
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be listed: {error.strerror}, so nothing is deleted") from error
    orphans = sorted(payloads - record_inodes(path).keys())
    old: list[tuple[Path, int]] = []
    young = 0
    payloads_top = path / store.layout.payload_folder
    unnamed = [store.payload_path(number) for number in orphans]
    for file in [*_entries(path / "tmp"), *unnamed]:
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
    kept_sizes = [file.lstat().st_size for file in _entries(path / "lost+found")]
    set_aside = len(kept_sizes), sum(kept_sizes)
    return Sweep(tuple(file for file, _ in old), sum(size for _, size in old), young, set_aside)


def _entries(folder: Path) -> Iterable[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.is_dir()) if folder.is_dir() else []


@contextmanager
def _alone(store: Path) -> Generator[None]:
    """Keep a second repair or gc away. Writers need not be: they and gc get along by age, they and repair by names."""
    load_store(store)
    busy = f"another repair or gc is at work on {store}; try again when it has ended"
    with ExitStack() as stack:
        with writing(store):
            make_own_folders(store)
            stack.enter_context(exclusive_lock(store / _LOCKED, busy=busy))
        yield
