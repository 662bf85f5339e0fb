"""Files that appear whole or not at all, and the sealed record that makes a shard visible.

Lives here: every write to a store. The order of the steps is what keeps a cut, a full disk or a second writer
harmless (measured in the fault study; replayed by tests/faults):

    payload to tmp/, fsync  ->  placed under the first free shard number  ->  folders fsynced
    ->  sealed record to tmp/, fsync  ->  placed in commits/: this is the commit  ->  folder fsynced

Placing never replaces, so the number belongs to one writer and no lock, claim or clock is needed. A writer that dies
between the two leaves a payload nobody names: its number stays a hole. Readers go by records, never by payloads.
Elsewhere: what a record says (records.py), a payload's bytes (shard_layout.py), reading them (latent_store.py).
"""

import ctypes
import errno
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError, TheWorldError

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class TempFile:
    """A new file in tmp/, written from start to end, then placed or discarded. Not for several threads.

    Every method raises the OSError of the call that failed; after that the file can only be discarded.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        self._fd: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`; the kernel may take it in several bites."""
        assert self._fd is not None
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def finish(self) -> None:
        """Make the bytes durable. A failed fsync is final: a second one may claim success for lost pages."""
        assert self._fd is not None
        fd, self._fd = self._fd, None
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def discard(self) -> None:
        """Remove the temporary name. What was placed stays."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
        try:
            os.unlink(self.path)  # noqa: PTH108 - every call goes through this module's `os`, where tests inject faults
        except FileNotFoundError:  # placed by renaming
            return


def place(temp: Path, target: Path) -> bool:
    """Give `temp` the name `target` without ever replacing a file.

    Returns:
        False where `target` exists already; nothing changed then.
    Raises:
        OSError: anything else, also a file system with neither hard links nor renameat2(RENAME_NOREPLACE).
    """
    try:
        os.link(temp, target)
    except FileExistsError:
        return _is_same(temp, target)  # over NFS an answer may get lost, and the second asking finds what the first did
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_without_replacing(temp, target)
    return True


def publish(temp_folder: Path, target: Path, content: bytes) -> bool:
    """Make a small file appear, whole and durable, unless `target` exists; returns False where it does."""
    return _appear(temp_folder, target, content, place)


def replace(temp_folder: Path, target: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Put a file in place of `target` in one step. Only for what can be rebuilt or counted again.

    Args:
        durable: False leaves out both fsyncs, a few milliseconds each, where thousands of files can be made again.
    """

    def rename(temp: Path, target: Path) -> bool:
        os.replace(temp, target)  # noqa: PTH105
        return True

    _appear(temp_folder, target, content, rename, durable=durable)


def remove(target: Path) -> None:
    """Remove a file, if it is there, durably."""
    try:
        os.unlink(target)  # noqa: PTH108
    except FileNotFoundError:
        return
    sync_folder(target.parent)


def make_folders(path: Path, *, durable: bool = True) -> None:
    """Make `path` and what is missing above it, each new name durable in its parent."""
    if path.is_dir():
        return
    make_folders(path.parent, durable=durable)
    try:
        os.mkdir(path)  # noqa: PTH102
    except FileExistsError:
        if not path.is_dir():
            raise
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some FUSE file systems cannot sync a folder at all
            raise
    finally:
        os.close(fd)


@contextmanager
def writing(store: Path) -> Generator[None]:
    """Turn an OSError inside the block into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TheWorldError):
            raise
        advice = {
            errno.ENOSPC: "Free some space",
            errno.EDQUOT: "Free some of your quota",
            errno.EFBIG: "Raise the file size limit (ulimit -f), or make shards smaller (--shard-size)",
            errno.EACCES: "Choose a --cache folder you may write to",
            errno.EPERM: "Choose a --cache folder you may write to",
            errno.EROFS: "Choose a --cache folder you may write to",
            errno.EEXIST: "Something else than a folder is in the way",
            errno.ENOTDIR: "Something else than a folder is in the way",
            errno.ENOTSUP: "Choose a --cache folder on a file system with hard links",
        }.get(error.errno or 0, "Check the disk")
        raise StoreError(
            f"cannot write to the store {store}: {error.strerror or error}. "
            f"{advice}, then run the same command again; every shard committed so far stays"
        ) from error


def _appear(
    temp_folder: Path,
    target: Path,
    content: bytes | memoryview,
    put: Callable[[Path, Path], bool],
    *,
    durable: bool = True,
) -> bool:
    temp = TempFile(temp_folder)
    try:
        temp.write(content)
        if durable:
            temp.finish()
        placed = put(temp.path, target)
        if durable:
            sync_folder(target.parent)
    finally:
        temp.discard()
    return placed


def _is_same(temp: Path, target: Path) -> bool:
    try:
        return os.stat(target, follow_symlinks=False).st_ino == os.stat(temp).st_ino  # noqa: PTH116 - one file system
    except FileNotFoundError:
        return False


def _rename_without_replacing(temp: Path, target: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOTSUP, "no hard links here", str(target)) from None
    here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE of linux/fs.h
    if renameat2(here, os.fsencode(temp), here, os.fsencode(target), no_replace) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    if number in (errno.EINVAL, errno.ENOSYS):
        raise OSError(errno.ENOTSUP, "no hard links here, nor renaming without replacing", str(target))
    raise OSError(number, os.strerror(number), str(target))
