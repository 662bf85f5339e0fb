"""What the jobs of a cache are doing, read from their events: on any machine that sees the cache, also after a kill.

A task is a place of inputs, or a part of one, and a store. The same command given again, by hand or by a requeue, is
one more attempt at it. Nothing is asked of the jobs themselves: one that has written no line for a while is stale, be
it killed, stopped, or cut off from the file system.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from ....pipeline.errors import StoreNotFoundError, TheWorldError
from ....pipeline.files.places.local import place_of
from ....pipeline.files.places.local_copy import machine_folder
from ....pipeline.files.places.place import Place, parent_of
from ....pipeline.files.places.store_paths import store_path
from ....pipeline.messages import command
from ....pipeline.store.folder import is_store, load_store
from ..planning.cost import duration
from .events import JOBS
from .job_runs import JobRun, runs_in

STALE_S = 180.0
"""Without a line for so long a job is stale: six heartbeats, as a network file system may show them a minute late."""


_OF_A_BUCKET = "; of a bucket, of the machine that ran the job"


@dataclass(frozen=True)
class Task:
    """The attempts at one task, by their beginnings."""

    attempts: tuple[JobRun, ...]

    @property
    def latest(self) -> JobRun:
        return self.attempts[-1]

    @property
    def name(self) -> str:
        """Of the task, for people: its part, else its inputs."""
        run = self.latest
        return run.part or (Path(run.inputs).name if run.inputs else "own scenes")

    @property
    def store_name(self) -> str:
        """Empty where no attempt got so far."""
        return next((run.store_name for run in reversed(self.attempts) if run.store_name), "")

    @property
    def written(self) -> int:
        """Latents that its attempts committed, together."""
        return sum(run.written for run in self.attempts)

    @property
    def shards(self) -> int:
        return sum(run.shards for run in self.attempts)

    @property
    def worker_hours(self) -> float:
        return sum(run.worker_hours for run in self.attempts)

    @property
    def gpu_hours(self) -> float:
        return sum(run.gpu_hours for run in self.attempts)

    def to_json(self, now: float, stale_s: float) -> dict[str, Any]:
        """Plain values for `--json`."""
        run = self.latest
        return {
            "store": str(run.location_of(self.store_name)) if self.store_name else None,
            "inputs": run.inputs,
            "part": run.part,
            "state": run.state_at(now, stale_s),
            "silent_s": round(run.silent_s(now), 1),
            "attempts": len(self.attempts),
            "done_before": run.done_before,
            "todo": run.todo,
            "done": run.done,
            "made": run.made,
            "percent": run.percent,
            "per_s": run.per_s and round(run.per_s, 4),
            "elapsed_s": round(run.elapsed_s, 1),
            "left_s": run.left_s and round(run.left_s),
            "written": self.written,
            "shards": self.shards,
            "elsewhere": sum(attempt.elsewhere for attempt in self.attempts),
            "failures": dict(+run.failures),
            "retries": run.retries,
            "workers": run.workers,
            "nodes": run.nodes,
            "ready_s": run.ready_s,
            "worker_hours": round(self.worker_hours, 5),
            "gpu_hours": round(self.gpu_hours, 5),
            "host": run.host,
            "pid": run.pid,
            "slurm": run.slurm,
            "message": run.message,
            "events": str(run.file),
        }


@dataclass(frozen=True)
class StoreShare:
    """Whose a store's latents are."""

    path: Path | str
    latents: int | None
    """None where the store cannot be read, or is in a bucket that was not asked for."""
    shards: int
    of_tasks: int
    """Written by the tasks that are listed; as many may have been dropped or merged since."""

    @property
    def of_others(self) -> int:
        """By jobs whose events are not here."""
        return max(0, (self.latents or 0) - self.of_tasks)


@dataclass(frozen=True)
class Status:
    """The tasks of one or several caches, and their stores."""

    tasks: tuple[Task, ...]
    stores: tuple[StoreShare, ...]
    unreadable: tuple[str, ...] = ()
    """Files and lines of events that could not be read, in words."""
    now: float = field(default_factory=time.time)
    stale_s: float = STALE_S

    def states(self) -> Counter[str]:
        """State -> tasks in it."""
        return Counter(task.latest.state_at(self.now, self.stale_s) for task in self.tasks)

    def total(self) -> dict[str, Any]:
        """All tasks together."""
        runs = [task.latest for task in self.tasks]
        running = [run for run in runs if run.state_at(self.now, self.stale_s) == "running"]
        wanted = sum(run.done_before + run.todo for run in runs)
        done = sum(run.done_before + run.done + run.made for run in runs)
        failures: Counter[str] = sum((run.failures for run in runs), Counter[str]())
        return {
            "tasks": len(runs),
            "states": dict(self.states()),
            "done": done,
            "wanted": wanted,
            "percent": 100 * done // wanted if wanted else None,
            "per_s": round(sum(run.per_s or 0 for run in running), 4),
            "left_s": max((round(run.left_s) for run in running if run.left_s is not None), default=None),
            "failures": dict(failures),
            "worker_hours": round(sum(task.worker_hours for task in self.tasks), 5),
            "gpu_hours": round(sum(task.gpu_hours for task in self.tasks), 5),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "tasks": [task.to_json(self.now, self.stale_s) for task in self.tasks],
            "total": self.total(),
            "stores": [
                {
                    "store": str(share.path),
                    "latents": share.latents,
                    "shards": share.shards,
                    "of_tasks": share.of_tasks,
                    "of_others": share.of_others,
                }
                for share in self.stores
            ],
            "unreadable": list(self.unreadable),
        }


def table_of(status: Status) -> Table:
    """A row a task; of columns those that tell something."""
    hours = "GPU-h" if any(task.gpu_hours for task in status.tasks) else "worker-h"
    rows = [_row(task, status, hours) for task in status.tasks]
    table = Table(box=None, pad_edge=False)
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _row(task: Task, status: Status, hours: str) -> dict[str, str]:
    run = task.latest
    state = run.state_at(status.now, status.stale_s)
    wanted = run.done_before + run.todo
    silent = f", no line for {duration(run.silent_s(status.now))}" * (state == "stale")
    left = duration(run.left_s) if run.left_s is not None and state == "running" else ""
    return {
        "task": task.name,
        "state": f"{state}{silent}",
        "done": f"{run.done_before + run.done + run.made:,} of {wanted:,}" if wanted else "",
        "%": "" if run.percent is None else str(run.percent),
        "rate": f"{run.per_s:.3g}/s" if run.per_s else "",
        "left": left,
        hours: f"{task.gpu_hours if hours == 'GPU-h' else task.worker_hours:.2f}",
        "failed": ", ".join(f"{count} {reason}" for reason, count in (+run.failures).items()),
        "attempts": str(len(task.attempts)) if len(task.attempts) > 1 else "",
        "workers": str(run.workers or ""),
        "host": run.host,
        "SLURM": run.slurm or "",
    }


def lines_of(status: Status) -> list[str]:
    """What stands below the table: all tasks together, why some ended, and whose the latents are."""
    total = status.total()
    left = f", {duration(total['left_s'])} left" if total["left_s"] is not None else ""
    rate = f", {total['per_s']:.3g}/s" if total["per_s"] else ""
    lines = [
        f"{len(status.tasks)} task{'s' * (len(status.tasks) != 1)}: "
        + ", ".join(f"{count} {state}" for state, count in sorted(status.states().items()))
        + (f"; {total['done']:,} of {total['wanted']:,} done ({total['percent']} %)" if total["wanted"] else "")
        + f"{rate}{left}"
    ]
    for task in status.tasks:
        if task.latest.phase in ("failed", "interrupted"):
            lines.append(f"{task.name} {task.latest.phase}: {task.latest.message}")
    if status.states()["stale"]:
        lines.append(
            f"stale: neither an end nor a line for {status.stale_s:.0f} s, so killed, stopped or cut off. If it is "
            "gone, the same command again resumes it"
        )
    for share in status.stores:
        made_by_tasks = f"{share.of_tasks:,} of them made by these tasks"
        others = f", {share.of_others:,} by others" * (share.of_others > 0)
        held = "cannot be read" if share.latents is None else f"{share.latents:,} latents in {share.shards:,} shards"
        lines.append(f"store {share.path}: {held}" + f", {made_by_tasks}{others}" * (share.latents is not None))
    return lines


def read_status(where: Path | str, *, stale_s: float | None = None) -> Status:
    """The tasks of a store, of a cache folder, of all caches up to two folders below one, or of one file of events.

    Of a cache in a bucket, those that this machine ran.

    Args:
        stale_s: a job that has not ended and wrote no line for so long is stale; None is `STALE_S`.
    Raises:
        StoreNotFoundError: no job has left events there.
    """
    named = store_path(where)
    bucket = place_of(named) if isinstance(named, str) else None
    if isinstance(named, Path):
        place = named
        only = place.resolve().name if is_store(place) else None
    else:  # this machine's jobs
        assert bucket is not None
        only = named.rpartition("/")[2] if is_store(bucket) else None
        place = machine_folder(place_of(parent_of(bucket)) if only else bucket)
    runs, unreadable = runs_in(_files_of(place))
    if only is not None:
        runs = [run for run in runs if run.store_name in (only, "")]
    if not runs:
        raise StoreNotFoundError(
            f"no job has left events in {named} ({JOBS}/ of a cache folder{_OF_A_BUCKET * (bucket is not None)}). Name "
            "the folder that a job has as --cache, one of its stores, or the file that it has as --events; "
            f"{command('cache', 'list', named)} lists stores"
        )
    tasks = tuple(task for task in _tasks_of(runs) if only in (None, task.store_name))
    return Status(tasks, _shares(tasks, bucket), tuple(unreadable), stale_s=STALE_S if stale_s is None else stale_s)


def _files_of(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if is_store(place):
        place = place.resolve().parent
    patterns = (f"{JOBS}/*.jsonl", f"*/{JOBS}/*.jsonl", f"*/*/{JOBS}/*.jsonl")
    return [path for pattern in patterns for path in sorted(place.glob(pattern))]


def _tasks_of(runs: Sequence[JobRun]) -> tuple[Task, ...]:
    grouped: dict[tuple[Any, str], list[JobRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.begun_at):
        grouped[run.task, run.store_name or _likely_store(run, runs)].append(run)
    tasks = [task for group in grouped.values() for task in _apart(group)]
    return tuple(sorted(tasks, key=_order))


def _likely_store(run: JobRun, runs: Sequence[JobRun]) -> str:
    """Of a run that is listing its inputs, and so does not know its store: that of the next attempt, or the last."""
    others = [other for other in runs if other.task == run.task and other.store_name]
    later = [other for other in others if other.begun_at > run.begun_at]
    nearest = min(later or others, key=lambda other: abs(other.begun_at - run.begun_at), default=None)
    return "" if nearest is None else nearest.store_name


def _apart(attempts: Sequence[JobRun]) -> Iterator[Task]:
    """One task; an attempt that still wrote when the latest began is another, as both may be at work."""
    *earlier, latest = attempts
    at_work = [run for run in earlier if not run.has_ended and run.heard_at > latest.begun_at]
    yield from (Task((run,)) for run in at_work)
    yield Task((*(run for run in earlier if run not in at_work), latest))


def _order(task: Task) -> tuple[Path, int, int, str, str]:
    number, _, count = (task.latest.part or "0/0").partition("/")
    digits = [int(digits) if digits.isascii() and digits.isdigit() else 0 for digits in (count, number)]
    return task.latest.cache, digits[0], digits[1], task.latest.inputs or "", task.store_name


def _shares(tasks: Sequence[Task], asked_for: Place | None) -> tuple[StoreShare, ...]:
    written: Counter[Path | str] = Counter()
    for task in tasks:
        if task.store_name:
            written[task.latest.location_of(task.store_name)] += task.written
    shares: list[StoreShare] = []
    for path, count in sorted(written.items(), key=lambda item: str(item[0])):
        # a stranger's events decide about no request that is made with your credentials
        if isinstance(path, str) and not (asked_for and f"{path}/".startswith(f"{asked_for}/")):
            shares.append(StoreShare(path, None, 0, count))
            continue
        try:
            store = load_store(path)
            shares.append(StoreShare(path, len(store), len(store.shards), count))
        except (TheWorldError, OSError):
            shares.append(StoreShare(path, None, 0, count))
    return tuple(shares)
