"""A lock on file systems without locks: a file that only one process can create, and that says who it was.

    <file>.lock    a `Holder` as JSON

It outlives a killed process. On the same machine the holder is known to be gone where the machine was started again
since, or has no such process any more; then the next one takes the lock over. Of another machine, or another
container, nothing is guessed, as nothing can be known: the error says who held it, and which file to delete.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError, StoreLockedError
from ..messages import printable
from .lock_holder import Holder
from .open_files import retried
from .plain import read_file

_LIMIT_BYTES = 4096


@contextmanager
def held(file: Path, *, busy: str, reason: str) -> Generator[None]:
    """Hold the lock file of a file inside the block.

    Args:
        busy: the error message if another process holds it.
        reason: why there is no better lock.
    Raises:
        StoreLockedError: another process holds it, or may hold it.
        StoreError: it cannot be written.
    """
    path, this = _path(file), Holder.this()
    content = this.model_dump_json().encode()
    try:
        if not _create(path, content):
            _take_over(file, content, busy)
    except OSError as error:
        problem = f"{reason}, and {path} cannot be written: {error.strerror or error}"
        raise StoreError(f"{file} cannot be locked: {problem}. Work on a local copy") from error
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # somebody took it away by hand
            if _holder_of(path).id == this.id:
                path.unlink()


def holder(file: Path) -> str | None:
    """Who holds, or may hold, the lock file of a file, in a sentence; None where nobody does."""
    path = _path(file)
    try:
        return _sentence(path, _holder_of(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return _silent(path)


def _sentence(path: Path, holder: Holder) -> str | None:
    if holder.is_gone():
        return None
    return (
        f"{path} says that process {holder.pid} on {printable(holder.host)} has held the lock since "
        f"{printable(holder.since)}. If you know that this process has ended, delete that file"
    )


def _silent(path: Path) -> str:
    return f"{path} exists and does not say who holds the lock. If nobody works on this folder, delete it"


def _take_over(file: Path, content: bytes, busy: str) -> None:
    """Replace the lock file of a process that has ended. Of several that try, one gets it.

    Who creates the marker of this one holding may replace it, and nobody else ever.
    """
    path = _path(file)
    try:
        gone = _holder_of(path)  # read once: what is judged here is what the marker is for
    except FileNotFoundError:  # freed meanwhile
        if _create(path, content):
            return
        raise StoreLockedError(busy) from None
    except ValueError as error:
        raise StoreLockedError(f"{busy}. {_silent(path)}") from error
    if problem := _sentence(path, gone):
        raise StoreLockedError(f"{busy}. {problem}")
    marker = path.with_name(f"{path.name}-{gone.id}")
    if not _create(marker, content):
        raise StoreLockedError(f"{busy}. {marker} says that its lock is just being taken over; if it stays, delete it")
    try:
        if _holder_of(path) != gone:  # somebody else was here before the marker was
            raise StoreLockedError(busy)
        mine = path.with_name(f"{marker.name}-new")
        if not _create(mine, content):
            raise StoreLockedError(f"{busy}. {mine} is in the way: delete it")
        mine.replace(path)
    finally:
        marker.unlink()


def _path(file: Path) -> Path:
    return file.with_name(f"{file.name}.lock")


def _create(path: Path, content: bytes) -> bool:
    """Write a file that must not exist; False where it does."""
    try:
        fd = retried(lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    try:
        os.write(fd, content)  # a few hundred bytes: one write
        os.fsync(fd)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)
    return True


def _holder_of(path: Path) -> Holder:
    return Holder.model_validate_json(read_file(path, _LIMIT_BYTES))
