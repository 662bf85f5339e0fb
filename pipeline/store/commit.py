"""Commit a shard: place its payload, then its record. Neither ever replaces a file.

The order keeps a crash, a full disk or a second writer harmless (tests/faults replays each step):

    payload to tmp/, fsync  ->  placed under the first free shard number  ->  folders fsynced
    ->  sealed record to tmp/, fsync  ->  placed in commits/: this is the commit  ->  folder fsynced

A number belongs to the writer that placed the payload, so no lock or clock is needed. A writer that dies between the
two leaves a payload without a record; readers ignore it, and its number stays unused.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from ..files import atomic
from ..files.sealed import seal
from .records import ShardRecord, record_path


def self_test(temp_folder: Path) -> None:
    """Prove that files can be written here, and that placing one never replaces another: all else rests on it.

    Raises:
        OSError: the file system refuses, or does not do what it says.
    """
    first, second = atomic.TempFile(temp_folder), atomic.TempFile(temp_folder)
    probe = first.path.with_suffix(".probe")
    try:
        first.write(b"first")
        second.write(b"second")
        first.finish()
        second.finish()
        if not atomic.place(first.path, probe) or atomic.place(second.path, probe) or probe.read_bytes() != b"first":
            raise OSError(errno.ENOTSUP, "this file system replaces a file that it was told to keep", str(probe))
    finally:
        first.discard()
        second.discard()
        atomic.remove(probe)


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
