"""Names of file systems, and what their errors mean: local disks, network file systems, quotas.

Sources: link(2), rename(2), flock(2), statvfs(3); BeeGFS links only within a folder, AFS and project quotas too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil

from ..messages import command, format_bytes
from . import open_files

SERVER_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ESHUTDOWN", "ENODEV")
    if hasattr(errno, name)
)
"""A server does not answer, or no longer knows the file: nothing is known of the file itself."""
_MISSING_ABILITY = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})
_SPARE_BYTES = 2**24
"""A disk with more than this free is not full of bytes."""
_CHECK = "Check the disk"
_WRITABLE = "Choose a --cache folder you may write to"


def name_of(path: Path) -> str:
    """The type of the file system that a path is on, such as ext4, nfs4, lustre or fuse.sshfs; "unknown" elsewhere."""
    real = os.path.realpath(path)
    best = ("", "unknown")
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, NotImplementedError):  # no /proc
        return best[1]
    for mount in mounts:  # of two on one folder the later one hides the other
        top = mount.mountpoint.rstrip(os.sep)
        if (real == top or real.startswith(f"{top}{os.sep}")) and len(top) >= len(best[0]):
            best = (top, mount.fstype)
    return best[1] or "unknown"


def advice(error: OSError, folder: Path) -> str:
    """What an error of writing to or reading from a folder comes from, and what to do about it: one sentence."""
    number = error.errno or 0
    if number == errno.ENOSPC:
        return _full(folder)
    if number == errno.EDQUOT:
        return (
            f"Free some of your quota, of bytes or of files: {_free(folder)} on the file system itself. `quota -s` "
            "(`lfs quota` on Lustre, `beegfs-ctl --getquota` on BeeGFS) shows which of the two is used up"
        )
    if number in SERVER_ERRORS:
        return (
            f"The file system ({name_of(folder)}) lost its server or the handle of the file, so nothing is known of "
            "the file itself. See that it is mounted and answers (`ls`)"
        )
    if number == errno.EMFILE:
        return (
            f"This process may have {open_files.soft_limit()} files open, and has. Raise the limit: `ulimit -n 4096` "
            "(or have the hard limit raised)"
        )
    if number == errno.ENFILE:
        return "All programs of this machine together have as many files open as it allows (sysctl fs.file-max)"
    if number in _MISSING_ABILITY:
        return (
            f"The file system ({name_of(folder)}) lacks what a store needs: hard links within a folder, or renaming "
            "without replacing. Choose a --cache folder on a file system with hard links"
        )
    return {
        errno.EFBIG: "Raise the file size limit (ulimit -f), or make shards smaller (--shard-size)",
        errno.EACCES: _WRITABLE,
        errno.EPERM: f"{_WRITABLE}, on a file system ({name_of(folder)}) with hard links",
        errno.EROFS: _WRITABLE,
        errno.EEXIST: "Remove the file that is where a folder belongs",
        errno.ENOTDIR: "Remove the file that is where a folder belongs",
        errno.ENAMETOOLONG: "Choose a --cache folder with a shorter path",
        errno.ENOLCK: "The file server grants no locks (is its lock service running?)",
    }.get(number, _CHECK)


def reading_advice(error: OSError, path: Path) -> str:
    """What an error of reading a file comes from, and what to do about it: one sentence."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "Check your rights to it"
    text = advice(error, path.parent)
    return "Check the mount and the limits of this process (ulimit)" if text == _CHECK else text


def _full(folder: Path) -> str:
    """What there is no space for: bytes, inodes, or what neither of the two counts show."""
    space = _space(folder)
    if space is None or space.f_bavail * space.f_frsize < _SPARE_BYTES:
        return "Free some space"
    if space.f_files and not space.f_favail:
        gc = command("cache", "gc", "STORE")
        return (
            f"No inode is free: all {space.f_files:,} are in use, while "
            f"{format_bytes(space.f_bavail * space.f_frsize)} are free. Each file takes one: delete small files "
            f"(`{gc}` finds a store's leftovers), make fewer and larger shards (--shard-size), or choose a --cache "
            "folder on another file system"
        )
    return (
        f"Free some space: {_free(folder)}, so the limit that is reached is of this folder or of one part of the file "
        "system (a project quota, a Lustre target: `lfs df -h`, `lfs df -i`)"
    )


def _free(folder: Path) -> str:
    space = _space(folder)
    if space is None:
        return "it is not known what is free"
    inodes = f" and {space.f_favail:,} of {space.f_files:,} inodes" if space.f_files else ""
    return f"{format_bytes(space.f_bavail * space.f_frsize)}{inodes} are free"


def _space(folder: Path) -> os.statvfs_result | None:
    for place in (folder, *folder.absolute().parents):  # it may not be made yet
        try:
            return os.statvfs(place)
        except FileNotFoundError:
            continue
        except (OSError, AttributeError):
            return None
    return None
