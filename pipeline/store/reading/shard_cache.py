"""Whole shards of stores in buckets, on local disk: one fetch a machine, and a limit that eviction keeps.

    DIR/theworld-cache.json                     marks the folder as ours; its lock is held to evict and to name a shard
    DIR/<recipe>-<URL>/shards/<n>-<tag>         whole, or not there; the tag is another one after a repair
    DIR/<recipe>-<URL>/shards/<n>-<tag>.part    being fetched by who holds its lock

No file means anything by being there alone: the kernel frees the locks of a process that ends, and what nobody locks
is removed by the next one that needs room. Who has a shard open reads on after it was evicted. The modification time
says when a shard was fetched, and the access time, which `open` sets, when it was last opened: changing the former
would make readers check its rows anew.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigError, StoreError
from ...files.file_system import advice
from ...files.open_files import retried
from ...files.plain import read_file
from ...messages import format_bytes

MARKER = "theworld-cache.json"
_CONTENT = {"theworld": "shard cache", "format": 1}
_UNFINISHED = ".theworld-cache-"
_STORE = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")
_SHARD = re.compile(r"[0-9]{1,12}-[0-9a-f]{16}(\.part)?")
PART = ".part"
LOCK_PATIENCE_S = 60.0
"""Evicting and naming take milliseconds: who holds the lock for longer was stopped."""
_POLL_S = 0.02
_ROOM_PATIENCE_S = 60.0
_FULL = {errno.ENOSPC, errno.EDQUOT}

_log = logging.getLogger(__name__)


class _Held(NamedTuple):
    path: str
    bytes: int
    last_used: float
    is_part: bool


class ShardCache:
    """A folder of this machine's disk with shards of any number of stores, shared by all processes.

    Attributes:
        folder, limit_bytes: where, and how much of it.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        """Make the folder, or take one that is a cache already.

        Args:
            limit_bytes: None is half of what is free there, counting what the cache holds as free.
        Raises:
            ConfigError: the folder holds other content, or cannot be used.
        """
        self.folder = folder.absolute()
        try:
            self._claim()
            if limit_bytes is None:
                limit_bytes = (shutil.disk_usage(self.folder).free + self.used_bytes()) // 2
        except OSError as error:
            raise ConfigError(
                f"the local cache {self.folder} cannot be used: {error.strerror or error}. "
                "Name a folder of this machine's disk with --local-cache"
            ) from error
        self.limit_bytes = limit_bytes

    def store_folder(self, url: str, recipe_id: str) -> Path:
        """Where the shards of a store are, made if it is not there."""
        folder = self.folder / f"{recipe_id[:12]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}" / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def require_room(self, shard_bytes: int, window: int) -> None:
        """Refuse a limit that could not hold the shards that are read at a time.

        Args:
            shard_bytes: of the largest shard.
            window: shards of a block.
        Raises:
            ConfigError: names the size that works.
        """
        if self.limit_bytes < (needed := (window + 2) * shard_bytes):
            mib = -(-needed // 2**20)
            raise ConfigError(
                f"the local cache {self.folder} may hold {format_bytes(self.limit_bytes)}, and blocks of {window} "
                f"shards of {format_bytes(shard_bytes)} need {window + 2} of them there. Pass "
                f"--local-cache-size {mib}MiB, or a smaller --shuffle-window; or read samples one by one from the "
                "bucket, with --shuffle full"
            )

    def used_bytes(self) -> int:
        """What the shards in the cache take, those being fetched included."""
        return sum(held.bytes for held in self._held())

    def reserve(self, part: int, size: int) -> None:
        """Make room for a shard that is about to be fetched, and give its file that size.

        Args:
            part: the file to fetch it to, whose lock this process holds.
        Raises:
            StoreError, OSError: the cache does not answer, or cannot be written to.
        """
        until = time.monotonic() + _ROOM_PATIENCE_S
        while not self._reserve(part, size, is_patient=time.monotonic() < until):
            time.sleep(_POLL_S)  # others fetch: what they have fetched can be evicted

    def evict_one(self) -> bool:
        """Evict the shard that was not opened for longest; False where there is none."""
        with self.locked():
            whole = sorted((held for held in self._held() if not held.is_part), key=lambda held: held.last_used)
            return any(_remove(held.path) for held in whole)

    def publish(self, part: int, path: str) -> bool:
        """Name a fetched shard; False where somebody else took its fetch over, and nothing changes."""
        with self.locked():
            if not is_named(part, path + PART):
                return False
            Path(path + PART).rename(path)
            return True

    def withdraw(self, part: int, path: str) -> None:
        """Remove a `.part` file, if its name still is this file."""
        with self.locked():
            if is_named(part, path + PART):
                _remove(path + PART)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the one lock of the cache.

        Raises:
            StoreError: it was not free within a minute.
        """
        fd = self._open_marker()
        try:
            until = time.monotonic() + LOCK_PATIENCE_S
            while not try_lock(fd):
                if time.monotonic() > until:
                    raise StoreError(
                        f"another process has held the lock of the local cache {self.folder} for "
                        f"{LOCK_PATIENCE_S:.0f} s. Was it stopped? End it, or name another folder with --local-cache"
                    )
                time.sleep(_POLL_S / 10)
            try:
                yield
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked in between holds a copy
        finally:
            os.close(fd)

    def _open_marker(self) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW
        try:
            return retried(lambda: os.open(self.folder / MARKER, flags))
        except FileNotFoundError:  # somebody removed the cache by hand
            self._claim()
            return os.open(self.folder / MARKER, flags)

    def _reserve(self, part: int, size: int, *, is_patient: bool) -> bool:
        with self.locked():
            mine, held = os.fstat(part).st_ino, list(self._held())
            parts = [each for each in held if each.is_part and not _is_inode(each.path, mine)]
            live = [each for each in parts if not _remove_if_dead(each.path)]
            whole = sorted((each for each in held if not each.is_part), key=lambda each: each.last_used)
            used = sum(each.bytes for each in (*live, *whole))
            for oldest in whole:
                if used + size <= self.limit_bytes:
                    break
                used -= oldest.bytes if _remove(oldest.path) else 0
            if used + size > self.limit_bytes and is_patient and any(each.bytes for each in live):
                return False
            if used + size > self.limit_bytes:
                _log.warning(
                    "the local cache %s takes %s for a while, and may take %s",
                    *(self.folder, format_bytes(used + size), format_bytes(self.limit_bytes)),
                )
            os.ftruncate(part, size)  # counted from here on
            return True

    def _held(self) -> Iterator[_Held]:
        """The files that are shards by their place and name: nothing else is ever removed."""
        with os.scandir(self.folder) as stores:
            folders = [store.path for store in stores if _STORE.fullmatch(store.name) and _is_folder(store)]
        for folder in folders:
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{folder}/shards") as shards:
                for shard in shards:
                    if (match := _SHARD.fullmatch(shard.name)) is None:
                        continue
                    with suppress(FileNotFoundError):
                        status = shard.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            last_used = max(status.st_atime, status.st_mtime)
                            yield _Held(shard.path, status.st_size, last_used, match[1] is not None)

    def _claim(self) -> None:
        """Put the marker into an empty folder, or find it there."""
        if not os.path.lexists(self.folder / MARKER):
            self.folder.mkdir(parents=True, exist_ok=True)
            with os.scandir(self.folder) as entries:
                names = sorted(entry.name for entry in entries)
            others = [n for n in names if not n.startswith(_UNFINISHED) and not _STORE.fullmatch(n)]
            if others and MARKER not in others:
                raise ConfigError(
                    f"{self.folder} holds other content, such as {others[0]}, and a local cache is a folder of its "
                    "own, in which old shards are removed. Name an empty or a new folder with --local-cache"
                )
            unfinished = self.folder / f"{_UNFINISHED}{os.getpid()}"
            unfinished.write_text(json.dumps(_CONTENT) + "\n", encoding="utf-8")
            unfinished.replace(self.folder / MARKER)
        try:
            content = json.loads(read_file(self.folder / MARKER, 1024, within=self.folder))
        except ValueError:
            content = None
        if content != _CONTENT:
            raise ConfigError(
                f"{self.folder / MARKER} is not that of a local cache of this version. Name another folder with "
                "--local-cache, or remove this one"
            )


def try_lock(fd: int) -> bool:
    """Lock an open file, or find it locked.

    Raises:
        StoreError: its file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"the local cache is on a file system without locks ({error.strerror}). Name a folder of this machine's "
            "own disk with --local-cache"
        ) from error
    return True


def is_named(fd: int, path: str) -> bool:
    """Whether a path still is the open file."""
    return _is_inode(path, os.fstat(fd).st_ino)


def full_disk(error: OSError, folder: Path) -> StoreError | None:
    """The error for a cache whose disk is full; None for any other problem."""
    if error.errno not in _FULL:
        return None
    return StoreError(
        f"the local cache {folder} cannot take a shard: {error.strerror}. {advice(error, folder)}, or name a folder on "
        "another disk with --local-cache"
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_inode(path: str, inode: int) -> bool:
    try:
        return os.lstat(path).st_ino == inode
    except FileNotFoundError:
        return False


def _remove(path: str) -> bool:
    try:
        Path(path).unlink()
    except FileNotFoundError:
        return True
    except OSError as error:  # another user's
        _log.warning("%s cannot be removed from the local cache: %s", path, error.strerror)
        return False
    return True


def _remove_if_dead(path: str) -> bool:
    """Remove a `.part` that nobody fetches; whoever opened it in between finds that its name is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        return try_lock(fd) and _remove(path)
    finally:
        os.close(fd)
