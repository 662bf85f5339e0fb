"""Size, times and inode of a file, to notice that it has changed."""

from __future__ import annotations

import os
from typing import NamedTuple


class FileFacts(NamedTuple):
    """Device, inode, size and times; while all are equal the file counts as unchanged."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def facts_of(path: str) -> FileFacts | None:
    """The facts of a file, or of a link's target; None where there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a hundred thousand times
    except (OSError, ValueError):
        return None
    return facts_from(status)


def facts_from(status: os.stat_result) -> FileFacts:
    """The facts in a stat result."""
    return FileFacts(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
