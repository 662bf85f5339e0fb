"""Write files so that a reader sees all of a file or nothing, also after a crash.

A file is written to a temporary name, synced, and then placed (never replacing) or renamed over the old one. Every
system call that changes a disk goes through this module's `os`, where the tests inject faults.
"""

import ctypes
import errno
import os
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from ..errors import StoreError, TheWorldError
from .inside import held_folder

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class TempFile:
    """A new file with a temporary name, written from start to end, then placed or discarded. Not thread-safe.

    Every method passes on the OSError of a failed call. After an error the file can only be discarded.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        self._fd: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. The kernel may take it in several parts."""
        assert self._fd is not None
        remaining = memoryview(data).cast("B")
        while remaining:
            remaining = remaining[os.write(self._fd, remaining) :]

    def finish(self) -> None:
        """Make the bytes durable. A failed fsync is final: a second one may report success for lost pages."""
        assert self._fd is not None
        fd, self._fd = self._fd, None
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def discard(self) -> None:
        """Remove the temporary name. A placed file stays."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
        try:
            os.unlink(self.path)  # noqa: PTH108 - through this module's `os`
        except FileNotFoundError:  # placed by renaming
            return


def place(temp: Path, target: Path) -> bool:
    """Give `temp` the name `target`; never replace a file.

    Returns:
        False if `target` exists already; nothing changes then.
    Raises:
        OSError: any other failure, also a file system with neither hard links nor renameat2(RENAME_NOREPLACE).
    """
    try:
        os.link(temp, target)
    except FileExistsError:
        return _is_same(temp, target)  # NFS may lose the answer and repeat the call
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_without_replacing(temp, target)
    return True


def publish(temp_folder: Path, target: Path, content: bytes, *, within: Path | None = None) -> bool:
    """Write a small durable file in one step, unless `target` exists; return whether it was written.

    Args:
        within: follow no link below this folder, whoever puts one there meanwhile.
    """
    return _write(temp_folder, target, content, place, within=within)


def replace(
    temp_folder: Path,
    target: Path,
    content: bytes | memoryview,
    *,
    durable: bool = True,
    within: Path | None = None,
) -> None:
    """Write a file in one step, replacing `target`. Only for content that can be rebuilt.

    Args:
        within: as for `publish`.
        durable: False saves both fsyncs, a few milliseconds each.
    """

    def rename(temp: Path, target: Path) -> bool:
        os.replace(temp, target)  # noqa: PTH105
        return True

    _write(temp_folder, target, content, rename, durable=durable, within=within)


def remove(target: Path, *, within: Path | None = None) -> None:
    """Remove a file durably, if it exists; `within` as for `publish`."""
    try:
        with _held(within, target.parent) as folder:
            os.unlink(folder / target.name)  # noqa: PTH108
            sync_folder(folder)
    except FileNotFoundError:
        return


def remove_all(folder: Path, names: Sequence[str], *, within: Path, durable: bool = True) -> None:
    """Remove files of one folder with a single sync, or none; those that are gone already do not matter."""
    if not names:
        return
    with suppress(FileNotFoundError), held_folder(within, folder) as held:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(held / name)  # noqa: PTH108
        if durable:
            sync_folder(held)


def make_folders(path: Path, *, durable: bool = True) -> None:
    """Make a folder and its missing parents, and sync the parent of each new one."""
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


@contextmanager
def made_folder(root: Path, folder: Path, *, durable: bool = True) -> Generator[Path]:
    """A path of a folder that is made with what is missing on the way below `root`, following no link there.

    Raises:
        NotADirectoryError: a link, or something that is no folder, is on the way.
    """
    with ExitStack() as stack:
        path = stack.enter_context(held_folder(root, root))
        for part in folder.relative_to(root).parts:
            try:
                path = stack.enter_context(held_folder(path, path / part))
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(path / part)  # noqa: PTH102
                if durable:
                    sync_folder(path)
                path = stack.enter_context(held_folder(path, path / part))
        yield path


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable (fsync of the folder)."""
    try:
        _sync(path, os.O_DIRECTORY)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some FUSE file systems cannot sync a folder at all
            raise


def sync_tree(folder: Path) -> None:
    """Make all files and names in a folder and below it durable, where another library wrote them."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            _sync(path)


@contextmanager
def writing(store: Path) -> Generator[None]:
    """Turn an OSError inside the block into a StoreError that tells the user what to do."""
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
            errno.EEXIST: "Remove the file that is where a folder belongs",
            errno.ENOTDIR: "Remove the file that is where a folder belongs",
            errno.ENOTSUP: "Choose a --cache folder on a file system with hard links",
        }.get(error.errno or 0, "Check the disk")
        raise StoreError(
            f"cannot write to the store {store}: {error.strerror or error}. "
            f"{advice}, then run the same command again; every shard committed so far stays"
        ) from error


def _write(
    temp_folder: Path,
    target: Path,
    content: bytes | memoryview,
    put: Callable[[Path, Path], bool],
    *,
    durable: bool = True,
    within: Path | None,
) -> bool:
    with _held(within, temp_folder) as temps, _held(within, target.parent) as folder:
        temp = TempFile(temps)
        try:
            temp.write(content)
            if durable:
                temp.finish()
            placed = put(temp.path, folder / target.name)
            if durable:
                sync_folder(folder)
        finally:
            temp.discard()
        return placed


def _held(within: Path | None, folder: Path) -> AbstractContextManager[Path]:
    return nullcontext(folder) if within is None else held_folder(within, folder)


def _sync(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_same(temp: Path, target: Path) -> bool:
    try:
        return os.stat(target, follow_symlinks=False).st_ino == os.stat(temp).st_ino  # noqa: PTH116 - same file system
    except FileNotFoundError:
        return False


def _rename_without_replacing(temp: Path, target: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOTSUP, "this file system has no hard links", str(target)) from None
    at_fdcwd, no_replace = -100, 1  # AT_FDCWD of fcntl.h, RENAME_NOREPLACE of linux/fs.h
    if renameat2(at_fdcwd, os.fsencode(temp), at_fdcwd, os.fsencode(target), no_replace) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    if number in (errno.EINVAL, errno.ENOSYS):
        raise OSError(errno.ENOTSUP, "this file system has neither hard links nor RENAME_NOREPLACE", str(target))
    raise OSError(number, os.strerror(number), str(target))
