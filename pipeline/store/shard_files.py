"""Payload files held open for reading: safe among threads and after a fork.

Reads are positional, so a descriptor has no state to share; only closing one in use would be wrong.
"""

import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..files.inside import require_inside
from .index import Shard

MAX_OPEN_FILES = 256
"""Payload files kept open at most."""


class ShardFile:
    """An open payload file; it closes when the last thread that reads it lets go."""

    def __init__(self, path: Path, shard: Shard, store: Path) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != shard.bytes:
            raise ValueError(f"it has {status.st_size} bytes, its record states {shard.bytes}")
        require_inside(store, path, self.fd)
        self.stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
        self.shard = shard
        self.checked: array[int] = array("H", bytes(2 * shard.rows))
        """By row: how many of its first frames have matched their checksums in this process."""

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class OpenShardFiles:
    """The payload files opened most recently, and which of their rows were checked."""

    def __init__(self, store: Path, path_of: Callable[[int], Path]) -> None:
        self._store = store
        self._path_of = path_of
        self._checked: dict[int, tuple[tuple[int, int, int], array[int]]] = {}
        self.close()

    def close(self) -> None:
        """Close all; what was checked need not be checked again."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: dict[int, ShardFile] = {}

    def current(self) -> Mapping[int, ShardFile]:
        """The open payloads by shard number, to look into without a lock; it follows what is opened and closed."""
        if os.getpid() != self._pid:  # forked: another thread may have held the lock at that moment
            self.close()
        return self._open

    def open(self, shard: Shard) -> ShardFile:
        """The payload of a shard, opened where it is not; the one opened first gives way.

        Raises:
            OSError: it cannot be opened.
            ValueError: its size is not what the record states, or it lies outside of the store.
        """
        with self._lock:
            payload = self._open.get(shard.number)
            if payload is None:
                while len(self._open) >= MAX_OPEN_FILES:
                    del self._open[next(iter(self._open))]
                payload = ShardFile(self._path_of(shard.number), shard, self._store)
                stamp, checked = self._checked.get(shard.number, (None, payload.checked))
                if stamp == payload.stamp:
                    payload.checked = checked
                else:  # another file than the one that was checked
                    self._checked[shard.number] = (payload.stamp, payload.checked)
                self._open[shard.number] = payload
            return payload

    def forget(self, numbers: Iterable[int]) -> None:
        """Close some; if they come back, they are checked anew."""
        with self._lock:
            for number in numbers:
                self._open.pop(number, None)
                self._checked.pop(number, None)
