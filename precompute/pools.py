"""Workers as the job sees them: tasks go in, receipts or exceptions come out, here or in Ray actors.

Lives here: who runs a task. Elsewhere: what a task is worth and what follows a failure (job.py), a shard's work
(worker.py), Ray's settings (ray_session.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..pipeline.errors import WorldModelError
from .ray_session import ray_session
from .sources import Sample

if TYPE_CHECKING:  # diffusers takes seconds to import, and a run with nothing to do needs none of it
    from .worker import Receipt, WorkerSetup


RESTART_S = 600.0
"""For a dead actor to load its world model again; a large one takes minutes."""


@dataclass
class Task:
    """Up to a shard of samples, and how often they were tried together."""

    samples: tuple[Sample, ...]
    shard: int | None = None
    """The number its shard should get, so that stores end in the order of the plan."""
    attempts: int = 0


class Pool(Protocol):
    """Workers that take tasks; in this process or in Ray."""

    slots: int
    """Tasks it can work on at once."""

    def submit(self, task: Task) -> None:
        """Start a task; only while fewer than `slots` are in work."""
        ...

    def next(self) -> tuple[Task, Receipt | Exception]:
        """Wait for any task to end: its receipt, or what it failed of."""
        ...


class _InProcess:
    """One worker in this process, for tests, debugging and machines without Ray."""

    slots = 1

    def __init__(self, setup: WorkerSetup) -> None:
        from .worker import Worker

        self._worker = Worker(setup)
        self._task: Task | None = None

    def submit(self, task: Task) -> None:
        self._task = task

    def next(self) -> tuple[Task, Receipt | Exception]:
        assert self._task is not None
        task, self._task = self._task, None
        try:
            return task, self._worker.process(task.samples, task.shard)
        except Exception as error:
            return task, error


class _RayPool:
    """Ray actors that each hold a world model and work on one task at a time.

    One, so that when an actor dies it is known which task it died of.
    """

    def __init__(self, ray: Any, setup: WorkerSetup, workers: int, *, gpus: float) -> None:
        from .worker import Worker

        self._ray = ray
        self.slots = workers
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=0)(Worker)
        self._idle = [actor.remote(setup) for _ in range(workers)]
        self._tasks: dict[Any, tuple[Any, Task]] = {}
        try:
            ray.get([one.load_s.remote() for one in self._idle])
        except ray.exceptions.RayError as error:
            raise WorldModelError(f"the workers could not start: {reason_of(error)}") from error

    def submit(self, task: Task) -> None:
        actor = self._idle.pop()
        self._tasks[actor.process.remote(task.samples, task.shard)] = (actor, task)

    def next(self) -> tuple[Task, Receipt | Exception]:
        [reference], _ = self._ray.wait(list(self._tasks), num_returns=1)
        actor, task = self._tasks.pop(reference)
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            outcome = error.cause if isinstance(error.cause, Exception) else error
        except self._ray.exceptions.RayError as error:
            self._await_restart(actor)
            outcome = error
        self._idle.append(actor)
        return task, outcome

    def _await_restart(self, actor: Any) -> None:
        """Ray starts a dead actor again; until it has loaded, every call to it fails, through no fault of the task."""
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                self._ray.get(actor.load_s.remote(), timeout=RESTART_S)
                return
            except self._ray.exceptions.RayError as error:
                if time.monotonic() > deadline:
                    raise WorldModelError(
                        f"a worker died and did not come back within {RESTART_S:.0f} s ({reason_of(error)}). "
                        "What is committed stays; the same command goes on, with --in-process if Ray is the trouble"
                    ) from error
                time.sleep(0.2)


@contextmanager
def open_pool(setup: dict[str, Any], workers: int, *, in_process: bool) -> Generator[Pool, None, None]:
    """Workers that are loaded and ready.

    Args:
        setup: the fields of a `WorkerSetup` that every worker shares.
    Raises:
        WorldModelError: they could not start.
    """
    from .worker import WorkerSetup

    if in_process:
        yield _InProcess(WorkerSetup(**setup))
        return
    cores = os.cpu_count() or 1
    on_gpu = setup["device"].startswith("cuda")
    threads = None if on_gpu else max(1, cores // workers)
    # Ray's session is private; what workers write to the store gets the rights this process would give it
    umask = os.umask(0o022)
    os.umask(umask)
    with ray_session(cpus=max(workers, cores), gpus=workers if on_gpu else 0) as ray:
        yield _RayPool(
            ray, WorkerSetup(**setup, umask=umask, threads=threads), workers, gpus=1 if on_gpu else 0
        )


def reason_of(error: BaseException) -> str:
    """The last line of an error: Ray's are whole tracebacks."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1][:300]}"
