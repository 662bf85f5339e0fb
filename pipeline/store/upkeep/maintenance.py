"""What all maintenance of a store stands on: being the only one at it, and moving a file to lost+found/."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ...errors import ConfigError
from ...files.atomic import made_folder, place, remove, sync_folder
from ...files.inside import held_folder
from ...files.lock import exclusive_lock
from ...files.places.folder import Folder
from ...files.places.local import place_of
from ...files.places.lock_object import held_object
from ...files.places.place import Place
from ..commit import LOST_AND_FOUND
from ..folder import load_store, make_own_folders

_LOCKED = "theworld.json"


@contextmanager
def alone(where: Path | Place, *, break_lock: bool = False) -> Generator[None]:
    """Keep other maintenance away: repair, gc, drop and compact.

    Writers need not be kept away: they and gc get along by the age of files, they and all others by names.

    Args:
        break_lock: in a bucket, take the lock from a process that has ended.
    Raises:
        StoreNotFoundError, DamagedShardError: as `load_store`.
        StoreLockedError: other maintenance is at work.
        StoreError: the store cannot be written, or its file system has no locks.
        ConfigError: `break_lock` of a store on a disk.
    """
    store = place_of(where)
    load_store(store)
    busy = f"another repair, gc, drop or compact is at work on {store}; try again when it has ended"
    if break_lock and store.is_local:
        raise ConfigError(
            f"{store} is on a disk, where a lock ends with its process: --break-lock is for stores in buckets"
        )
    with ExitStack() as stack:
        with store.writing():
            if isinstance(store, Folder):
                make_own_folders(store.path)
                stack.enter_context(exclusive_lock(store.path / _LOCKED, busy=busy))
            else:
                store.self_test()
                stack.enter_context(held_object(store, busy=busy, break_lock=break_lock))
        yield


def name_in(store: Place, location: Path | str) -> str:
    """The name of a file of a store, by its path or URL."""
    if isinstance(store, Folder):
        return Path(location).relative_to(store.path).as_posix()
    return str(location).removeprefix(f"{store}/")


def set_aside(store: Place, name: str, *, folder: str = "") -> Path | str:
    """Give a file a name in lost+found/ that nothing there has, then take its own away.

    Args:
        folder: of lost+found/, in which it is kept; made where it is missing.
    Returns:
        Where it is now.
    """
    top = "/".join(part for part in (LOST_AND_FOUND, folder) if part)
    stem = name.replace("/", "-")
    if isinstance(store, Folder):
        return store.path / top / _link_aside(store.path, store.path / name, store.path / top, stem)
    number = 0
    while True:
        target = f"{top}/{stem}.{number}" if number else f"{top}/{stem}"
        with suppress(FileExistsError):
            store.set_aside(name, target)
            return store.location(target)
        number += 1


def _link_aside(store: Path, file: Path, top: Path, stem: str) -> str:
    number = 0
    with held_folder(store, file.parent) as here, made_folder(store, top) as aside:
        held = here / file.name
        while True:
            name = f"{stem}.{number}" if number else stem
            target = aside / name
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
    return name
