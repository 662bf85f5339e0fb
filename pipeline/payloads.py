"""Payload files held open for reading: safe among threads and after a fork.

Reads are positional, so a descriptor has no state to share; only closing one in use would be wrong.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

OPEN_PAYLOADS = 256
"""Payload files kept open at most."""


def payload_path(store: Path, shard: int) -> Path:
    """Where the payload of a shard belongs: Zarr's name of the chunk."""
    return store / "latents" / "c" / str(shard) / "0" / "0" / "0" / "0"


class Payload:
    """An open payload file; it closes when the last thread that reads it lets go."""

    def __init__(self, path: Path, expected_bytes: int) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != expected_bytes:
            raise ValueError(f"it has {status.st_size} bytes, its record states {expected_bytes}")

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; the bytes read, fewer only at the end of the file."""
        read = os.preadv(self._fd, [buffer], offset)
        while 0 < read < len(buffer) and (more := os.preadv(self._fd, [buffer[read:]], offset + read)):
            read += more  # in practice one call is enough
        return read


class OpenPayloads:
    """The payload files read most recently."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self.clear()

    def clear(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Payload] = OrderedDict()

    def get(self, number: int, expected_bytes: int) -> Payload:
        if os.getpid() != self._pid:  # forked: another thread may have held the lock at that moment
            self.clear()
        with self._lock:
            payload = self._open.get(number)
            if payload is None:
                payload = self._open[number] = Payload(payload_path(self._store, number), expected_bytes)
                if len(self._open) > OPEN_PAYLOADS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return payload

    def forget(self, numbers: Iterable[int]) -> None:
        with self._lock:
            for number in numbers:
                self._open.pop(number, None)
