"""The events of a task as JSON lines: one file a run of a task, appended to by that run alone.

    <cache>/jobs/<start>-<part>-<host>-<pid>.jsonl      or the file that --events names; then this one says where it is

`theworld status` reads them, on any machine that sees the cache, while jobs run and after a kill. They may be deleted
at any time: nothing else reads them.

    {"time": 1732338000.123, "event": "started", ...}     time is seconds since 1970; the others: docs/cluster.md
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ...pipeline.credentials import hide_passwords
from ...pipeline.errors import ConfigError, StoreError, StoreLockedError
from ...pipeline.files.lock import exclusive_lock
from ...pipeline.store.folder import is_store
from .config import PrecomputeConfig

JOBS = "jobs"
"""The folder of events in a cache, beside its stores."""
BEAT_S = 30.0
"""Between two lines that say that a job lives."""
_LOCK_S = 15.0
"""For helpers of a job that was killed to end, which may hold its file for a moment."""

Happening = Literal["begun", "plan", "started", "shard", "alive", "failure", "retry", "backoff"]
Event = Happening | Literal["finished", "interrupted", "failed", "elsewhere"]


class Events:
    """Appends events to a file; does nothing without a path."""

    def __init__(self, path: Path | None = None) -> None:
        """
        Args:
            path: one that a user named; another job may not write to it at the same time.
        Raises:
            ConfigError: the file cannot be written; said before any work is done.
        """
        self.figures: Callable[[], dict[str, Any]] = dict
        """What a heartbeat tells beside the time; called in another thread."""
        self.problem = ""
        """Why this job leaves no events for `theworld status`; empty where it does."""
        self.has_plan = False
        """Before it a job that is refused has written nothing, and its events are taken back."""
        self._file: int | None = None
        self._made: list[Path] = []
        """What this run made for its events in the cache, a file after its folder."""
        self._lock = threading.Lock()
        self._held = ExitStack()
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            except OSError as error:
                raise ConfigError(f"--events {path} cannot be written: {error.strerror}") from error
            if path.is_file():
                self._hold(path)

    @classmethod
    def of_task(cls, config: PrecomputeConfig) -> Events:
        """Where the events of a job go. Where its cache cannot take them, `problem` says why, and the job goes on.

        Raises:
            ConfigError: as `Events`.
        """
        if config.dry_run:
            return cls()
        events = cls(config.events)
        if not is_store(config.cache):  # which is refused in a moment
            events._open_in(config)
        return events

    def write(self, event: Event, **fields: Any) -> None:
        """Append one line in one write, so that readers see whole lines."""
        line = _line(event, fields)
        self.has_plan |= event == "plan"
        with self._lock:
            if self._file is not None:
                with suppress(OSError):  # a full disk must not end a job that could still say so itself
                    os.write(self._file, line)

    @contextmanager
    def beating(self) -> Generator[None, None, None]:
        """Inside the block a line every `BEAT_S` says that the job lives, whatever it does."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_S):
                self.write("alive", **self.figures())

        thread = threading.Thread(target=beat, name="events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(BEAT_S)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self._held.close()

    def discard(self) -> None:
        """Take back what was made in the cache: the job was refused, and nothing is written then."""
        for path in reversed(self._made):
            with suppress(OSError):  # a folder that others use by now
                path.rmdir() if path.is_dir() else path.unlink()
        self._made.clear()

    def _hold(self, path: Path) -> None:
        """Keep other jobs away from a file, as far as its file system has locks."""
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                self._held.enter_context(exclusive_lock(path, busy=f"--events {path} is written to by another job"))
                return
            except StoreLockedError as error:
                if time.monotonic() > deadline:
                    self.close()
                    raise ConfigError(f"{error}. Name another file for this one") from error
                time.sleep(0.2)
            except (StoreError, OSError):
                return

    def _open_in(self, config: PrecomputeConfig) -> None:
        folder = config.cache / JOBS
        try:
            for parent in [*reversed(folder.absolute().parents), folder.absolute()]:
                if not parent.is_dir():
                    with suppress(FileExistsError):  # another task of an array makes it
                        parent.mkdir()
                        self._made.append(parent)
            if config.events is None:
                self._file = self._new_file(folder / f"{_name_of(config.part)}.jsonl")
            elif config.events.is_file() and config.events.resolve().parent != folder.resolve():
                self._point_to(config.events.resolve(), folder, str(config.cache.resolve()))
        except OSError as error:
            self.problem = f"{folder} cannot be written: {error.strerror or error}"

    def _new_file(self, path: Path) -> int:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        self._made.append(path.absolute())
        return file

    def _point_to(self, file: Path, folder: Path, cache: str) -> None:
        """Say in the cache where the events are. All attempts of a job that is tried again have one such file."""
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
        try:
            pointer = self._new_file(folder / f"elsewhere-{digest}.jsonl")
        except FileExistsError:
            return
        try:
            os.write(pointer, _line("elsewhere", {"file": str(file), "cache": cache, "host": socket.gethostname()}))
        finally:
            os.close(pointer)


def facts_of_task(config: PrecomputeConfig) -> dict[str, Any]:
    """What `begun` says: enough to tell which runs are attempts at one task, and where each runs."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    return {
        "inputs": None if config.images is None else str(config.images.absolute()),
        "part": config.part,
        "cache": str(config.cache.resolve()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm": f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job,
    }


def _line(event: Event, fields: dict[str, Any]) -> bytes:
    return (hide_passwords(json.dumps({"time": round(time.time(), 3), "event": event, **fields})) + "\n").encode()


def _name_of(part: str | None) -> str:
    """Of this run of a task: no other has it, on whatever machine, nor an earlier one of this process."""
    now = time.time_ns()
    started = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 10**9))}.{now // 1000 % 10**6:06d}"
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:64]
    task = "all" if part is None else f"part{part.replace('/', 'of')}"
    return f"{started}-{task}-{host}-{os.getpid()}"
