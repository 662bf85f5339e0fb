"""The job: plan, then shards of work over workers, each committing its own, until every input is done or in the ledger.

Lives here: the order of things and what follows a failure. Elsewhere: one shard's work (worker.py), who runs it
(pools.py), how it ended (report.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..pipeline.commit import publish
from ..pipeline.device import resolve_device
from ..pipeline.errors import ConfigError, Interrupted, StoreError, WorldModelError
from ..pipeline.ledger import Failure
from ..pipeline.progress import Progress
from ..pipeline.store import PROMPT, LatentStore, create_store, find_store
from .config import PrecomputeConfig, make_recipe
from .input_index import InputIndex
from .kinds import KINDS
from .plan import Plan, bytes_per_sample, choose_shard_size, make_plan
from .pools import Pool, Task, open_pool, reason_of
from .report import Report
from .sources import Listing, list_inputs
from .text import check_prompts, embed_prompts
from .world import COSMOS, WORLDLET, WorldSource, find_family, resolve_world

WHOLE_ATTEMPTS = 2
"""Tries of a shard as a whole before it is halved to find the sample that breaks it."""


def run_precompute(config: PrecomputeConfig, *, progress: Progress | None = None) -> Report:
    """Make the latents of every input that has none yet: roll images out, or encode videos.

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
    if prompts:  # before 10 GB of text encoder are fetched for nothing
        check_prompts(prompts, config.guardrail, find_family(config.world).text)
    world = resolve_world(config.world, with_text=bool(prompts))
    recipe = make_recipe(config, world)
    kind = KINDS[recipe.kind]
    device = str(resolve_device(config.device))
    workers = config.workers or _default_workers(world, device)
    if config.images is None:
        progress.say(_embedded_note(config, world))
    if config.images is None and config.dry_run:
        with TemporaryDirectory() as folder:  # their keys are needed, the files are not
            listing, index = _list(config, _own_scenes(config, world, Path(folder)))
    else:
        listing, index = _list(config, config.images or _own_scenes(config, world, config.cache / "scenes"))
    spec = world.latent_spec()
    shape = spec.sample_shape(recipe.height, recipe.width, recipe.rollout_steps)
    store = find_store(config.cache, recipe)
    plan = make_plan(listing, store, bytes_per_sample(shape, recipe.dtype), retry_failed=config.retry_failed)
    label = f"{world.name}-{recipe.kind}{recipe.rollout_steps}-{recipe.height}x{recipe.width}"
    for line in plan.lines(recipe, world, str(store.path) if store else f"new, in {config.cache}"):
        progress.say(line)
    if (needed := len(plan.todo) * plan.sample_bytes) > (free := _free_bytes(config.cache)):
        progress.say(
            f"warning: {needed / 2**30:.1f} GiB to write and {free / 2**30:.1f} GiB free in {config.cache}. "
            "What is committed when it is full stays, and the same command goes on once there is space"
        )
    if config.dry_run:
        return Report(store=store.path if store else config.cache, recipe=recipe, plan=plan, dry_run=True)

    if store is not None and not plan.todo and not os.access(store.path, os.W_OK):
        return Report(store=store.path, recipe=recipe, plan=plan, failures=plan.refused)  # all done, on read-only media
    store = create_store(
        config.cache,
        recipe,
        spec,
        label=label,
        shard_size=config.shard_size or choose_shard_size(len(plan.todo), workers),
        format=config.format,
    )
    index.save(keep_others=config.limit is not None)
    for damage in store.damage:
        progress.say(f"warning: {damage}")
    store.record_sources((sample.source, sample.key) for sample in listing.samples)
    for failure in store.failures():
        if failure.key is None and failure.source in listing.readable:
            store.clear_failure(failure)
    for failure in plan.refused:
        store.record_failure(failure)
    if not plan.todo:
        store.publish()
        return Report(store=store.path, recipe=recipe, plan=plan, failures=plan.refused)

    text_file: Path | None = None
    if (text := embed_prompts(world.folder, recipe, world.family.text)) is not None:
        text_file = store.path / PROMPT
        publish(store.path / "tmp", text_file, text.to_bytes())
    setup = {
        "world_folder": str(world.folder),
        "store": str(store.path),
        "device": device,
        "world_name": world.name,
        "fps": world.card.fps,
        "batch_size": config.batch_size or kind.batch[0 if device == "cpu" else 1],
        "text": str(text_file) if text_file else None,
    }
    first, size = store.next_number, store.shard_size
    tasks = [
        Task(plan.todo[start : start + size], first + number)
        for number, start in enumerate(range(0, len(plan.todo), size))
    ]
    progress.say("starting the workers …")
    with open_pool(setup, min(workers, len(tasks)), in_process=config.in_process) as pool, _signals():
        return _drive(pool, tasks, store, plan, progress)


def _list(config: PrecomputeConfig, place: Path) -> tuple[Listing, InputIndex]:
    kind = KINDS[config.kind]
    index = InputIndex.of(config.cache, place, kind.takes, trust=not config.rehash)
    named = {"column": config.column, "prompt_field": config.prompt_field}
    return list_inputs(place, kind, limit=config.limit, index=index, **named), index


def _drive(pool: Pool, tasks: Sequence[Task], store: LatentStore, plan: Plan, progress: Progress) -> Report:
    queue = deque(tasks)
    in_flight = written = bytes_written = crashes = 0
    failures: list[Failure] = list(plan.refused)
    phases: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    kind = KINDS[store.recipe.kind]
    retried = {failure.key: failure for failure in store.failures()}
    started = time.monotonic()
    with progress.bar(kind.doing, total=len(plan.todo), unit=f"{kind.takes}s") as bar:
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
                    notes.update(outcome.notes)
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
                        f"the first {crashes} shards all failed, the last with {reason_of(outcome)}. "
                        "Nothing has been written; run with --in-process --limit 1 to see where it breaks"
                    ) from outcome
                if (retry := _again(task)) is not None:
                    queue.extendleft(retry)
                    continue
                sample = task.samples[0]
                failure = Failure(
                    source=sample.source,
                    key=sample.key,
                    reason=kind.phase,
                    message=f"{kind.doing} {sample.source} failed {task.attempts + 1} times: {reason_of(outcome)}",
                    attempts=task.attempts + 1,
                )
                store.record_failure(failure)
                failures.append(failure)
                bar.advance(1, failed=len(failures))
        except (KeyboardInterrupt, Interrupted) as stop:
            remaining = len(plan.todo) - written - len(failures) + len(plan.refused)
            raise Interrupted(
                f"interrupted: {written} {kind.makes} were committed to {store.path} and stay; {remaining} remain. "
                "The same command goes on where this one stopped"
            ) from stop
        finally:
            store.publish()
    return Report(
        store=store.path,
        recipe=store.recipe,
        plan=plan,
        written=written,
        failures=tuple(failures),
        seconds=time.monotonic() - started,
        worker_seconds=dict(phases),
        bytes_written=bytes_written,
        notes=dict(notes),
    )


def _again(task: Task) -> list[Task] | None:
    """What to try after a task failed: the whole once more, then its halves; None for a single sample out of tries."""
    if task.attempts + 1 < WHOLE_ATTEMPTS:
        return [Task(task.samples, task.shard, task.attempts + 1)]
    if len(task.samples) == 1:
        return None
    middle = len(task.samples) // 2
    halves = (task.samples[:middle], task.shard), (task.samples[middle:], None)
    return [Task(samples, shard, WHOLE_ATTEMPTS - 1) for samples, shard in halves]


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


def _free_bytes(cache: Path) -> int:
    return shutil.disk_usage(
        next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
    ).free


def _default_workers(world: WorldSource, device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.device_count()
    # a small model fits once per core; a large one would not fit twice
    return max(1, os.cpu_count() or 1) if world.weight_bytes() < 2**28 else 1


OWN_FAMILIES = ("buckets",)
"""Of the scenes made where none are given: one family is learned in minutes; `theworld scenes` makes all four."""


def _own_scenes(config: PrecomputeConfig, world: WorldSource, folder: Path) -> Path:
    if config.kind != "rollout":
        raise ConfigError(
            f"no {KINDS[config.kind].takes}s were given: theworld precompute {KINDS[config.kind].takes.upper()}S "
            f"--kind {config.kind}"
        )
    if world.name != WORLDLET:
        raise ConfigError(
            f"no images were given. The embedded scenes are the worldlet's own; for {world.name} name a folder: "
            "theworld precompute PHOTOS --world …"
        )
    from .worldlet.scene_files import write_scenes

    test = max(1, 2 * round(config.scenes / 6))  # whole pairs
    splits = {"train": config.scenes - test, "test": test}
    write_scenes(folder, splits=splits, families=OWN_FAMILIES, jobs=os.cpu_count() or 1)
    return folder / "images"


def _embedded_note(config: PrecomputeConfig, world: WorldSource) -> str:
    if world.name != WORLDLET or config.kind != "rollout":
        return ""
    return (
        f"No images given: making {config.scenes} scenes of the embedded worldlet "
        f"(--world {COSMOS} and a folder of images for the real thing)."
    )
