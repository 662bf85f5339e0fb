"""Commit a shard: place its payload, then its record. Neither ever replaces a file.

The order keeps a crash, a full disk or a second writer harmless (tests/faults replays each step):

    payload to tmp/, fsync  ->  placed under the first free shard number  ->  folders fsynced
    ->  sealed record to tmp/, fsync  ->  placed in commits/: this is the commit  ->  folder fsynced

A number belongs to the writer that placed the payload, so no lock or clock is needed. A writer that dies between the
two leaves a payload without a record; readers ignore it, and its number stays unused. On a file system that links only
within one folder, it may leave a hidden file beside the target, too (`leftovers`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError
from ..files import atomic
from ..files.file_system import name_of
from ..files.sealed import seal
from .records import ShardRecord, record_path

LOST_AND_FOUND = "lost+found"
"""The folder of a store for what was taken out of the way. Nothing reads it, and only a person empties it."""


def self_test(temp_folder: Path, *targets: Path) -> None:
    """Prove that this file system can do what all else rests on: to name a file, whole, and to replace none.

    Args:
        targets: folders in which files of `temp_folder` will be placed; by default itself.
    Raises:
        OSError: the file system refuses, or does not do what it says; with the ability that is missing, and its type.
    """
    for target in targets or (temp_folder,):
        _test_placing(temp_folder, target)


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


def place_payload(temp: Path, payload_of: Callable[[int], Path], first: int, top: Path, store: Path) -> int:
    """Allocate a shard number by placing the finished payload under the first free one.

    Args:
        temp: the payload, already durable.
        payload_of: where the payload of a shard number belongs.
        first: the number to try first.
        top: the folder above all payloads; it and every folder below it on the way are synced.
        store: the folder that nothing is written out of: below it no link is followed.
    Returns:
        The number; this writer alone may publish a record for it.
    Raises:
        StoreError: `top` is a link.
    """
    if top.is_symlink():
        raise StoreError(f"{top} is a symbolic link inside a store, so nothing is written through it")
    with atomic.made_folder(store, top):
        pass
    number = first
    while True:
        payload = payload_of(number)
        if not link_on_the_way(payload, top):
            # the folders' names are synced below, before the record is
            made = atomic.made_folder(store, payload.parent, durable=False)
            with suppress(FileExistsError, NotADirectoryError), made as folder:  # a stray file where a folder belongs
                if atomic.place(temp, folder / payload.name):
                    break
        number += 1
    for folder in payload.parents:  # also those another writer made and may not have synced yet
        atomic.sync_folder(folder)
        if folder == top:
            break
    return number


def link_on_the_way(path: Path, top: Path) -> Path | None:
    """The first symbolic link among the folders below `top` on the way to a file: it may lead out of the store."""
    folders = [folder for folder in reversed(path.parents) if folder != top and folder.is_relative_to(top)]
    return next((folder for folder in folders if folder.is_symlink()), None)


def publish_record(store: Path, record: ShardRecord) -> None:
    """Commit: make the sealed record of a placed payload appear.

    Raises:
        StoreError: the number has a record already, so somebody else wrote into this store by other rules.
    """
    path = record_path(store, record.shard)
    if not atomic.publish(store / "tmp", path, seal(record.to_json()), within=store):
        raise StoreError(f"{path} exists, though its number was ours alone. Was the folder copied into while in use?")


def _test_placing(temp_folder: Path, folder: Path) -> None:
    with _ability("making a new file", temp_folder):
        first, second = atomic.TempFile(temp_folder), atomic.TempFile(temp_folder)
    probe = folder / f".{first.path.name}.placing"  # in this folder files are found by their names
    try:
        with _ability("writing a file to the disk (fsync)", temp_folder):
            for temp, content in ((first, b"first"), (second, b"second")):
                temp.write(content)
                temp.finish()
        with _ability("giving a file its name (hard link, or rename without replacing)", folder):
            placed = atomic.place(first.path, probe), atomic.place(second.path, probe)
        with _ability("reading what was written", folder):
            content = probe.read_bytes()
        if placed != (True, False) or content != b"first":
            problem = f"this file system replaces a file that it was told to keep ({name_of(folder)})"
            raise OSError(errno.ENOTSUP, problem, str(probe))
        with _ability("making names durable (fsync of a folder)", folder):
            atomic.sync_folder(folder)
    finally:
        first.discard()
        second.discard()
        atomic.remove(probe)


@contextmanager
def _ability(what: str, folder: Path) -> Generator[None]:
    """Say of a refusal what the file system cannot do, and which one it is."""
    try:
        yield
    except OSError as error:
        problem = f"{what} fails on this file system ({name_of(folder)}): {error.strerror or error}"
        raise OSError(error.errno, problem, str(folder)) from error
