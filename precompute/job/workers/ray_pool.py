"""Workers in Ray actors, on this machine or on a cluster; `open_pool` also gives the worker in this process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.places.store_paths import is_bucket
from ....pipeline.files.rights import current_umask
from ....pipeline.machine import usable_cores
from ....pipeline.progress import Progress
from ...inputs.listing.inputs import Sample
from .pool import InProcessPool, Pool, Task, reason_of, worker_class
from .ray_cluster import WorkerPlan, node_of
from .ray_counts import Counted, RayCounts
from .ray_local import Session, StopSign, ray_session

if TYPE_CHECKING:
    from .worker import Receipt, WorkerSetup

START_S = 1800.0
"""For the workers to load a world model; a large one, from a cold shared disk, takes minutes."""
RESTART_S = 600.0
"""For a dead actor to load it again, before the others go on without it."""
DISK_S = 30.0
"""For a worker that was started later to see the inputs: a node that has just joined may not have its disks yet."""
ANSWER_S = 60.0
"""For an answer that is ready to be handed over."""
POLL_S = 1.0
"""Between looks at whether Ray itself still lives."""
LOOK_S = 15.0
"""Between looks for nodes that have joined."""
AHEAD = 2
"""Tasks an actor has at once: the next one is there when the last ends, and not a way to the driver and back later."""


@dataclass(eq=False)
class _Actor:
    """One Ray actor and its tasks."""

    handle: Any
    since: float = field(default_factory=time.monotonic)
    tasks: dict[Any, Task] = field(default_factory=dict[Any, "Task"])
    """By the reference of their result."""
    died_at: float | None = None
    """When it died, until it is back."""
    restart: Any = None
    """Reference of the call that answers when it is back."""
    joins: bool = False
    """Whether it is on a node that joined late, and has not yet proven that it sees the store and the inputs."""
    host: str = ""
    """The machine it is on; empty where there is only this one."""
    next_call_at: float = 0.0
    """When to call again: while Ray restarts an actor, every call to it fails, through no fault of the caller."""


class _RayPool:
    """Ray actors that each hold a world model and have up to two tasks.

    When an actor dies, the tasks it had are tried again, each with an actor to itself: then it is known which task
    an actor dies of.
    """

    def __init__(
        self,
        session: Session,
        setup: WorkerSetup,
        workers: int,
        progress: Progress,
        sign: str,
        *,
        cpus: float,
        gpus: float,
        tries_to_write: bool = False,
    ) -> None:
        self._stop_sign, self._counts = StopSign(sign), RayCounts(sign)
        self.where: list[dict[str, str]] = []
        self.gpus_a_worker = gpus
        self._s_of_the_gone = 0.0
        self._progress = progress
        self._session = session
        self._ray = session.ray
        # one call at a time: in threads of their own, Ray's calls compute at half the speed (benchmarks/README.md)
        options = {"max_restarts": -1, "max_task_retries": 0}
        actor = self._ray.remote(num_cpus=cpus, num_gpus=gpus, **options)(worker_class())
        self._new_actor = partial(actor.remote, setup)
        self._actors = [_Actor(self._new_actor()) for _ in range(workers)]
        self._room: tuple[Callable[[list[Any]], WorkerPlan], Sample] | None = None
        self._look_at, self._left_out = 0.0, 0
        self._on_gpu = gpus > 0
        self._tries_to_write = tries_to_write

    @property
    def workers(self) -> int:
        return len(self._actors)

    def worker_s(self) -> float:
        now = time.monotonic()
        return self._s_of_the_gone + sum(now - actor.since for actor in self._actors)

    def counts(self) -> Counted:
        return self._counts.read()

    def _remove(self, actor: _Actor) -> None:
        self._s_of_the_gone += time.monotonic() - actor.since
        self._actors.remove(actor)

    def start(self) -> float:
        if self._tries_to_write:  # before the first rollout, not after it
            self.call_each("try_to_write")
        return max(self.call_each("load_s"))

    def call_each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker and wait for all answers.

        Raises:
            WorldModelError: a worker could not start, or the call failed in it.
        """
        deadline = time.monotonic() + START_S
        references = [getattr(actor.handle, method).remote(*arguments) for actor in self._actors]
        waiting = references
        while waiting:
            _, waiting = self._ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            self._session.check()
            if waiting and time.monotonic() > deadline:
                raise WorldModelError(
                    f"{len(waiting)} of {len(references)} workers did not start within {START_S / 60:.0f} minutes: "
                    "the machines have no room for so many, or cannot read the world model. Choose fewer --workers"
                )
        try:
            return self._ray.get(references, timeout=ANSWER_S)
        except self._ray.exceptions.RayError as error:
            where = f" on {node}" if (node := node_of(error)) else ""
            raise WorldModelError(f"the workers{where} could not start: {reason_of(error)}") from error

    def takes(self, task: Task, *, ahead: bool) -> bool:
        return self._actor_for(task, ahead=ahead) is not None

    def submit(self, task: Task, fitted: Mapping[str, int]) -> None:
        actor = self._actor_for(task, ahead=True)
        assert actor is not None
        actor.tasks[actor.handle.process.remote(task.samples, task.shard, dict(fitted))] = task

    def grows_by(self, plan_of: Callable[[list[Any]], WorkerPlan], first: Sample) -> None:
        """From here on `grow` looks for nodes; `plan_of` says for how many workers they have room."""
        self._room, self._look_at = (plan_of, first), time.monotonic() + LOOK_S

    def grow(self) -> None:
        now = time.monotonic()
        if self._room is None or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        plan_of, first = self._room
        with suppress(ConfigError, self._ray.exceptions.RayError):  # no node left, or a head that `check` tells of
            more = plan_of(self._ray.nodes()).workers - self._left_out - len(self._actors)
            for _ in range(more):
                handle = self._new_actor()
                self._actors.append(_Actor(handle, died_at=now, restart=handle.check_in.remote(first), joins=True))
            if more > 0:
                self._progress.say(f"room for {more} more workers has joined the cluster; starting them …")

    def _actor_for(self, task: Task, *, ahead: bool) -> _Actor | None:
        free_actors = [
            actor
            for actor in self._actors
            if actor.died_at is None and not any(task.runs_alone for task in actor.tasks.values())
        ]
        actor = min(free_actors, key=lambda actor: len(actor.tasks), default=None)
        most = AHEAD if ahead and not task.runs_alone else 1
        return actor if actor is not None and len(actor.tasks) < most else None

    def wait(self) -> list[tuple[Task, Receipt | Exception]]:
        self._session.check()
        self._call_dead_actors()
        actor_by_task = {reference: actor for actor in self._actors for reference in actor.tasks}
        actor_by_restart = {actor.restart: actor for actor in self._actors if actor.restart is not None}
        references = [*actor_by_task, *actor_by_restart]
        if not references:
            time.sleep(POLL_S / 10)
            return []
        try:
            ready, _ = self._ray.wait(references, num_returns=1, timeout=POLL_S)
        except self._ray.exceptions.RayError as error:
            self._session.check()
            raise WorldModelError(
                f"Ray does not work any more: {reason_of(error)}. Committed latents are kept: run the same "
                "command again to resume"
            ) from error
        ended: list[tuple[Task, Receipt | Exception]] = []
        for reference in ready:
            if reference in actor_by_restart:
                self._end_restart(actor_by_restart[reference])
            else:
                ended.append(self._end(actor_by_task[reference], reference))
        return ended

    def stop(self) -> None:
        self._stop_sign.put_up()

    def _end(self, actor: _Actor, reference: Any) -> tuple[Task, Receipt | Exception]:
        task = actor.tasks.pop(reference)
        exceptions = self._ray.exceptions
        try:
            return task, self._ray.get(reference, timeout=ANSWER_S)
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if self._on_gpu and _spoils_the_device(cause):
                self._ray.kill(actor.handle, no_restart=False)
                self._has_died(actor)
            return task, cause
        except exceptions.RayError as error:
            self._has_died(actor)
            if isinstance(error, exceptions.OutOfMemoryError):
                return task, MemoryError(reason_of(error))
            return task, error

    def _has_died(self, actor: _Actor) -> None:
        if actor.died_at is None:
            actor.died_at = time.monotonic()
            on_host = f" on {actor.host}" if actor.host else ""
            self._progress.warn(f"a worker{on_host} died; another is started for it, and its tasks are tried again")

    def _call_dead_actors(self) -> None:
        now = time.monotonic()
        for actor in [actor for actor in self._actors if actor.died_at is not None and actor.restart is None]:
            assert actor.died_at is not None
            if now - actor.died_at > RESTART_S:
                self._remove(actor)
                self._progress.warn(f"a worker did not come back within {RESTART_S:.0f} s; {self.workers} go on")
                self._require_workers(f"the workers died and did not come back within {RESTART_S:.0f} s")
            elif now >= actor.next_call_at:
                # on a cluster it may come back on another node, which has to see the inputs, too
                actor.restart = (
                    actor.handle.load_s.remote() if self._room is None else actor.handle.check_in.remote(self._room[1])
                )

    def _require_workers(self, reason: str) -> None:
        if not self._actors:
            raise WorldModelError(
                f"{reason}. Committed latents are kept: run the same command again, with --in-process if Ray is the "
                "cause"
            )

    def _end_restart(self, actor: _Actor) -> None:
        reference, actor.restart = actor.restart, None
        try:
            answer = self._ray.get(reference, timeout=ANSWER_S)
            actor.died_at = None
            if self._room is not None:
                self._is_at_work(actor, answer)
        except self._ray.exceptions.RayTaskError as error:
            now = time.monotonic()
            if self._room is None or now - (actor.died_at or now) < DISK_S:
                actor.next_call_at = now + POLL_S / 5
                return
            self._remove(actor)
            self._ray.kill(actor.handle)
            self._left_out += 1
            self._progress.warn(
                f"warning: a worker on {node_of(error) or 'a node'}, which was started later, is left out, as it does "
                f"not see the inputs, the cache or the world model's folder: {reason_of(error)}"
            )
            self._require_workers(f"{reason_of(error)} on the nodes that are left")
        except self._ray.exceptions.RayError:
            actor.next_call_at = time.monotonic() + POLL_S / 5

    def _is_at_work(self, actor: _Actor, place: dict[str, str]) -> None:
        """After it was started later than the others, or again, maybe on another node."""
        self.where.append(place)
        event = "has joined" if actor.joins else "is at work in place of the one that died"
        actor.joins, actor.host = False, place["host"]
        at_work = sum(member.died_at is None for member in self._actors)
        self._progress.say(f"a worker on {actor.host} {event}: {at_work} of {self.workers} workers at work")

    def check_in(self, first: Sample) -> None:
        """Have each worker prove that it sees the store and an input, and say where it is."""
        self.where = self.call_each("check_in", first)
        for actor, place in zip(self._actors, self.where, strict=True):
            actor.host = place["host"]


def _own_threads(cores: int) -> int | None:
    """Threads of torch in this process, where it would start more than it may use: it knows no quota of a container."""
    import torch

    return cores if torch.get_num_threads() > cores else None


def _spoils_the_device(error: Exception) -> bool:
    """After such an error every later call in the process fails as well."""
    return type(error).__name__ == "AcceleratorError" or "cuda error" in str(error).lower()


@contextmanager
def open_pool(
    setup: dict[str, Any], workers: int, progress: Progress, *, in_process: bool
) -> Generator[Pool, None, None]:
    """Workers on this machine; `start` them.

    Args:
        setup: the fields of a `WorkerSetup` that every worker shares.
    """
    from .worker import WorkerSetup

    cores = usable_cores()
    if in_process:
        yield InProcessPool(WorkerSetup(**setup, cores=cores, threads=_own_threads(cores)), progress)
        return
    gpus = _gpus() if setup["device"].startswith("cuda") else 0
    threads = None if gpus else max(1, cores // workers)
    in_bucket = is_bucket(setup["store"])
    with ray_session(cpus=max(workers, cores), gpus=gpus, with_buckets=in_bucket) as session:
        # workers share a GPU only if there are more workers than GPUs
        gpus_per_worker = 1 / -(-workers // gpus) if gpus else 0
        sign = _stop_sign_name()
        rays_setup = _ray_setup({**setup, "stop_sign": sign, "cores": cores // workers}, threads)
        yield _RayPool(
            session, rays_setup, workers, progress, sign, cpus=1, gpus=gpus_per_worker, tries_to_write=in_bucket
        )


@contextmanager
def join_pool(
    session: Session,
    setup: dict[str, Any],
    worker_plan: WorkerPlan,
    plan_of: Callable[[list[Any]], WorkerPlan],
    first: Sample,
    progress: Progress,
) -> Generator[Pool, None, None]:
    """Workers on a cluster that was joined, each having proven that it sees the store and the inputs.

    Args:
        first: an input that each of them has to read.
    """
    sign = _stop_sign_name()
    threads = None if worker_plan.gpus else int(worker_plan.cpus)
    pool = _RayPool(
        session,
        _ray_setup({**setup, "stop_sign": sign, "cores": worker_plan.cores}, threads),
        worker_plan.workers,
        progress,
        sign,
        cpus=worker_plan.cpus,
        gpus=worker_plan.gpus,
    )
    try:
        pool.check_in(first)
    except WorldModelError as error:
        if is_bucket(setup["store"]):
            advice = (
                f"Every node has to see the inputs and the world model's folder under the same paths, and to write to "
                f"{setup['store']} with credentials of its own: set them where `ray start` is run, or give the "
                "machines a role"
            )
        else:
            advice = (
                f"Every node has to see the inputs, the cache {setup['store']} and the world model's folder under "
                "the same paths: put them on a file system that all share"
            )
        raise WorldModelError(f"{error}. {advice}") from error
    pool.grows_by(plan_of, first)
    yield pool


def _ray_setup(setup: dict[str, Any], threads: int | None) -> WorkerSetup:
    from .worker import WorkerSetup

    # Ray's session is private; what workers write to the store gets the rights this process would give it
    return WorkerSetup(**setup, umask=current_umask(), threads=threads)


def _stop_sign_name() -> str:
    """Of one pool: a cluster may have several jobs."""
    return f"theworld-stop-{secrets.token_hex(8)}"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
