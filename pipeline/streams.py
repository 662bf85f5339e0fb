"""The standard streams of a command, where they fail.

What the caller closed (`2>&-`) is opened on the null device, or the next file would get its number and be written into.
A line for a stderr that cannot be written is lost, and the job goes on: its reader or its terminal is gone, or the disk
of its log is full. A result for a stdout that cannot be written is an error in words.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from .errors import OutputError

_WAIT_S = 1.0
"""Between looks at a stream that another program made non-blocking and that is full."""


def secure_streams() -> None:
    """Open what is closed of this process's three streams, and let nothing that is said on stderr end it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)  # or a worker's next file would get it
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115 - until the process ends
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        buffer = io.BufferedWriter(_Stderr(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)


@contextmanager
def result_of() -> Generator[None, None, None]:
    """Inside the block a result is written to stdout.

    Raises:
        OutputError: it cannot be written. A reader that has read enough (`| head`) is no such error.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up(sys.stdout)
        raise OutputError(
            f"the result cannot be written to stdout: {error.strerror or error}. What this command made or changed on "
            "disk stays; send stdout to a place that has room, and run it again to see the result"
        ) from error


class _Stderr(io.FileIO):
    """Takes all that is written, whether or not somebody gets it."""

    def write(self, data: Any) -> int:
        """As of FileIO, but waits where that would not, and fails never."""
        try:
            while (written := super().write(data)) is None:
                select.select((), (self,), (), _WAIT_S)
        except OSError:
            return memoryview(data).nbytes
        return written


def _give_up(stream: Any) -> None:
    """Let what is left in its buffer go nowhere, or Python's last flush would fail and change the exit code to 120."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
