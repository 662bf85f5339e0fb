"""Payload files held open for reading: safe among threads and after a fork.

Reads are positional, so a descriptor has no state to share; only closing one in use would be wrong. How many stay open
follows from the limit of this process; those not used for longest go first.
"""

import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterable, Mapping
from heapq import nsmallest
from pathlib import Path
from time import perf_counter

from ...files import open_files
from ...files.inside import require_inside
from ..keys.index import Shard

_AT_ONCE = 16
"""A sixteenth of the open files closes when there is room for no more: looking for the oldest takes a look at all."""


Checked = tuple[tuple[int, int, int], "array[int]"]
"""Device, inode and modification time of a payload, and how many first frames of each row were checked."""


class ShardFile:
    """An open payload file; it closes when the last thread that reads it lets go."""

    __slots__ = ("checked", "fd", "shard", "stamp", "used")

    def __init__(
        self, path: str, shard: Shard, store: Path | None, earlier: Checked | None = None, *, fd: int | None = None
    ) -> None:
        """
        Args:
            store: where it must lie; None for a copy in the local cache.
            earlier: what was found out when it was open before.
            fd: the file, opened already.
        """
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if fd is None else fd
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != shard.bytes:
            raise ValueError(f"it has {status.st_size} bytes, its record states {shard.bytes}")
        self.stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
        self.shard = shard
        self.checked: array[int]
        """By row: how many of its first frames have matched their checksums in this process."""
        if earlier is not None and earlier[0] == self.stamp:
            self.checked = earlier[1]
        else:  # another file than the one that was checked
            if store is not None:
                require_inside(store, Path(path), self.fd)
            self.checked = array("H", bytes(2 * shard.rows))
        self.used = perf_counter()
        """When it was last read, by `perf_counter`; the reader keeps it up to date."""

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the end of Python `os` may be gone
        if self.fd >= 0:
            close(self.fd)


class OpenShardFiles:
    """The payload files used most recently, and which of their rows were checked."""

    def __init__(
        self, store: Path | None, path_of: Callable[[int], str], fd_of: Callable[[Shard], int] | None = None
    ) -> None:
        """
        Args:
            store: the folder that they must lie in; None for copies in the local cache.
            path_of: the payload of a shard number; text, as making a `Path` takes as long as opening it.
            fd_of: opens a copy in the local cache.
        """
        self._store = store
        self._path_of = path_of
        self._fd_of = fd_of
        self._checked: dict[int, Checked] = {}
        self.close()
        open_files.join(self)

    @property
    def open_count(self) -> int:
        """Files kept open by this process."""
        return len(self._open) if os.getpid() == self._pid else 0

    def close(self) -> None:
        """Close all; what was checked need not be checked again."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._open: dict[int, ShardFile] = {}
        self._allowed = 0
        """Open at most, as of the last time this was asked."""

    def close_to(self, count: int) -> int:
        """Keep this many open, those used last, if no other thread is opening one; return how many were closed."""
        if os.getpid() != self._pid:  # forked: these are copies of the parent's
            copies = len(self._open)
            self.close()
            return copies
        if not self._lock.acquire(blocking=False):  # two threads that wait for each other's files would wait for ever
            return 0
        try:
            self._allowed = min(self._allowed, count)
            return self._let_go(len(self._open) - count)
        finally:
            self._lock.release()

    def current(self) -> Mapping[int, ShardFile]:
        """The open payloads by shard number, to look into without a lock; it follows what is opened and closed."""
        if os.getpid() != self._pid:  # forked: another thread may have held the lock at that moment
            self.close()
        return self._open

    def open(self, shard: Shard) -> ShardFile:
        """The payload of a shard, opened where it is not; those not used for longest give way.

        Raises:
            OSError: it cannot be opened.
            ValueError: its size is not what the record states, or it lies outside of the store.
        """
        with self._lock:
            return self._open.get(shard.number) or self._open_one(shard)

    def open_anew(self, lost: ShardFile) -> ShardFile:
        """Open a payload by its path again, where the file system has lost the open one; raises as `open`."""
        with self._lock:
            if self._open.get(lost.shard.number) is lost:
                del self._open[lost.shard.number]
            return self._open.get(lost.shard.number) or self._open_one(lost.shard)

    def forget(self, numbers: Iterable[int]) -> None:
        """Close some; if they come back, they are checked anew."""
        with self._lock:
            for number in numbers:
                self._open.pop(number, None)
                self._checked.pop(number, None)

    def _open_one(self, shard: Shard) -> ShardFile:
        if len(self._open) >= self._allowed:
            self._allowed = open_files.allowance(self, len(self._open) + 1)
            if len(self._open) >= self._allowed:
                self._let_go(max(len(self._open) + 1 - self._allowed, self._allowed // _AT_ONCE))
        number = shard.number
        earlier = self._checked.get(number)
        if self._fd_of is None:
            payload = open_files.retried(lambda: ShardFile(self._path_of(number), shard, self._store, earlier))
        else:
            payload = ShardFile(self._path_of(number), shard, None, earlier, fd=self._fd_of(shard))
            self._let_go_of_evicted()
        if earlier is None or earlier[0] != payload.stamp:
            self._checked[number] = (payload.stamp, payload.checked)
        self._open[number] = payload
        return payload

    def _let_go_of_evicted(self) -> None:
        """Close the copies that were evicted: while they are open, their bytes stay on the disk."""
        for number in [number for number, payload in self._open.items() if not os.fstat(payload.fd).st_nlink]:
            del self._open[number]

    def _let_go(self, count: int) -> int:
        """Close those not used for longest; a thread that reads one keeps it until it has done so."""
        oldest = nsmallest(count, self._open.items(), key=lambda item: item[1].used)  # none for a count below 1
        for number, _ in oldest:
            del self._open[number]
        return len(oldest)
