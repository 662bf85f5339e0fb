"""Stay inside a folder: neither a link in a downloaded store or run, nor a folder swapped for one, leads outside.

The folder itself may be reached by a link. Below it no link is followed to write, and none out of it to read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .open_files import retried

_DESCRIPTORS = Path("/proc/self/fd")
_MAX_HOMES = 1000
_homes: dict[Path, str] = {}
"""Folder -> where it really was when last looked at, with a slash at the end."""


@contextmanager
def held_folder(root: Path, folder: Path) -> Generator[Path]:
    """A path that means this folder inside the block, whatever others put in its place meanwhile.

    Args:
        folder: `root` or below it.
    Raises:
        FileNotFoundError: it is missing.
        NotADirectoryError: a link, or something that is no folder, is on the way below `root`.
    """
    fd = retried(lambda: os.open(root, os.O_RDONLY | os.O_DIRECTORY))
    try:
        for part in folder.relative_to(root).parts:
            try:
                inner = _open_within(fd, part)
            except OSError as error:
                if error.errno == errno.ELOOP:  # macOS says so of a link, Linux as below
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), part) from error
                raise
            os.close(fd)
            fd = inner
        path = _DESCRIPTORS / str(fd)
        yield path if path.exists() else folder  # without /proc, on macOS, what was just seen has to do
    finally:
        os.close(fd)


def _open_within(fd: int, part: str) -> int:
    return retried(lambda: os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd))


def require_inside(root: Path, path: Path | str, fd: int | None = None) -> None:
    """Refuse a file that lies elsewhere, as links may lead out.

    Args:
        fd: the file, opened: then it is this one that is asked about, not what `path` has come to mean since.
    Raises:
        ValueError: it lies outside of `root`.
    """
    try:
        real = os.path.realpath(path) if fd is None else os.readlink(f"{_DESCRIPTORS}/{fd}")  # noqa: PTH115 - hot
    except OSError:  # macOS
        real = os.path.realpath(path)
    real_root = _homes.get(root)  # a store opens by the thousands of records: a microsecond counts
    if real_root is not None and real.startswith(real_root):
        return
    home = f"{os.path.realpath(root).rstrip(os.sep)}{os.sep}"
    if not real.startswith((home, *blobs_of(home))):
        raise ValueError("it is a link out of its folder. Copy the file to its place")
    if len(_homes) >= _MAX_HOMES:
        _homes.clear()
    _homes[root] = home


def blobs_of(home: str) -> list[str]:
    """Where the Hub's cache keeps the files that a snapshot's links lead to; empty where this is no such snapshot.

    Args:
        home: a folder, links resolved, with a slash at its end.
    """
    return [f"{folder.parent / 'blobs'}{os.sep}" for folder in Path(home).parents if folder.name == "snapshots"]
