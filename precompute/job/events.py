"""The events of a run as JSON lines, appended to a file that a program can follow.

They go to a file because `--json` prints the final result on stdout. A second run appends to the same file.

    {"time": 1732338000.123, "event": "started", ...}     time is seconds since 1970

plan      images, todo, done, failed_before, refused, left_out (by suffix), of_other_parts, bytes, store
started   workers, load_s, where (host, device and package of workers on a cluster)
shard     written, failed, done, remaining, seconds by phase, batch_size, device
alive     in_hand, done, waited_s                          a minute has passed without the end of a task
failure   source, reason, message, attempts
retry     samples, attempts, reason                        a task is tried again, whole or in halves
backoff   device, batch_size                               a batch did not fit in memory; this one is tried next
finished  what `--json` prints; or interrupted, or failed, with the message
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

from ...pipeline.credentials import hide_passwords
from ...pipeline.errors import ConfigError

Event = Literal["plan", "started", "shard", "alive", "failure", "retry", "backoff", "finished", "interrupted", "failed"]


class Events:
    """Appends events to a file; does nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        """
        Raises:
            ConfigError: the file cannot be written; said before any work is done.
        """
        self._file: int | None = None
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            except OSError as error:
                raise ConfigError(f"--events {path} cannot be written: {error.strerror}") from error

    def write(self, event: Event, **fields: Any) -> None:
        """Append one line in one write, so that readers see whole lines, also if two runs share the file."""
        if self._file is None:
            return
        line = hide_passwords(json.dumps({"time": round(time.time(), 3), "event": event, **fields})) + "\n"
        try:
            os.write(self._file, line.encode())
        except OSError:  # a full disk must not end a job that could still say so itself
            return

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
