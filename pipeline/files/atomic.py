"""Write files so that a reader sees all of a file or nothing, also after a crash.

A file is written to a temporary name, synced, and then placed (never replacing) or renamed over the old one. Where a
file system links or renames only within one folder, the file first moves, or is copied, to a hidden name beside its
target. Every system call that changes a disk goes through this module's `os`, where the tests inject faults.
"""

import ctypes
import errno
import os
import re
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from ..errors import StoreError, TheWorldError
from .file_system import advice
from .inside import held_folder
from .open_files import is_lost, retried
from .plain import has_content

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Some FUSE file systems cannot sync a folder at all."""
_BESIDE = re.compile(r"\.\d+-[0-9a-f]{16}\.placing")
"""Hidden, and like no name of a record, a shard or a chunk: listings and globs of other programs leave it out."""
_TEMPORARY = re.compile(r"\d+-[0-9a-f]{16}")
_COPY_BYTES = 2**22


class TempFile:
    """A new file with a temporary name, written from start to end, then placed or discarded. Not thread-safe.

    Every method passes on the OSError of a failed call. After an error the file can only be discarded.
    """

    def __init__(self, folder: Path, *, beside: bool = False) -> None:
        """
        Args:
            beside: for a folder in which files are also found by their names.
        """
        self.path = _name_beside(folder) if beside else folder / _unused_name()
        self._fd: int | None = retried(lambda: os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))

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
        OSError: any other failure, also a file system with neither hard links nor renameat2(RENAME_NOREPLACE). `temp`
            is then where it was.
    """
    try:
        return _link(temp, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    if _exists(target):  # then nothing moves
        return False
    with _beside(temp, target) as beside:
        try:
            return _link(beside, target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _rename_without_replacing(beside, target)


def is_placing(name: str) -> bool:
    """Whether a file has the name of one that was about to be placed: if its writer was killed, it is a leftover."""
    return _BESIDE.fullmatch(name) is not None


def is_unfinished(name: str) -> bool:
    """Whether a file has the name of one that was being written: if its writer was killed, it is a leftover."""
    return _TEMPORARY.fullmatch(name) is not None or is_placing(name)


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
        try:
            os.replace(temp, target)  # noqa: PTH105
        except FileNotFoundError:
            if not has_content(target, bytes(content)):  # NFS may lose the answer and repeat the call
                raise
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy = _copy_beside(temp, target, durable=durable)
            try:
                os.replace(copy.path, target)  # noqa: PTH105
            finally:
                copy.discard()
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
        if error.errno not in _NO_FOLDER_SYNC:
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
        raise StoreError(
            f"cannot write to the store {store}: {error.strerror or error}. "
            f"{advice(error, store)}, then run the same command again; every shard committed so far stays"
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
    began_to_place = False
    for is_second_try in (False, True):
        try:
            with _held(within, temp_folder) as temps, _held(within, target.parent) as folder:
                temp = TempFile(temps)
                try:
                    temp.write(content)
                    if durable:
                        temp.finish()
                    began_to_place = True
                    placed = put(temp.path, folder / target.name)
                    if durable:
                        sync_folder(folder)
                finally:
                    temp.discard()
                return placed
        except OSError as error:
            # the handle of a folder was lost: by their paths both are found anew
            if began_to_place or is_second_try or not is_lost(error):
                if error.filename is None:  # write and fsync name no file
                    error.filename = str(target)
                raise
    raise AssertionError


def _held(within: Path | None, folder: Path) -> AbstractContextManager[Path]:
    return nullcontext(folder) if within is None else held_folder(within, folder)


def _sync(path: Path, flags: int = 0) -> None:
    fd = retried(lambda: os.open(path, os.O_RDONLY | flags))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unused_name() -> str:
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def _name_beside(folder: Path) -> Path:
    return folder / f".{_unused_name()}.placing"


def _link(temp: Path, target: Path) -> bool:
    try:
        os.link(temp, target)
    except FileExistsError:
        return _is_same(temp, target)  # NFS may lose the answer and repeat the call
    return True


@contextmanager
def _beside(temp: Path, target: Path) -> Generator[Path]:
    """A path of the file in the target's own folder, for as long as the block takes.

    It is moved there; by a copy where even renaming stays within a folder, as between two bind mounts of one disk or
    two project quotas. Unless the block gave it a name, the file is where it was afterwards.
    """
    path = _name_beside(target.parent)
    try:
        _move(temp, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = _copy_beside(temp, target, durable=True)
        try:
            yield copy.path
        finally:
            copy.discard()
        return
    try:
        yield path
    finally:
        if not _exists(path):  # renamed
            pass
        elif _is_same(path, target):
            with suppress(OSError):  # a leftover, which must not hide that the file is in its place
                os.unlink(path)  # noqa: PTH108
        else:
            _move(path, temp)


def _move(source: Path, target: Path) -> None:
    """Rename to a name that nothing else has."""
    try:
        os.replace(source, target)  # noqa: PTH105
    except FileNotFoundError:
        if not _exists(target):  # NFS may lose the answer and repeat the call
            raise


def _copy_beside(temp: Path, target: Path, *, durable: bool) -> TempFile:
    """A copy of a file in the folder of `target`."""
    copy = TempFile(target.parent, beside=True)
    try:
        fd = retried(lambda: os.open(temp, os.O_RDONLY))
        try:
            while block := os.read(fd, _COPY_BYTES):
                copy.write(block)
        finally:
            os.close(fd)
        if durable:
            copy.finish()
    except BaseException:
        with suppress(OSError):
            copy.discard()
        raise
    return copy


def _exists(path: Path) -> bool:
    try:
        os.stat(path, follow_symlinks=False)  # noqa: PTH116
    except FileNotFoundError:
        return False
    return True


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
