"""What the size of a payload says about it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..errors import DamagedShardError
from ..files.open_files import retried
from .records import unreadable

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def size_problem(payload: Path, stated_bytes: int, number: int) -> str | None:
    """What is wrong with a payload by its size; None where nothing is."""
    try:
        status = retried(lambda: os.stat(payload))  # noqa: PTH116 - hot
    except OSError as error:
        if error.errno in _NOT_THERE:
            return "it is missing"
        store_error = unreadable(payload, number, error)
        if isinstance(store_error, DamagedShardError):
            return error.strerror or str(error)
        raise store_error from error
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_size != stated_bytes:
        return f"it has {status.st_size} bytes, its record states {stated_bytes}"
    return None
