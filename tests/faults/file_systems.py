"""File systems that refuse: calls of the module `os`, flock and renameat2 about what is below a folder.

    with file_system(folder, BEEGFS):  ...            # as BeeGFS, AFS, project quotas, a FUSE file system …
    with file_system(folder, Refusal("open", errno.ESTALE, times=1)):  ...

Everything else is real: the calls that are not refused reach the disk.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

TWO_PATHS = ("link", "rename", "replace", "renameat2")
ONE_PATH = ("open", "stat", "lstat", "listdir", "scandir", "mkdir", "unlink", "statvfs")
DESCRIPTOR = ("write", "fsync", "preadv", "flock")


@dataclass
class Refusal:
    """An answer that a call gets in place of what it does."""

    call: str
    number: int
    when: Callable[..., bool] = lambda *_: True
    """Of the paths that the call is about."""
    times: int | None = None
    """None: always."""
    after: bool = False
    """The call happens, and its answer is lost: what NFS does when it asks a second time."""
    met: list[tuple[Path, ...]] = field(default_factory=list)
    """The calls that were refused."""

    def applies(self, call: str, paths: tuple[Path, ...]) -> bool:
        return self.call == call and self.times != len(self.met) and self.when(*paths)


def _between_folders(first: Path, second: Path) -> bool:
    return first.parent != second.parent


BEEGFS = (
    Refusal("link", errno.EPERM, _between_folders),
    Refusal("renameat2", errno.EINVAL),
)
AFS = (Refusal("link", errno.EXDEV, _between_folders), Refusal("renameat2", errno.EINVAL))
PROJECT_QUOTAS = tuple(Refusal(call, errno.EXDEV, _between_folders) for call in TWO_PATHS)
"""Or a bind mount on each folder: neither a link nor a name leads from one to the other."""
NO_HARD_LINKS = (Refusal("link", errno.EPERM),)
NO_HARD_LINKS_FUSE = (Refusal("link", errno.ENOSYS),)
NO_HARD_LINKS_CIFS = (Refusal("link", errno.EOPNOTSUPP),)
NOTHING = (Refusal("link", errno.EPERM), Refusal("renameat2", errno.EINVAL))
AWKWARD = {
    "BeeGFS": BEEGFS,
    "AFS": AFS,
    "project quotas": PROJECT_QUOTAS,
    "no hard links": NO_HARD_LINKS,
    "no hard links, FUSE": NO_HARD_LINKS_FUSE,
    "no hard links, CIFS": NO_HARD_LINKS_CIFS,
}
"""File systems on which a store can be written all the same."""


@contextmanager
def file_system(root: Path, *refusals: Refusal, inodes: tuple[int, int] | None = None) -> Iterator[None]:
    """Let calls about what is below `root` be refused.

    Args:
        inodes: (all, free) that statvfs states.
    """
    root = root.resolve()

    def wrap(call: str, real: Callable[..., Any], paths_of: Callable[..., tuple[Path, ...]]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if getattr(_own, "is_looking", False):  # this layer itself
                return real(*arguments, **options)
            _own.is_looking = True
            try:
                paths = paths_of(*arguments, **options)
            finally:
                _own.is_looking = False
            if not all(path.is_relative_to(root) for path in paths):
                return real(*arguments, **options)
            refusal = next((refusal for refusal in refusals if refusal.applies(call, paths)), None)
            if refusal is None or refusal.after:
                answer = real(*arguments, **options)
                if refusal is None:
                    return _with_inodes(answer) if call == "statvfs" and inodes else answer
            refusal.met.append(paths)
            raise OSError(refusal.number, os.strerror(refusal.number), str(paths[-1]))

        return wrapped

    def _with_inodes(answer: os.statvfs_result) -> os.statvfs_result:
        assert inodes is not None
        values = list(answer)
        values[5], values[6], values[7] = inodes[0], inodes[1], inodes[1]
        return os.statvfs_result(values)

    with ExitStack() as stack:
        for call in ("link", "rename", "replace"):
            stack.enter_context(patch.object(os, call, wrap(call, getattr(os, call), _two)))
        for call in ONE_PATH:
            stack.enter_context(patch.object(os, call, wrap(call, getattr(os, call), _one)))
        for call in ("write", "fsync", "preadv"):
            stack.enter_context(patch.object(os, call, wrap(call, getattr(os, call), _of_descriptor)))
        stack.enter_context(patch.object(fcntl, "flock", wrap("flock", fcntl.flock, _of_descriptor)))
        real_library = ctypes.CDLL(None, use_errno=True)

        def renameat2(_: int, source: bytes, __: int, target: bytes, flags: int) -> int:
            def call(source: Any, target: Any) -> int:
                if real_library.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
                    raise OSError(ctypes.get_errno(), "")
                return 0

            try:
                return wrap("renameat2", call, _two)(source, target)
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1

        stack.enter_context(patch.object(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(renameat2=renameat2)))
        yield


_own = threading.local()


def _resolved(path: Any, dir_fd: int | None = None) -> Path:
    """Where a file is that may be named by way of a folder held open; a link stays one."""
    if isinstance(path, int):
        return _folder(path)
    path = Path(os.fsdecode(path))
    if dir_fd is not None and not path.is_absolute():
        path = _folder(dir_fd) / path
    parts = path.parts
    if parts[:4] == ("/", "proc", "self", "fd") and len(parts) > 4:
        return _folder(int(parts[4])).joinpath(*parts[5:])
    return path.parent.resolve() / path.name


def _folder(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def _one(path: Any = ".", *_: Any, dir_fd: int | None = None, **__: Any) -> tuple[Path, ...]:
    return (_resolved(path, dir_fd),)


def _two(source: Any, target: Any, *_: Any, **__: Any) -> tuple[Path, ...]:
    return _resolved(source), _resolved(target)


def _of_descriptor(fd: int, *_: Any, **__: Any) -> tuple[Path, ...]:
    return (_folder(fd),)
