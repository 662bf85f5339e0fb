"""A pool of workers: tasks go in, receipts or exceptions come out. Here is the pool of one worker in this process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ....pipeline.errors import ConfigError, Interrupted, StoreError, WorldModelError
from ....pipeline.machine import is_out_of_memory
from ....pipeline.progress import Progress
from ...inputs.listing.inputs import Sample
from .ray_counts import Counted

if TYPE_CHECKING:  # diffusers takes seconds to import, and a run with nothing to do needs none of it
    from .worker import Receipt, Worker, WorkerSetup


@dataclass
class Task:
    """Up to a shard of samples, and how often they were tried together."""

    samples: tuple[Sample, ...]
    shard: int | None = None
    """The number its shard should get, so that stores end in the order of the plan."""
    attempts: int = 0

    @property
    def runs_alone(self) -> bool:
        """Whether it needs an actor to itself: it failed before, and if the actor dies, this task is the reason."""
        return self.attempts > 0


class Pool(Protocol):
    """Workers that take tasks; in this process or in Ray."""

    where: list[dict[str, str]]
    """Host, device and package folder of each worker on another machine."""
    gpus_a_worker: float

    @property
    def workers(self) -> int:
        """How many there are."""
        ...

    def worker_s(self) -> float:
        """Seconds of all workers so far, loading and waiting included: of each from when it was asked for."""
        ...

    def counts(self) -> Counted:
        """Batches done of each task in progress. May be called in another thread."""
        ...

    def start(self) -> float:
        """Wait until all are ready; returns the seconds it took the slowest to load.

        Raises:
            WorldModelError, ConfigError: they could not start.
        """
        ...

    def takes(self, task: Task, *, ahead: bool) -> bool:
        """Whether a task can be submitted now; with `ahead` also to a worker that is busy with another task."""
        ...

    def submit(self, task: Task, fitted: Mapping[str, int]) -> None:
        """Start a task that it takes. `fitted`: device -> the batch that fitted where a larger one did not."""
        ...

    def wait(self) -> list[tuple[Task, Receipt | Exception]]:
        """Wait up to a second for tasks to end; returns their receipts or exceptions, often none."""
        ...

    def grow(self) -> None:
        """Take in workers on nodes that have joined since, at times; the loop calls it while tasks wait."""
        ...

    def stop(self) -> None:
        """Ask the workers to end after their current batch and commit what they have; `wait` for their receipts."""
        ...


class InProcessPool:
    """One worker in this process, for tests, debugging and machines without Ray."""

    workers = 1

    def __init__(self, setup: WorkerSetup, progress: Progress) -> None:
        self.where: list[dict[str, str]] = []
        self.gpus_a_worker = 1.0 if setup.device.startswith("cuda") else 0.0
        self._since = time.monotonic()
        self._progress = progress
        self._worker = worker_class()(setup)
        self._task: tuple[Task, Mapping[str, int]] | None = None
        self._shown_reasons: set[str] = set()

    def worker_s(self) -> float:
        return time.monotonic() - self._since

    def counts(self) -> Counted:
        return self._worker.counts.read()

    def start(self) -> float:
        return self._worker.load_s()

    def takes(self, task: Task, *, ahead: bool) -> bool:
        del task, ahead
        return self._task is None

    def submit(self, task: Task, fitted: Mapping[str, int]) -> None:
        self._task = task, fitted

    def wait(self) -> list[tuple[Task, Receipt | Exception]]:
        assert self._task is not None
        (task, fitted), self._task = self._task, None
        try:
            return [(task, self._worker.process(task.samples, task.shard, fitted))]
        except Interrupted:
            raise
        except (StoreError, WorldModelError, ConfigError) as error:  # it ends the job, and says what is wrong
            return [(task, error)]
        except Exception as error:
            reason = reason_of(error)
            if reason not in self._shown_reasons:  # once, to show where it breaks: the task is tried again
                self._shown_reasons.add(reason)
                if isinstance(error, MemoryError):  # while decoding or writing: it says nothing of the batch
                    self._progress.warn("a task ran out of main memory; it is tried again")
                elif is_out_of_memory(error):
                    self._progress.warn("a task ran out of memory, with batches of one; it is tried again")
                else:
                    self._progress.warn(f"a task failed:\n{traceback.format_exc().rstrip()}")
            return [(task, error)]

    def grow(self) -> None:
        return

    def stop(self) -> None:
        return  # this process heard the signal itself


def worker_class() -> type[Worker]:
    """The `Worker` class, imported late because diffusers takes seconds to import."""
    from .worker import Worker

    return Worker


def reason_of(error: BaseException) -> str:
    """The last line of an error: Ray's are whole tracebacks."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1][:300]}"
