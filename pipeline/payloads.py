"""Payload files held open for reading: safe among threads and after a fork.

Reads are positional, so a descriptor has no state to share; only closing one in use would be wrong.
"""

import os
import stat
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .catalog import Shard

OPEN_PAYLOADS = 256
"""Payload files kept open at most."""


class Payload:
    """An open payload file; it closes when the last thread that reads it lets go."""

    def __init__(self, path: Path, shard: Shard) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != shard.bytes:
            raise ValueError(f"it has {status.st_size} bytes, its record states {shard.bytes}")
        self.stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
        self.shard = shard
        self.checked = array("H", bytes(2 * shard.rows))
        """By row: how many of its first frames have matched their checksums in this process."""

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, memory: Sequence[tuple[memoryview, int]], offset: int) -> bool:
        """Fill pieces of memory, each from its offset further on; False where the file ends before that."""
        for piece, further in memory:
            read = os.preadv(self.fd, (piece,), offset + further)
            while 0 < read < len(piece) and (more := os.preadv(self.fd, (piece[read:],), offset + further + read)):
                read += more  # in practice one call is enough
            if read < len(piece):
                return False
        return True


class OpenPayloads:
    """The payload files read most recently, and which rows were checked."""

    def __init__(self, path_of: Callable[[int], Path]) -> None:
        self._path_of = path_of
        self._checked: dict[int, tuple[tuple[int, int, int], array[int]]] = {}
        self.close()

    def close(self) -> None:
        """Close all; what was checked need not be checked again."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Payload] = OrderedDict()

    def get(self, shard: Shard) -> Payload:
        """The payload of a shard, opened where it is not.

        Raises:
            OSError: it cannot be opened.
            ValueError: its size is not what the record states.
        """
        if os.getpid() != self._pid:  # forked: another thread may have held the lock at that moment
            self.close()
        with self._lock:
            payload = self._open.get(shard.number)
            if payload is None:
                payload = self._opened(shard)
                self._open[shard.number] = payload
                if len(self._open) > OPEN_PAYLOADS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard.number)
            return payload

    def forget(self, numbers: Iterable[int]) -> None:
        """Close some; if they come back, they are checked anew."""
        with self._lock:
            for number in numbers:
                self._open.pop(number, None)
                self._checked.pop(number, None)

    def _opened(self, shard: Shard) -> Payload:
        payload = Payload(self._path_of(shard.number), shard)
        stamp, checked = self._checked.get(shard.number, (None, None))
        if stamp == payload.stamp and checked is not None:
            payload.checked = checked
        else:  # another file than the one that was checked
            self._checked[shard.number] = (payload.stamp, payload.checked)
        return payload
