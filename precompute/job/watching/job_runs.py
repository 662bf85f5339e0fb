"""The runs of a job, read from its event files.

The files may be a stranger's, torn, or still growing: nothing in them is trusted, and what is no event is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ....pipeline.files.places.store_paths import is_bucket
from ....pipeline.files.plain import open_file
from .events import JOBS

_FILE_BYTES, _LINE_BYTES = 2**34, 2**22
_ENDED = {"finished", "interrupted", "failed"}


@dataclass(eq=False)
class JobRun:
    """One run of a task, as far as its events go."""

    file: Path
    cache: Path
    """The folder of stores, as this machine sees it."""
    begun_at: float = 0.0
    heard_at: float = 0.0
    """Time of its last line."""
    started_at: float | None = None
    """When its workers were ready."""
    phase: str = "listing"
    """listing, loading, running; or how it ended: finished, interrupted, failed."""
    inputs: str | None = None
    part: str | None = None
    host: str = ""
    pid: int | None = None
    slurm: str | None = None
    named_cache: str = ""
    """As its own machine names it."""
    store_name: str = ""
    """Empty as long as the run does not know its store."""
    done_before: int = 0
    todo: int = 0
    done: int = 0
    made: int = 0
    """In batches whose shard is not committed yet."""
    written: int = 0
    shards: int = 0
    elsewhere: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])
    """Inputs of this run that have no latent, by reason."""
    retries: int = 0
    workers: int = 0
    nodes: int = 0
    ready_s: float | None = None
    worker_hours: float = 0.0
    gpu_hours: float = 0.0
    message: str = ""

    def location_of(self, store: str) -> Path | str:
        """Where a store of its cache is: the URL, if that is in a bucket."""
        return f"{self.named_cache}/{store}" if is_bucket(self.named_cache) else self.cache / store

    @property
    def has_ended(self) -> bool:
        """And has said so itself."""
        return self.phase in _ENDED

    def silent_s(self, now: float) -> float:
        """Since its last line; 0 for one that has ended."""
        return 0.0 if self.has_ended else max(0.0, now - self.heard_at)

    def state_at(self, now: float, stale_s: float) -> str:
        """Its phase, or `stale` where it has neither ended nor written a line for so long."""
        return "stale" if self.silent_s(now) > stale_s else self.phase

    @property
    def percent(self) -> int | None:
        """Of the inputs of this task, those done before included."""
        wanted = self.done_before + self.todo
        return 100 * (self.done_before + self.done + self.made) // wanted if wanted else None

    @property
    def task(self) -> tuple[Path, str | None, str | None]:
        """What its attempts have in common, beside the store."""
        return self.cache, self.part, self.inputs

    @property
    def elapsed_s(self) -> float:
        return max(0.0, self.heard_at - self.begun_at)

    @property
    def per_s(self) -> float | None:
        """Inputs a second, from when the workers were ready."""
        if self.started_at is None or self.heard_at <= self.started_at:
            return None
        return (self.done + self.made) / (self.heard_at - self.started_at)

    @property
    def left_s(self) -> float | None:
        """Seconds to go at this rate; None where that is not known, or nothing runs."""
        if self.phase != "running" or not self.per_s:
            return None
        return (self.todo - self.done - self.made) / self.per_s

    def add(self, event: dict[str, Any]) -> None:
        """Take in the next line."""
        name = _text(event, "event") or ""
        self.heard_at = max(self.heard_at, _number(event, "time") or 0.0)
        self._add_figures(event)
        if name == "begun":
            self.inputs, self.part, self.slurm = _text(event, "inputs"), _text(event, "part"), _text(event, "slurm")
            self.host, self.named_cache = _text(event, "host") or "", _text(event, "cache") or ""
            self.pid = _count(event, "pid")
        elif name == "plan":
            self.phase = "loading"
            self.todo, self.done_before = _count(event, "todo") or 0, _count(event, "done") or 0
            self.failures["unreadable"] = _count(event, "refused") or 0
            self._name_store(event)
        elif name == "started":
            self.phase, self.started_at = "running", self.heard_at
            self.ready_s, self.nodes = _number(event, "ready_s"), _count(event, "nodes") or 0
            self._name_store(event)
        elif name == "shard":
            written = _count(event, "written") or 0
            self.written += written
            self.shards += written > 0
            self.elsewhere += _count(event, "elsewhere") or 0
            self.made = max(0, self.made - written)
        elif name == "failure":
            self.failures[_text(event, "reason") or "unknown"] += 1
        elif name == "retry":
            self.retries += 1
        elif name in _ENDED:
            self.phase, self.made = str(name), 0
            self.message = _text(event, "message") or ""
            if name == "finished":
                self._finish(event)

    def _finish(self, event: dict[str, Any]) -> None:
        self.done = self.todo
        self._name_store(event)
        reasons = event.get("reasons")
        if isinstance(reasons, dict):  # those that could not be read, and failed before, by their reasons
            named = cast(dict[str, Any], reasons)
            self.failures = Counter({reason: _count(named, reason) or 0 for reason in named})

    def _add_figures(self, event: dict[str, Any]) -> None:
        for name in ("done", "made", "workers"):
            if event.get("event") != "plan" and (count := _count(event, name)) is not None:
                setattr(self, name, count)
        self.worker_hours = _number(event, "worker_hours") or self.worker_hours
        self.gpu_hours = _number(event, "gpu_hours") or self.gpu_hours

    def _name_store(self, event: dict[str, Any]) -> None:
        """A plan for a store that does not exist yet names the cache."""
        name = Path(_text(event, "store") or "").name
        if name != Path(self.named_cache).name:
            self.store_name = name


def runs_in(files: Sequence[Path]) -> tuple[list[JobRun], list[str]]:
    """The runs in files of events, and what could not be read, in words."""
    runs: list[JobRun] = []
    unreadable: list[str] = []
    read: set[tuple[Path, str]] = set()
    for path in files:
        cache = path.resolve().parent.parent if path.resolve().parent.name == JOBS else None
        job_runs, problems, pointer = _read(path, cache)
        runs += job_runs
        unreadable += problems
        if pointer is not None and cache is not None:
            target, named_cache = Path(_text(pointer, "file") or ""), _text(pointer, "cache") or ""
            if (target, named_cache) in read:
                continue
            read.add((target, named_cache))
            job_runs, problems, _ = _read(target, cache)
            runs += [run for run in job_runs if run.named_cache == named_cache]  # another cache may have the same file
            unreadable += [f"{problem} (written on {_text(pointer, 'host')})" for problem in problems]
    return runs, unreadable


def _read(path: Path, cache: Path | None) -> tuple[list[JobRun], list[str], dict[str, Any] | None]:
    """The runs of a file, its problems, and what it says where the events are if they are elsewhere."""
    runs: list[JobRun] = []
    bad, pointer = 0, None
    try:
        for event in _events_of(path):
            if event is None:
                bad += 1
            elif event.get("event") == "elsewhere":
                pointer = event
            else:
                if event.get("event") == "begun" or not runs:
                    runs.append(
                        JobRun(path, cache or Path(_text(event, "cache") or "."), _number(event, "time") or 0.0)
                    )
                runs[-1].add(event)
    except (OSError, ValueError) as error:
        return runs, [f"{path} cannot be read here: {getattr(error, 'strerror', None) or error}"], pointer
    return runs, [f"{bad} lines of {path} are no events and are left out"] * (bad > 0), pointer


def _events_of(path: Path) -> Iterator[dict[str, Any] | None]:
    """The events of a file; None for a line that is none. A last line without an end is still being written."""
    with open_file(path, _FILE_BYTES) as file:
        while line := file.readline(_LINE_BYTES):
            if not line.endswith(b"\n"):
                if len(line) < _LINE_BYTES:
                    return
                yield None
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                yield None
                continue
            event = cast(dict[str, Any], value) if isinstance(value, dict) else {}
            yield event if isinstance(event.get("event"), str) else None


def _number(event: dict[str, Any], name: str) -> float | None:
    value = event.get(name)
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e15 else None


def _count(event: dict[str, Any], name: str) -> int | None:
    value = event.get(name)
    return value if type(value) is int and 0 <= value < 10**15 else None


def _text(event: dict[str, Any], name: str) -> str | None:
    value = event.get(name)
    return value if isinstance(value, str) else None
