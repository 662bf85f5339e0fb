"""Read regular files of limited size: a pipe or a device cannot block or flood the reader."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO


def read_file(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a regular file of limited size. A pipe or a device cannot block the reader.

    Raises:
        ValueError: not a regular file, or larger than `limit_bytes`.
        OSError: it cannot be read.
    """
    with open_file(path, limit_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_json(path: Path, limit_bytes: int) -> Any:
    """Return the JSON value of a regular file of limited size.

    Raises:
        ValueError: not a regular file, too large, not JSON, or nested too deeply.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_file(path, limit_bytes))
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def has_content(path: Path, content: bytes) -> bool:
    """Whether `path` is a regular file with exactly this content."""
    try:
        return read_file(path, len(content)) == content
    except (OSError, ValueError):
        return False


def open_file(path: Path, limit_bytes: int) -> BinaryIO:
    """Open a regular file of limited size for reading. Raises as `read_file`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > limit_bytes:
            raise ValueError(f"it has {status.st_size} bytes, and the limit is {limit_bytes}")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise
