"""Commit a shard: place its payload, then its record. Neither ever replaces a file.

The order keeps a crash, a full disk or a second writer harmless (tests/faults replays each step):

    payload to tmp/, fsync  ->  placed under the first free shard number  ->  folders fsynced
    ->  sealed record to tmp/, fsync  ->  placed in commits/: this is the commit  ->  folder fsynced

A number belongs to the writer that placed the payload, so no lock or clock is needed. A writer that dies between the
two leaves a payload without a record; readers ignore it, and its number stays unused. On a file system that links only
within one folder, it may leave a hidden file beside the target, too (`leftovers`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import StoreError
from ..files import atomic
from ..files.places.folder import Folder
from ..files.places.place import Place
from ..files.sealed import seal
from .records import ShardRecord, record_name, record_path

LOST_AND_FOUND = "lost+found"
"""The folder of a store for what was taken out of the way. Nothing reads it, and only a person empties it."""
MOST_PLACING_S = 45 * 60.0
"""From the start of a payload's writing to its record. gc takes away no payload that is younger than an hour."""


def leftovers(store: Path, *, quick: bool = False) -> list[Path]:
    """The unfinished files of running or killed writers: those in tmp/, and those that were about to be placed.

    The latter are hidden and beside their targets, and only on file systems that do not link between folders.

    Args:
        quick: leave out the folders of Zarr's shards, of which there are as many as shards.
    """
    found: list[Path] = []
    for folder, folders, names in os.walk(store):  # follows no links
        is_temporary = Path(folder) == store / "tmp"
        if Path(folder) == store:
            folders[:] = [name for name in folders if name != LOST_AND_FOUND]
        if quick and Path(folder) == store / "latents" / "c":
            folders.clear()
        found += [Path(folder, name) for name in names if is_temporary or atomic.is_placing(name)]
    return sorted(found)


def place_payload(store: Place, payload: Path | bytes, name_of: Callable[[int], str], *, first: int, top: str) -> int:
    """Allocate a shard number by placing the finished payload under the first free one.

    Args:
        store: nothing is written out of it.
        payload: a file of `Place.staging`, already durable; or its bytes, for a place that needs no file.
        name_of: where the payload of a shard number belongs.
        first: the number to try first.
        top: the folder above all payloads.
    Returns:
        The number; this writer alone may publish a record for it.
    Raises:
        StoreError: the folder of the payloads is a link, or lies behind one.
    """
    number = first
    _refuse_links(store, top)
    while any(map(store.is_in_doubt, (record_name(number), name_of(number)))) or not (
        store.create(name_of(number), payload)
        if isinstance(payload, bytes)
        else store.create_from(name_of(number), payload)
    ):
        _refuse_links(store, top)  # else no number would ever be free
        number += 1
    return number


def _refuse_links(store: Place, top: str) -> None:
    if isinstance(store, Folder) and (link := link_on_the_way(store.path / top / "payload", store.path)):
        raise StoreError(f"{link} is a symbolic link inside a store, so nothing is written through it")


def link_on_the_way(path: Path, top: Path) -> Path | None:
    """The first symbolic link among the folders below `top` on the way to a file: it may lead out of the store."""
    folders = [folder for folder in reversed(path.parents) if folder != top and folder.is_relative_to(top)]
    return next((folder for folder in folders if folder.is_symlink()), None)


def require_quick(payload: Path | str, took_s: float) -> None:
    """Refuse to commit a payload that took so long to place that gc may have it by now.

    Raises:
        StoreError
    """
    if took_s > MOST_PLACING_S:
        raise StoreError(
            f"{payload} took {took_s / 60:.0f} minutes to write, so gc may take it away as a leftover, and it is "
            "not committed. Was this machine asleep? Else make smaller shards (--shard-size). Then run the same "
            "command again"
        )


def publish_record(store: Place, record: ShardRecord) -> None:
    """Commit: make the sealed record of a placed payload appear.

    Raises:
        StoreError: the number has a record already, so somebody else wrote into this store by other rules.
    """
    path, content = record_path(store, record.shard), seal(record.to_json())
    if not store.create(record_name(record.shard), content):
        raise StoreError(f"{path} exists, though its number was ours alone. Was the folder copied into while in use?")
