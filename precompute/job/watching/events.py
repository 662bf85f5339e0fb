"""The events of a task as JSON lines: one file a run of a task, appended to by that run alone.

    <cache>/jobs/<start>-<part>-<host>-<pid>.jsonl      or the file that --events names; then this one says where it is
    ~/.cache/theworld/<16 digits of the URL>/jobs/…     of a cache in a bucket: on the machine that ran the job

`theworld status` reads them, on any machine that sees the cache, while jobs run and after a kill. They may be deleted
at any time: nothing else reads them.

    {"time": 1732338000.123, "event": "started", ...}     time is seconds since 1970; the others: docs/cluster.md
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ....pipeline.credentials import hide_passwords
from ....pipeline.errors import ConfigError
from ....pipeline.files.places.local import place_of, url_of
from ....pipeline.files.places.local_copy import machine_folder
from ....pipeline.store.folder import is_store
from ..config import PrecomputeConfig

JOBS = "jobs"
"""The folder of events in a cache, beside its stores."""
BEAT_S = 30.0
"""Between two lines that say that a job lives."""
_LOCK_S = 15.0
"""For a job that was killed to let go of its file."""

Happening = Literal["begun", "plan", "started", "shard", "alive", "failure", "retry", "backoff"]
Event = Happening | Literal["finished", "interrupted", "failed", "elsewhere"]


class Events:
    """Appends events to a file; does nothing without a path."""

    def __init__(self, path: Path | None = None) -> None:
        """
        Args:
            path: one that a user named.
        Raises:
            ConfigError: the file cannot be written; said before any work is done.
        """
        self.figures: Callable[[], dict[str, Any]] = dict
        """What a heartbeat tells beside the time; called in another thread."""
        self.problem = ""
        """What a person should know of these events: that they are elsewhere than was asked for, or nowhere."""
        self.lost = ""
        """Why the file lacks lines, or parts of one."""
        self.has_plan = False
        """Before it a job that is refused has written nothing, and its events are taken back."""
        self._file: int | None = None
        self._is_torn = False
        """Whether the last line has no end, so that the next one would be lost with it."""
        self._made: list[Path] = []
        """What this run made for its events in the cache, a file after its folder."""
        self._lock = threading.Lock()
        if path is not None:
            try:
                # a pipe that nobody reads, or reads slowly, must not hold up a job
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
                self._is_torn = _is_torn(path)
            except OSError as error:
                why = "nobody reads this pipe: start its reader first" if error.errno == errno.ENXIO else error.strerror
                raise ConfigError(f"--events {path} cannot be written: {why}") from error

    @classmethod
    def of_task(cls, config: PrecomputeConfig) -> Events:
        """Where the events of a job go; it goes on also where nothing can take them, and `problem` says so.

        Raises:
            ConfigError: as `Events`.
        """
        if config.dry_run:
            return cls()
        events = cls(config.events)
        is_shared = config.events is not None and config.events.is_file() and not events._is_held()
        if is_shared:
            events.close()
        if isinstance(config.cache, str) or not is_store(config.cache):  # which is refused in a moment
            events._open_in(config, is_shared=is_shared)
        return events

    def write(self, event: Event, **fields: Any) -> None:
        """Append one line in one write, so that readers see whole lines."""
        line = _line(event, fields)
        self.has_plan |= event == "plan"
        with self._lock:
            if self._file is not None:
                line = b"\n" * self._is_torn + line
                try:
                    written = os.write(self._file, line)
                except OSError as error:  # a full disk must not end a job that could still say so itself
                    self.lost = error.strerror or str(error)
                    return
                if written < len(line):
                    self.lost = "it has no more room"
                self._is_torn = line[written - 1 : written] != b"\n"

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

    def discard(self) -> None:
        """Take back what was made in the cache: the job was refused, and nothing is written then."""
        for path in reversed(self._made):
            with suppress(OSError):  # a folder that others use by now
                path.rmdir() if path.is_dir() else path.unlink()
        self._made.clear()

    def _is_held(self) -> bool:
        """Whether nobody else writes to the file, as far as its file system has locks; this process keeps them away."""
        answers: list[bool] = []

        def ask() -> None:
            deadline = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(self._file or 0, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return answers.append(True)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        return answers.append(False)
                    time.sleep(_LOCK_S / 50)
                except OSError:
                    return answers.append(True)

        # without the lock service of its file system, asking may take for ever
        thread = threading.Thread(target=ask, name="flock", daemon=True)
        thread.start()
        thread.join(2 * _LOCK_S)
        return not answers or answers[0]

    def _open_in(self, config: PrecomputeConfig, *, is_shared: bool) -> None:
        folder = machine_folder(place_of(config.cache)) / JOBS
        try:
            for parent in [*reversed(folder.absolute().parents), folder.absolute()]:
                if not parent.is_dir():
                    with suppress(FileExistsError):  # another task of an array makes it
                        parent.mkdir()
                        self._made.append(parent)
            if config.events is None or is_shared:
                self._file = self._new_file(folder / f"{_name_of(config.part)}.jsonl")
            elif config.events.is_file() and config.events.resolve().parent != folder.resolve():
                self._point_to(config.events.resolve(), folder, _name_of_cache(config))
        except OSError as error:
            cause = error.strerror or str(error)
            self.problem = f"`theworld status` will not see this job: {folder} cannot be written: {cause}"
        if is_shared and not self.problem:
            self.problem = f"another job writes to {config.events}: the events of this one are in {folder}"

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


def _is_torn(path: Path) -> bool:
    """Whether a file ends within a line, as an earlier attempt leaves it on a full disk."""
    if not path.is_file():
        return False
    with suppress(OSError), path.open("rb") as file:  # one that may be written and not read
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1))
        return file.read(1) not in (b"", b"\n")
    return False


def facts_of_task(config: PrecomputeConfig) -> dict[str, Any]:
    """What `begun` says: enough to tell which runs are attempts at one task, and where each runs."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    return {
        "inputs": None if config.images is None else url_of(config.images) or str(config.images.absolute()),
        "part": config.part,
        "cache": _name_of_cache(config),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm": f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job,
    }


def _name_of_cache(config: PrecomputeConfig) -> str:
    return config.cache if isinstance(config.cache, str) else str(config.cache.resolve())


def _line(event: Event, fields: dict[str, Any]) -> bytes:
    return (hide_passwords(json.dumps({"time": round(time.time(), 3), "event": event, **fields})) + "\n").encode()


def _name_of(part: str | None) -> str:
    """Of this run of a task: no other has it, on whatever machine, nor an earlier one of this process."""
    now = time.time_ns()
    started = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 10**9))}.{now // 1000 % 10**6:06d}"
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:64]
    task = "all" if part is None else f"part{part.replace('/', 'of')}"
    return f"{started}-{task}-{host}-{os.getpid()}"
