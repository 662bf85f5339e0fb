"""What all maintenance of a store stands on: being the only one at it, and moving a file to lost+found/."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...files.atomic import made_folder, place, remove, sync_folder, writing
from ...files.inside import held_folder
from ...files.lock import exclusive_lock
from ...files.places.place import Place
from ..commit import LOST_AND_FOUND
from ..find import require_folder
from ..folder import load_store, make_own_folders

_LOCKED = "theworld.json"


@contextmanager
def alone(store: Path | Place) -> Generator[None]:
    """Keep other maintenance away: repair, gc, drop and compact.

    Writers need not be kept away: they and gc get along by the age of files, they and all others by names.

    Raises:
        StoreNotFoundError, DamagedShardError: as `load_store`.
        StoreLockedError: other maintenance is at work.
        StoreError: the store cannot be written, or its file system has no locks.
    """
    store = require_folder(store)
    load_store(store)
    busy = f"another repair, gc, drop or compact is at work on {store}; try again when it has ended"
    with ExitStack() as stack:
        with writing(store):
            make_own_folders(store)
            stack.enter_context(exclusive_lock(store / _LOCKED, busy=busy))
        yield


def set_aside(store: Path, file: Path, *, folder: str = "") -> Path:
    """Give a file a name in lost+found/ that nothing there has, then take its own away.

    Args:
        folder: of lost+found/, in which it is kept; made where it is missing.
    Returns:
        Where it is now.
    """
    stem = "-".join(file.relative_to(store).parts)
    number = 0
    top = store / LOST_AND_FOUND / folder
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
    return top / name
