"""The job: plan, then shards of work over workers, each committing its own, until every input is done or in the ledger.

Lives here: the order of things, retries, and the report. Elsewhere: one shard's work (worker.py), Ray (ray_session.py).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..pipeline.commit import publish
from ..pipeline.errors import ConfigError, Interrupted, StoreError, WorldModelError
from ..pipeline.ledger import Failure
from ..pipeline.progress import Progress
from ..pipeline.recipe import Recipe
from ..pipeline.store import LatentStore, create_store, find_store
from .config import PrecomputeConfig, make_recipe
from .plan import Plan, bytes_per_sample, choose_shard_size, make_plan
from .ray_session import ray_session
from .sources import Sample, list_images
from .text import check_prompts, embed_prompts
from .world import COSMOS, WORLDLET, WorldSource, resolve_world

if TYPE_CHECKING:  # diffusers takes seconds to import, and a run with nothing to do needs none of it
    from .worker import Receipt, WorkerSetup

CPU_BATCH, GPU_BATCH = 8, 16
WHOLE_ATTEMPTS = 2
"""Tries of a shard as a whole before it is halved to find the sample that breaks it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a run ended."""

    store: Path
    recipe: Recipe
    plan: Plan
    written: int = 0
    failures: tuple[Failure, ...] = ()
    """New ones of this run."""
    seconds: float = 0.0
    """Wall time of the rollouts, start-up of the workers left out."""
    worker_seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Summed over workers, by phase."""
    bytes_written: int = 0
    dry_run: bool = False

    @property
    def bad(self) -> int:
        """Inputs of this run without a latent."""
        return len(self.failures) + len(self.plan.failed_before)

    def summary(self) -> str:
        """What a person reads at the end: what happened, what failed and why, and what to type next."""
        if self.dry_run:
            return "dry run: nothing was written"
        lines: list[str] = []
        if self.written:
            rate = self.written / self.seconds if self.seconds else 0.0
            phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.worker_seconds.items())
            lines.append(
                f"{self.written} rollouts in {self.seconds:.1f} s ({rate:.1f} images/s), "
                f"{self.bytes_written / 2**20:.1f} MiB; worker time: {phases}"
            )
        else:
            lines.append(f"nothing to do: {self.plan.done} of {self.plan.images} images have their latents")
        if self.bad:
            reasons = Counter(f.reason for f in (*self.failures, *self.plan.failed_before))
            lines.append(f"{self.bad} inputs failed ({', '.join(f'{n} {reason}' for reason, n in reasons.items())}):")
            shown = (*self.failures, *self.plan.failed_before)[:5]
            lines.extend(f"  {failure.reason:>10}  {failure.message}" for failure in shown)
            if self.bad > len(shown):
                lines.append(f"  … and {self.bad - len(shown)} more, one file each in {self.store / 'failed'}")
            lines.append("all others are done; --retry-failed tries these again, --max-bad N accepts N of them")
        lines.append(f"store: {self.store}")
        lines.append(f"next:  theworld train --cache {self.store.parent}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "store": str(self.store),
            "recipe_id": self.recipe.id,
            "images": self.plan.images,
            "done_before": self.plan.done,
            "written": self.written,
            "failed": self.bad,
            "failures": [
                {"source": f.source, "reason": f.reason, "message": f.message}
                for f in (*self.failures, *self.plan.failed_before)
            ],
            "bytes": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "dry_run": self.dry_run,
        }


@dataclass
class _Task:
    samples: tuple[Sample, ...]
    attempts: int = 0


class _Pool(Protocol):
    """Workers that take tasks; in this process or in Ray."""

    slots: int

    def submit(self, task: _Task) -> None: ...
    def next(self) -> tuple[_Task, Receipt | Exception]: ...


def run_precompute(config: PrecomputeConfig, *, progress: Progress | None = None) -> Report:
    """Roll out every image that has no latents yet.

    Args:
        progress: where a person watches; None is silent.
    Returns:
        A report; inputs that failed are in it and in the store's ledger, and did not stop the run.
    Raises:
        ConfigError, RecipeError, WorldModelError: before anything is written.
        StoreError: the store cannot be written.
        Interrupted: a signal; what is committed stays.
    """
    progress = progress or Progress.silent()
    prompts = [text for text in (config.prompt, config.negative_prompt) if text is not None]
    check_prompts(prompts, config.guardrail)  # before 10 GB of text encoder are fetched for nothing
    world = resolve_world(config.world, with_text=bool(prompts))
    recipe = make_recipe(config, world)
    device = choose_device(config.device)
    workers = config.workers or _default_workers(world, device)
    if config.images is None:
        progress.say(_embedded_note(config, world))
    listing = list_images(config.images or _own_scenes(config, world), limit=config.limit)
    spec = world.latent_spec()
    shape = spec.sample_shape(recipe.height, recipe.width, recipe.rollout_steps)
    store = find_store(config.cache, recipe)
    plan = make_plan(listing, store, bytes_per_sample(shape, recipe.dtype), retry_failed=config.retry_failed)
    label = f"{world.name}-rollout{recipe.rollout_steps}-{recipe.height}x{recipe.width}"
    for line in plan.lines(recipe, world, str(store.path) if store else f"new, in {config.cache}"):
        progress.say(line)
    if config.dry_run:
        return Report(store=store.path if store else config.cache, recipe=recipe, plan=plan, dry_run=True)

    store = create_store(
        config.cache,
        recipe,
        spec,
        label=label,
        shard_size=config.shard_size or choose_shard_size(len(plan.todo), workers),
    )
    for damage in store.damage:
        progress.say(f"warning: {damage}")
    store.record_sources((sample.source, sample.key) for sample in listing.samples)
    readable = {sample.source for sample in listing.samples}
    for failure in store.failures():
        if failure.key is None and failure.source in readable:
            store.clear_failure(failure)
    for failure in plan.refused:
        store.record_failure(failure)
    if not plan.todo:
        store.publish_shape()
        return Report(store=store.path, recipe=recipe, plan=plan, failures=plan.refused)

    text_file: Path | None = None
    if (text := embed_prompts(world.folder, recipe)) is not None:
        text_file = store.path / "prompt.safetensors"
        publish(store.path / "tmp", text_file, text.to_bytes())
    setup = {
        "world_folder": str(world.folder),
        "store": str(store.path),
        "device": device,
        "batch_size": config.batch_size or (CPU_BATCH if device == "cpu" else GPU_BATCH),
        "text": str(text_file) if text_file else None,
    }
    tasks = [
        _Task(plan.todo[start : start + store.shard_size]) for start in range(0, len(plan.todo), store.shard_size)
    ]
    progress.say("starting the workers …")
    with _pool(setup, min(workers, len(tasks)), in_process=config.in_process) as pool, _signals():
        return _drive(pool, tasks, store, plan, progress)


def choose_device(device: str) -> str:
    """`auto` is a GPU where there is one.

    Raises:
        ConfigError: the device named does not exist here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: this machine has no CUDA device that torch can use; try --device cpu")
    return device


def _drive(pool: _Pool, tasks: Sequence[_Task], store: LatentStore, plan: Plan, progress: Progress) -> Report:
    queue = deque(tasks)
    in_flight = written = bytes_written = crashes = 0
    failures: list[Failure] = list(plan.refused)
    phases: Counter[str] = Counter()
    retried = {failure.key: failure for failure in store.failures()}
    started = time.monotonic()
    with progress.bar("rolling out", total=len(plan.todo), unit="images") as bar:
        try:
            while queue or in_flight:
                while queue and in_flight < pool.slots:
                    pool.submit(queue.popleft())
                    in_flight += 1
                task, outcome = pool.next()
                in_flight -= 1
                if not isinstance(outcome, Exception):
                    written += outcome.written
                    bytes_written += outcome.bytes_written
                    phases.update(outcome.seconds)
                    for sample in task.samples:
                        if sample.key in retried:
                            store.clear_failure(retried[sample.key])
                    for failure in outcome.failures:
                        store.record_failure(failure)
                        failures.append(failure)
                    bar.advance(len(task.samples), failed=len(failures))
                    continue
                if isinstance(outcome, (StoreError, WorldModelError, OSError)):
                    raise outcome
                crashes += 1
                if not written and crashes > WHOLE_ATTEMPTS * pool.slots + 2:
                    raise WorldModelError(
                        f"the first {crashes} shards all failed, the last with {_reason(outcome)}. "
                        "Nothing has been written; run with --in-process --limit 1 to see where it breaks"
                    ) from outcome
                if (retry := _again(task)) is not None:
                    queue.extendleft(retry)
                    continue
                sample = task.samples[0]
                failure = Failure(
                    source=sample.source,
                    key=sample.key,
                    reason="rollout",
                    message=f"rolling out {sample.source} failed {task.attempts + 1} times: {_reason(outcome)}",
                    attempts=task.attempts + 1,
                )
                store.record_failure(failure)
                failures.append(failure)
                bar.advance(1, failed=len(failures))
        except (KeyboardInterrupt, Interrupted) as stop:
            remaining = len(plan.todo) - written - len(failures) + len(plan.refused)
            raise Interrupted(
                f"interrupted: {written} rollouts were committed to {store.path} and stay; {remaining} remain. "
                "The same command goes on where this one stopped"
            ) from stop
        finally:
            store.publish_shape()
    return Report(
        store=store.path,
        recipe=store.recipe,
        plan=plan,
        written=written,
        failures=tuple(failures),
        seconds=time.monotonic() - started,
        worker_seconds=dict(phases),
        bytes_written=bytes_written,
    )


def _again(task: _Task) -> list[_Task] | None:
    """What to try after a task failed: the whole once more, then its halves; None for a single sample out of tries."""
    if task.attempts + 1 < WHOLE_ATTEMPTS:
        return [_Task(task.samples, task.attempts + 1)]
    if len(task.samples) == 1:
        return None
    middle = len(task.samples) // 2
    return [_Task(task.samples[:middle], WHOLE_ATTEMPTS - 1), _Task(task.samples[middle:], WHOLE_ATTEMPTS - 1)]


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1][:300]}"


class _InProcess:
    """One worker in this process, for tests, debugging and machines without Ray."""

    slots = 1

    def __init__(self, setup: WorkerSetup) -> None:
        from .worker import Worker

        self._worker = Worker(setup)
        self._task: _Task | None = None

    def submit(self, task: _Task) -> None:
        self._task = task

    def next(self) -> tuple[_Task, Receipt | Exception]:
        assert self._task is not None
        task, self._task = self._task, None
        try:
            return task, self._worker.process(task.samples)
        except Exception as error:
            return task, error


class _RayPool:
    """Ray actors that each hold a world model; one task in work and one waiting per actor."""

    def __init__(self, ray: Any, setup: WorkerSetup, workers: int, *, gpus: float) -> None:
        from .worker import Worker

        self._ray = ray
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=0)(Worker)
        self._actors = [actor.remote(setup) for _ in range(workers)]
        try:
            ray.get([one.load_s.remote() for one in self._actors])
        except ray.exceptions.RayError as error:
            raise WorldModelError(f"the workers could not start: {_reason(error)}") from error
        self._load = [0] * workers
        self._tasks: dict[Any, tuple[int, _Task]] = {}
        self.slots = 2 * workers

    def submit(self, task: _Task) -> None:
        index = self._load.index(min(self._load))
        self._load[index] += 1
        self._tasks[self._actors[index].process.remote(task.samples)] = (index, task)

    def next(self) -> tuple[_Task, Receipt | Exception]:
        [reference], _ = self._ray.wait(list(self._tasks), num_returns=1)
        index, task = self._tasks.pop(reference)
        self._load[index] -= 1
        try:
            return task, self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return task, error.cause if isinstance(error.cause, Exception) else error
        except self._ray.exceptions.RayError as error:  # the actor died; Ray starts it again
            return task, error


@contextmanager
def _pool(setup: dict[str, Any], workers: int, *, in_process: bool) -> Generator[_Pool, None, None]:
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


@contextmanager
def _signals() -> Generator[None, None, None]:
    """SIGTERM ends the run as Ctrl-C does. Installed after Ray's own handlers, and only where Python allows it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise Interrupted("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _default_workers(world: WorldSource, device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.device_count()
    # a small model fits once per core; a large one would not fit twice
    weights = sum(path.stat().st_size for path in (world.folder / "transformer").glob("*.safetensors"))
    return max(1, os.cpu_count() or 1) if weights < 2**28 else 1


def _own_scenes(config: PrecomputeConfig, world: WorldSource) -> Path:
    if world.name != WORLDLET:
        raise ConfigError(
            f"no images were given. The embedded scenes are the worldlet's own; for {world.name} name a folder: "
            "theworld precompute PHOTOS --world …"
        )
    from .worldlet.scenes import write_scenes

    test = config.scenes // 3
    folder = config.cache / "scenes"
    write_scenes(folder, splits={"train": config.scenes - test, "test": test})
    return folder / "images"


def _embedded_note(config: PrecomputeConfig, world: WorldSource) -> str:
    if world.name != WORLDLET:
        return ""
    return (
        f"No images given: making {config.scenes} scenes of the embedded worldlet "
        f"(--world {COSMOS} and a folder of images for the real thing)."
    )
