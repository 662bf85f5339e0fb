"""One exclusive lock between processes, on a file.

    flock          where the file system has it: the kernel frees it when the process ends, however it ends
    a lock file    <file>.lock, where it has none (Lustre mounted without -o flock, some FUSE): it says who holds it

Both kinds look at the lock file, so a lock file keeps everybody away; only who has no flock cannot see who holds one.
Mount a shared file system alike on all machines. POSIX locks (lockf) are no third kind: a process loses them as soon as
any part of it closes the locked file, and stores read the file they lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError, StoreLockedError
from . import lock_file
from .file_system import advice, name_of
from .open_files import retried

PATIENCE_S = 60.0
"""Some network file systems wait for ever for a lock service that is gone, also where they are told not to wait."""
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def exclusive_lock(file: Path, *, busy: str, create: bool = False) -> Generator[None]:
    """Hold an exclusive lock on a file inside the block. It is free again when this process ends, however it ends.

    Args:
        file: its content never changes.
        busy: the error message if another process holds the lock.
        create: whether to create the file, empty, if it does not exist.
    Raises:
        StoreLockedError: another process holds the lock, or may hold it.
        StoreError: this file system cannot lock, or does not answer.
        OSError: the file cannot be opened.
    """
    # NFS locks only files that are open for writing
    fd = retried(lambda: os.open(file, os.O_RDWR | (os.O_CREAT if create else 0), 0o666))
    attempt = _Flock(fd)
    try:
        try:
            attempt.wait(PATIENCE_S)
        except BlockingIOError as error:
            raise StoreLockedError(busy) from error
        except TimeoutError as error:
            raise StoreError(
                f"{file} cannot be locked: its file system ({name_of(file)}) did not answer within {PATIENCE_S:.0f} s. "
                "Is its lock service running (NFS: rpc.statd, lockd)? Mount it with `-o flock` (Lustre) or "
                "`-o local_lock=flock` (NFS, where only one machine works on it), or work on a local copy"
            ) from error
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise StoreError(
                    f"{file} cannot be locked: {error.strerror or error}. {advice(error, file.parent)}, or work on a "
                    "local copy"
                ) from error
            with lock_file.held(file, busy=busy, reason=error.strerror or str(error)):
                yield
            return
        if holder := lock_file.holder(file):
            raise StoreLockedError(f"{busy}. {holder}")
        yield
    finally:
        attempt.close()


class _Flock:
    """Ask for a lock without waiting for it, in a thread of its own, as the asking itself may hang."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._error: OSError | None = None
        self._guard = threading.Lock()
        self._is_asking = False
        self._is_abandoned = False

    def wait(self, patience_s: float) -> None:
        """Get the lock.

        Raises:
            TimeoutError: no answer came.
            OSError: the answer.
        """
        self._is_asking = True
        thread = threading.Thread(target=self._ask, name="flock", daemon=True)
        thread.start()
        thread.join(patience_s)
        if thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Free the lock; one that is still asked for is freed when the answer comes."""
        with self._guard:
            self._is_abandoned = True
            if not self._is_asking:
                os.close(self._fd)

    def _ask(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._error = error
        with self._guard:
            self._is_asking = False
            if self._is_abandoned:
                os.close(self._fd)
