"""Read regular files of limited size: a pipe or a device cannot block or flood the reader."""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from .inside import require_inside
from .limits import MAX_JSON_VALUES
from .open_files import retried


def read_file(path: Path, limit_bytes: int, *, within: Path | None = None) -> bytes:
    """Return the content of a regular file of limited size. A pipe or a device cannot block the reader.

    Args:
        within: the folder that the file has to lie in, also after links are followed.
    Raises:
        ValueError: not a regular file, larger than `limit_bytes`, or outside of `within`.
        OSError: it cannot be read.
    """

    def read() -> bytes:
        with open_file(path, limit_bytes, within=within) as file:
            return file.read(os.fstat(file.fileno()).st_size)

    return retried(read)


def read_json(path: Path, limit_bytes: int, *, within: Path | None = None) -> Any:
    """Return the JSON value of a regular file of limited size, `within` as for `read_file`.

    Raises:
        ValueError: not a regular file, too large, of too many values, outside of `within`, not JSON, or nested too
            deeply.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_json_text(path, limit_bytes, within=within))
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def read_json_text(
    path: Path, limit_bytes: int, *, most_values: int = MAX_JSON_VALUES, within: Path | None = None
) -> bytes:
    """Return the bytes of a JSON file that may be parsed: as values they take limited memory.

    Raises:
        ValueError: not a regular file, too large, of too many values, or outside of `within`.
        OSError: it cannot be read.
    """
    return limited_json(read_file(path, limit_bytes, within=within), most_values=most_values)


def limited_json(content: bytes, *, most_values: int = MAX_JSON_VALUES) -> bytes:
    """The bytes of a JSON file as they are, if they may be parsed.

    Raises:
        ValueError: of too many values.
    """
    # each value comes after one of these, and each list or mapping begins with one
    if len(content) > most_values and (values := sum(map(content.count, (b"[", b"{", b",", b":")))) > most_values:
        raise ValueError(f"its JSON may hold {values:,} values, and the limit is {most_values:,}")
    return content


def has_content(path: Path, content: bytes, *, within: Path | None = None) -> bool:
    """Whether `path` is a regular file with exactly this content, `within` as for `read_file`."""
    try:
        return read_file(path, len(content), within=within) == content
    except (OSError, ValueError):
        return False


def open_file(path: Path, limit_bytes: int, *, within: Path | None = None) -> BufferedReader:
    """Open a regular file of limited size for reading. Arguments and errors as for `read_file`."""
    fd = retried(lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > limit_bytes:
            raise ValueError(f"it has {status.st_size} bytes, and the limit is {limit_bytes}")
        if within is not None:
            require_inside(within, path, fd)
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise
