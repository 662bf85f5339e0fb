"""One exclusive lock between processes, on a file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError, StoreLockedError


@contextmanager
def exclusive_lock(file: Path, *, busy: str, create: bool = False) -> Generator[None]:
    """Hold an exclusive lock on a file inside the block. The kernel frees it when this process ends, however it ends.

    Args:
        file: its content never changes.
        busy: the error message if another process holds the lock.
        create: whether to create the file, empty, if it does not exist.
    Raises:
        StoreLockedError: another process holds the lock.
        StoreError: this file system has no locks.
        OSError: the file cannot be opened.
    """
    # NFS locks only files that are open for writing
    fd = os.open(file, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLockedError(busy) from error
        except OSError as error:
            raise StoreError(f"{file} cannot be locked: {error.strerror}. Work on a local copy") from error
        yield
    finally:
        os.close(fd)
