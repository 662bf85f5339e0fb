"""Permissions of what we write: files and folders follow the umask, also those that a library or `mkdtemp` made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_STATUS = Path("/proc/self/status")


def current_umask() -> int:
    """The umask of this process."""
    try:
        [line] = (line for line in _STATUS.read_text().splitlines() if line.startswith("Umask:"))
        return int(line.split()[1], 8)
    except (OSError, ValueError):  # not Linux: there it can only be read by setting it, for all threads
        umask = os.umask(0o077)
        os.umask(umask)
        return umask


def follow_umask(path: Path) -> None:
    """Give a file or a folder the rights it had if this process had made it in the usual way.

    `mkdtemp` makes folders, and safetensors files, that only their owner may read. Folders in progress stay so;
    call this once they are whole.
    """
    mode = path.lstat().st_mode
    usual = 0o777 if stat.S_ISDIR(mode) else 0o666
    path.chmod(usual & ~current_umask() | mode & stat.S_ISGID)  # a folder of a group hands its group down
