"""Size, times and inode of a file, to notice that it changed."""

from __future__ import annotations

import os
from typing import NamedTuple


class FileFacts(NamedTuple):
    """By what a file is known to be unchanged."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def facts_of(path: str) -> FileFacts | None:
    """What is known of a file, of the one it leads to where it is a link; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a hundred thousand times
    except (OSError, ValueError):
        return None
    return facts_from(status)


def facts_from(status: os.stat_result) -> FileFacts:
    """The same from a stat that was made."""
    return FileFacts(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
