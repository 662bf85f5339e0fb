"""Local copies of files in a bucket, for files that are mapped, and local notes about it.

`$XDG_CACHE_HOME/theworld/<16 digits of the URL's hash>/` can be deleted at any time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import xxhash

from ...machine import own_folder
from ..atomic import TempFile, make_folders
from .folder import Folder
from .place import Place

_BLOCK_BYTES = 8 * 2**20


def machine_folder(place: Place) -> Path:
    """The folder for this machine's notes about a place: the place itself if it is a folder, else the user's cache."""
    if isinstance(place, Folder):
        return place.path
    return own_folder() / xxhash.xxh3_64_hexdigest(str(place).encode())


class LocalStaging(TemporaryDirectory[str]):
    """A folder of the local disk for unfinished files, removed at the end."""

    def __init__(self) -> None:
        super().__init__(prefix="theworld-")

    def __enter__(self) -> Path:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Path(super().__enter__())


def local_copy(place: Place, name: str) -> Path:
    """The path of a file; one in a bucket is copied to this machine first, and replaces an older copy.

    Raises:
        FileNotFoundError: there is none.
        OSError: this machine's disk refuses the copy.
        ValueError: it ended early.
    """
    if isinstance(place, Folder):
        return place.path / name
    entry = place.entry(name)
    if entry is None:
        raise FileNotFoundError(f"there is no {place}/{name}")
    folder = machine_folder(place)
    path = folder / f"{entry.tag:016x}-{name}"
    if path.is_file() and path.stat().st_size == entry.bytes:
        return path
    make_folders(folder, durable=False)
    temp = TempFile(folder, beside=True)
    try:
        memory = memoryview(bytearray(min(_BLOCK_BYTES, max(entry.bytes, 1))))
        for start in range(0, entry.bytes, _BLOCK_BYTES):
            part = memory[: min(_BLOCK_BYTES, entry.bytes - start)]
            if place.read_into(name, start, part) != len(part):
                raise ValueError(f"{place}/{name} became shorter while it was read")
            temp.write(part)
        for old in folder.glob(f"*-{name}"):  # whoever has it mapped keeps it
            with suppress(OSError):
                old.unlink()
        os.replace(temp.path, path)  # noqa: PTH105
    finally:
        temp.discard()
    return path
