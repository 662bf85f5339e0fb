"""How many files this process may hold open, and what to do when there are no more.

Who keeps files open only to be faster (`SparesFiles`) may hold half of the limit, all of them together. The other half
is for everything else: inputs, sockets, processes. The soft limit is raised to the hard one when half of it is not
enough; a shell's `ulimit -n` shows both.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

MOST_RAISED = 65_536
"""The soft limit is raised to this at most: containers often have a hard limit of a billion."""
_FULL = {errno.EMFILE, errno.ENFILE}
_LOST = {errno.ESTALE, errno.ENOTCONN}

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class SparesFiles(Protocol):
    """Something that keeps files open only to be faster."""

    @property
    def open_count(self) -> int:
        """Files it keeps open now."""
        ...

    def close_to(self, count: int) -> int:
        """Keep this many open, those used last; return how many were closed. Never waits for another thread."""
        ...


class _Process:
    """The open files of this process, and its limit."""

    def __init__(self) -> None:
        self.keepers: weakref.WeakSet[SparesFiles] = weakref.WeakSet()
        self.ceiling: int | None = None
        """Kept open at most, learned when there were no more."""
        self.lock = threading.Lock()

    def renew_lock(self) -> None:
        """After a fork: another thread may have held it at that moment."""
        self.lock = threading.Lock()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.renew_lock)


def join(keeper: SparesFiles) -> None:
    """Let a keeper take part in the half of the limit, and be asked to close files when there are no more."""
    with _process.lock:
        _process.keepers.add(keeper)


def soft_limit() -> int:
    """Files this process may have open now (`ulimit -n`)."""
    if sys.platform == "win32":
        return 512
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min((limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY), default=MOST_RAISED)


def raise_limit() -> bool:
    """Raise the soft limit to the hard one, and log it; False where it is there already, or may not be raised."""
    if sys.platform == "win32":
        return False
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return False
    highest = MOST_RAISED if hard == resource.RLIM_INFINITY else min(hard, MOST_RAISED)
    for wanted in (highest, 10_240):  # macOS states a hard limit without end and takes no more than this
        if soft < wanted <= highest:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):
                continue
            _log.info("raised this process's limit of open files from %d to %d (ulimit -n)", soft, wanted)
            return True
    return False


def allowance(keeper: SparesFiles, wanted: int) -> int:
    """How many files a keeper may hold open: what others leave of half the limit, and its share of it at the least.

    The limit is raised where `wanted` are more.
    """
    others = [other for other in _keepers() if other is not keeper and other.open_count]
    for is_second_look in (False, True):
        half = _half()
        share = half // (1 + len(others))
        left = half - sum(other.open_count for other in others)
        if wanted <= max(share, left) or is_second_look or not raise_limit():
            break
    if left < share:
        for other in others:
            other.close_to(share)
    return max(1, share, left)


def retried(call: Callable[[], _T]) -> _T:
    """Call something that opens or looks up a file, again where that heals.

    No more files may be open: raise the limit, then close half of those kept open, as often as there are any. A
    network file system has lost the handle of a file or folder (ESTALE, ENOTCONN): call once more, by its path.

    Raises:
        OSError: as of `call`.
    """
    is_second_look = False
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno in _FULL and make_room():
                continue
            if error.errno not in _LOST or is_second_look:
                raise
            is_second_look = True


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder, in no order; raises as `Path.iterdir`, but for what `retried` heals."""
    return retried(lambda: list(folder.iterdir()))


def is_lost(error: OSError) -> bool:
    """Whether a file system has lost the handle of an open file, which opening it anew may heal."""
    return error.errno in _LOST


def make_room() -> bool:
    """Raise the limit, or close half of the files kept open; False where neither gives any room."""
    if raise_limit():
        return True
    keepers = _keepers()
    closed = sum(keeper.close_to(keeper.open_count // 2) for keeper in keepers)
    if closed:
        _process.ceiling = max(1, sum(keeper.open_count for keeper in keepers))
        _log.info("no more files may be open: closed %d of those kept open for reading", closed)
    return bool(closed)


def _half() -> int:
    half = soft_limit() // 2
    return half if _process.ceiling is None else min(half, _process.ceiling)


def _keepers() -> list[SparesFiles]:
    with _process.lock:
        return list(_process.keepers)
