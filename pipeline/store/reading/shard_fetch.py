"""The shards of one store in a bucket, by way of the local cache: opened where they are there, else fetched whole.

A fetch is in ranges, many at once. Who finds another process at it waits for its shard, and takes the fetch over where
nothing moves for a minute.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...errors import StoreError
from ...files.open_files import retried
from ...files.places.place import Entry
from .shard_cache import PART, ShardCache, full_disk, is_named, try_lock

RANGE_BYTES, IN_FLIGHT = 2**23, 16
_STALLED_S = 60.0
"""A fetch in which nothing is written for so long is that of a process that was stopped."""
_POLL_S = 0.02
_TAG_BITS = 2**64 - 1
_ATTEMPTS = 3
"""Fetches of a payload that changes meanwhile."""


class _Changed(Exception):  # noqa: N818
    """Another payload came while one was fetched: its ranges may be of both."""


class Source(Protocol):
    """Where payloads are fetched from: a `Place`."""

    def read_range(self, name: str, offset: int, size: int) -> memoryview:
        """As `Place.read_range`."""
        ...

    def entry(self, name: str) -> Entry | None:
        """As `Place.entry`."""
        ...


@dataclass(slots=True)
class FetchStats:
    """What this process has fetched into the cache."""

    shards: int = 0
    bytes: int = 0
    longest_wait_s: float = 0.0
    """The longest time that a call took until its shard was there."""


class CachedShards:
    """The payloads of one store. Safe among threads; a forked process reads what is in the cache."""

    def __init__(self, cache: ShardCache, source: Source, *, url: str, recipe_id: str) -> None:
        """
        Args:
            url: of the store; shards of the same recipe at another place are others.
        """
        self.cache, self.stats = cache, FetchStats()
        self._source, self._folder = source, cache.store_folder(url, recipe_id)
        self._tags: dict[int, int] = {}
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def open(self, number: int, name: str, size: int) -> int:
        """A descriptor of the whole payload of a shard, to be closed by the caller. Fetches it, where it is not there.

        Args:
            name: of the payload, from the store.
            size: what its record states.
        Raises:
            FileNotFoundError: there is no such payload.
            ValueError: it has another size, or changes whenever it is fetched.
            StoreError: the bucket or the cache does not answer, or the disk is full.
        """
        started = time.monotonic()
        try:
            for _ in range(_ATTEMPTS):
                with suppress(_Changed):
                    return self._open_or_fetch(number, name, size)
                self.forget([number])
            raise ValueError(f"it changed while it was fetched, {_ATTEMPTS} times")
        finally:
            self.stats.longest_wait_s = max(self.stats.longest_wait_s, time.monotonic() - started)

    def has(self, number: int) -> bool:
        """Whether a shard is in the cache, as far as this process knows; asks the bucket for nothing."""
        tag = self._tags.get(number)
        return tag is not None and (self._folder / f"{number}-{tag:016x}").exists()

    def forget(self, numbers: Iterable[int]) -> None:
        """Some shards may have other payloads now: ask for their tags anew."""
        for number in numbers:
            self._tags.pop(number, None)

    def discard(self, number: int) -> None:
        """Remove a copy whose bytes are not those of the payload: the local disk may be at fault."""
        if (tag := self._tags.get(number)) is not None:
            (self._folder / f"{number}-{tag:016x}").unlink(missing_ok=True)

    def _tag(self, number: int, name: str, size: int) -> int:
        if (tag := self._tags.get(number)) is None:
            entry = self._source.entry(name)
            if entry is None:
                raise FileNotFoundError(2, "No such object", name)
            if entry.bytes != size:
                raise ValueError(f"it has {entry.bytes} bytes, its record states {size}")
            tag = self._tags[number] = entry.tag & _TAG_BITS
        return tag

    def _open_or_fetch(self, number: int, name: str, size: int) -> int:
        path = f"{self._folder}/{number}-{self._tag(number, name, size):016x}"
        moved, since = None, time.monotonic()
        while True:
            if (fd := _open_whole(path, size)) is not None:
                return fd
            part = self._open_part(path)
            try:
                if try_lock(part):
                    if os.path.lexists(path):  # named between the look at it and ours at its lock
                        self.cache.withdraw(part, path)
                    elif is_named(part, path + PART) and self._fetch(part, path, number, name, size):
                        fd, part = part, -1
                        return fd
                    continue
                status = os.fstat(part)
                if moved != (status.st_ino, status.st_mtime_ns):
                    moved, since = (status.st_ino, status.st_mtime_ns), time.monotonic()
                elif time.monotonic() - since > _STALLED_S:
                    self.cache.withdraw(part, path)
            finally:
                if part >= 0:
                    os.close(part)
            time.sleep(_POLL_S)

    def _open_part(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            return retried(lambda: os.open(path + PART, flags, 0o666))
        except FileNotFoundError:  # somebody emptied the cache by hand
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.open(path + PART, flags, 0o666)

    def _fetch(self, part: int, path: str, number: int, name: str, size: int) -> bool:
        """Fetch a payload into the `.part` that is locked here; False where the fetch was taken over meanwhile."""
        try:
            os.ftruncate(part, 0)
            self.cache.reserve(part, size)
            self._fetch_ranges(part, name, size)
            entry = self._source.entry(name)
            if entry is None or entry.tag & _TAG_BITS != self._tags.get(number):
                raise _Changed
            is_ours = self.cache.publish(part, path)
        except BaseException:
            self.cache.withdraw(part, path)
            raise
        if is_ours:
            self.stats.shards += 1
            self.stats.bytes += size
        fcntl.flock(part, fcntl.LOCK_UN)
        return is_ours

    def _fetch_ranges(self, part: int, name: str, size: int) -> None:
        pool = self._threads()
        ranges = [
            pool.submit(self._fetch_range, part, name, start, min(RANGE_BYTES, size - start))
            for start in range(0, size, RANGE_BYTES)
        ]
        try:
            for each in ranges:
                each.result()
        finally:  # none may write into a descriptor that was closed, and given to another file
            for each in ranges:
                each.cancel()
            for each in ranges:
                if not each.cancelled():
                    each.exception()

    def _fetch_range(self, part: int, name: str, start: int, size: int) -> None:
        content = self._source.read_range(name, start, size)
        if len(content) != size:
            raise StoreError(
                f"{name} ended {size - len(content)} bytes early while it was fetched. The bucket's answer was cut, or "
                "the payload was replaced: try again, then look at it with `theworld cache verify`"
            )
        written = 0
        while written < size:
            try:
                written += os.pwrite(part, content[written:], start + written)
            except OSError as error:
                if (full := full_disk(error, self.cache.folder)) is None:
                    raise
                if not self.cache.evict_one():
                    raise full from error

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():  # forked: the threads stayed behind
            self._pool = os.getpid(), ThreadPoolExecutor(IN_FLIGHT, "ranges")
        return self._pool[1]


def _open_whole(path: str, size: int) -> int | None:
    """The shard, noted as used now; None where it is not there, or is not whole."""
    try:
        fd = retried(lambda: os.open(path, os.O_RDONLY | os.O_NOFOLLOW))
    except FileNotFoundError:
        return None
    status = os.fstat(fd)
    if status.st_size != size:  # a disk that lost what was written when the machine went down
        os.close(fd)
        Path(path).unlink(missing_ok=True)
        return None
    with suppress(OSError):  # another user's
        os.utime(fd, ns=(time.time_ns(), status.st_mtime_ns))
    return fd
