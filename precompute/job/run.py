"""Run a precompute job: prepare it, open the store, start the workers, and make the missing latents."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from ...pipeline.errors import ConfigError, Interrupted, TheWorldError
from ...pipeline.failures import FailureReason
from ...pipeline.files.places.folder import path_or_url
from ...pipeline.files.places.local import place_of
from ...pipeline.machine import resolve_device
from ...pipeline.messages import name_some
from ...pipeline.progress import Progress
from ...pipeline.store.folder import PROMPT, LatentStore, create_store, label_of, refuse_store
from ...pipeline.store.ledger import Failure
from ..worlds.builtin import WEIGHTS
from ..worlds.cosmos.guardrail import unsafe_prompts
from ..worlds.prompts import embed_prompts, embed_sample_prompts
from ..worlds.source import WorldSource
from .config import PrecomputeConfig
from .planning.memory_plan import plan_memory
from .planning.plan import Plan, cut_tasks, shard_capacity
from .prepare import Prepared, announce, is_small, largest_task, prepare
from .report import Report
from .scheduler import Scheduler
from .signals import Signals, signal_behind, signals_of_this_run
from .watching.events import Events, facts_of_task
from .workers.pool import Task
from .workers.ray_cluster import knock, plan_workers, ray_cluster, wait_for_nodes
from .workers.ray_pool import join_pool, open_pool

MANY_SHARDS = 16
"""Of so many, half empty, a summary says how to make fewer."""


def run_precompute(config: PrecomputeConfig, *, progress: Progress | None = None) -> Report:
    """Make the latents of every input that has none yet: roll images out, or encode videos.

    Args:
        progress: where a person watches; None is `Progress.to_logger()`.
    Returns:
        A report; inputs that failed are in it and in the store's ledger, and did not stop the run.
    Raises:
        ConfigError, RecipeError, WorldModelError: before anything is written.
        StoreError: the store cannot be written.
        Interrupted: a signal, or Ray died; what is committed stays.
    """
    _look_at_cache(config)  # before events are written there
    events, signals = Events.of_task(config), signals_of_this_run()
    progress = progress or Progress.to_logger()
    try:
        with signals.caught(), _interruptions(signals), events.beating():
            events.write("begun", **facts_of_task(config))
            report = _run(config, progress, events, signals)
        events.write("finished", **report.to_json())
        return report
    except TheWorldError as error:
        stopped = isinstance(error, Interrupted)
        figures = events.figures()
        events.write("interrupted" if stopped else "failed", message=str(error), exit_code=error.exit_code, **figures)
        if error.exit_code == ConfigError.exit_code and not events.has_plan:
            events.discard()
        raise
    except Exception as error:
        events.write("failed", message=f"{type(error).__name__}: {error}", **events.figures())
        raise
    finally:
        events.close()
        if events.lost:
            progress.warn(
                f"warning: `theworld status` lacks events of this job, which could not be written: {events.lost}"
            )


def _look_at_cache(config: PrecomputeConfig) -> None:
    """Refuse a cache that is a store, and a bucket that cannot be used: before hours of listing and hashing."""
    place = place_of(config.cache)
    refuse_store(place)
    if not place.is_local:
        place.folders()  # a listing names what is wrong, where a look at one object cannot
        if not config.dry_run:
            place.self_test()


@contextmanager
def _interruptions(signals: Signals) -> Generator[None, None, None]:
    """Errors after a signal are of the interruption: libraries wrap it, or say that they were interrupted."""
    try:
        yield
    except Exception as error:
        if not signals.name:
            raise
        if (stop := signal_behind(error)) is not None:
            raise stop from None
        signals.check()


def _run(config: PrecomputeConfig, progress: Progress, events: Events, signals: Signals) -> Report:
    if config.address and not config.dry_run:
        knock(config.address)  # before hours of listing and hashing
    prepared = prepare(config, progress)
    signals.check()
    announce(prepared, config, progress, events)
    store, recipe, plan, cost = prepared.store, prepared.recipe, prepared.plan, prepared.cost
    if config.dry_run:
        for damage in store.damage if store else ():  # a run says so when it opens the store to write
            progress.warn(f"warning: {damage}")
        place = path_or_url(store.place) if store else config.cache
        return Report(store=place, recipe=recipe, plan=plan, cost=cost, memory=prepared.memory, dry_run=True)
    if plan.todo and events.problem:
        progress.warn(f"warning: {events.problem}")
    if store is not None and store.place.is_local and not plan.todo and not os.access(store.path, os.W_OK):
        return _nothing_to_do(store, plan)  # all done, on read-only media
    device, workers = prepared.device, prepared.workers
    with ExitStack() as stack:
        session = worker_plan = plan_of = None
        if config.address and plan.todo:
            progress.say(f"joining {config.address} …")
            session = stack.enter_context(ray_cluster(config.address))
            signals.install()  # over Ray's own
            small = is_small(prepared.world)
            plan_of = partial(plan_workers, device=config.device, workers=config.workers, small=small)
            nodes = wait_for_nodes(session, config.nodes, progress, signals.check)
            worker_plan = plan_of(nodes)
            device, workers = worker_plan.device, worker_plan.workers
            progress.say(f"cluster {workers} workers on {len(nodes)} nodes: {name_some(_names_of(nodes))}")
        store = _open_store(prepared, config, progress)
        if recipe.prompts == "sample" and plan.todo:
            # here, where a cluster's GPUs may not be
            embed_device = "cpu" if device == "cpu" else str(resolve_device("auto"))
            plan = _embed_each(config, prepared.world, store, plan, embed_device, progress)
        store.record_failures(plan.refused)
        if not plan.todo:
            store.publish()
            return _nothing_to_do(store, plan)

        signals.check()
        memory = prepared.memory
        if session is not None:  # only now it is known whether the cluster has GPUs
            memory = plan_memory(
                prepared.world,
                recipe,
                prepared.spec,
                plan.distinct,
                requested=config.batch_size,
                on_gpu=device != "cpu",
                room=prepared.memory.room,
                offload=config.offload is not None,
            )
        batch_size = memory.batch
        prompted = recipe.prompts == "sample" or recipe.prompt is not None or recipe.negative_prompt is not None
        setup = _worker_setup(prepared, store, device, batch_size, guardrail=config.guardrail if prompted else None)
        setup |= {"compile": config.compile, "offload": config.offload, "decoders": config.decoders}
        for name, batch in setup["fitted"].items():
            if batch < batch_size:
                progress.say(f"batches of {batch} on {name}: larger ones did not fit ({prepared.throughput.path})")
        tasks = _cut(prepared, config, store, plan, workers, batch_size)
        progress.say("starting the workers …")
        if session is not None and worker_plan is not None and plan_of is not None:
            pool = stack.enter_context(join_pool(session, setup, worker_plan, plan_of, plan.todo[0], progress))
        else:
            count = min(workers, len(tasks))
            pool = stack.enter_context(open_pool(setup, count, progress, in_process=config.in_process))
            signals.install()
            signals.check()
        scheduler = Scheduler(
            pool,
            store,
            prepared.throughput,
            progress,
            events,
            batch_size=batch_size,
            refused=plan.refused,
            signals=signals,
        )
        work = scheduler.run(tasks)
    return Report(
        store=path_or_url(store.place),
        recipe=recipe,
        plan=plan,
        cost=cost,
        work=work,
        memory=memory,
        failures=tuple(work.failures),
        empty_rows=_empty_rows(store),
        stored=len(store),
    )


def _nothing_to_do(store: LatentStore, plan: Plan) -> Report:
    return Report(
        store=path_or_url(store.place), recipe=store.recipe, plan=plan, failures=plan.refused, stored=len(store)
    )


def _names_of(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(str(node.get("NodeManagerHostname") or node.get("NodeManagerAddress")) for node in nodes)


def _cut(
    prepared: Prepared, config: PrecomputeConfig, store: LatentStore, plan: Plan, workers: int, batch_size: int
) -> list[Task]:
    """The tasks of the job, each of one shard: by time, as far as it is known, and by bytes."""
    most, is_shared = largest_task(config, plan, prepared.cost, store, batch_size)
    parts = cut_tasks(plan.todo, most, workers if is_shared else 1, batch_size)
    first = store.next_number
    return [Task(samples, first + number) for number, samples in enumerate(parts)]


def _open_store(prepared: Prepared, config: PrecomputeConfig, progress: Progress) -> LatentStore:
    """Open or create the store, and record the inputs of this job in it."""
    world, recipe, listing = prepared.world, prepared.recipe, prepared.listing
    store = create_store(
        config.cache,
        recipe,
        prepared.spec,
        label=label_of(world.name, f"-{recipe.kind}{recipe.rollout_steps}-{recipe.height}x{recipe.width}"),
        shard_size=config.shard_size or shard_capacity(prepared.plan.sample_bytes),
        format=config.format,
    )
    prepared.index.save(keep_others=config.limit is not None)
    for damage in store.damage:
        progress.warn(f"warning: {damage}")
    samples = listing.samples
    store.record_sources(samples.rows(), samples.prompts(), samples.starts())
    store.clear_failures(bad for bad in store.failures() if bad.key is None and bad.source in listing.readable)
    return store


def _empty_rows(store: LatentStore) -> int:
    """Empty rows of the Zarr array; 0 where they do no harm yet."""
    is_sparse = store.format == "zarr" and len(store.shards) >= MANY_SHARDS and store.array_rows > 2 * len(store)
    return store.array_rows - len(store) if is_sparse else 0


def _worker_setup(
    prepared: Prepared, store: LatentStore, device: str, batch_size: int, *, guardrail: str | None
) -> dict[str, Any]:
    """The fields of `WorkerSetup`; embeds the recipe's prompts if that was not done before."""
    world = prepared.world
    has_text = PROMPT in store.place.names("")  # one that is there stays: all shards see the same embeddings
    if not has_text and (text := embed_prompts(world.folder, prepared.recipe, world.family.text)) is not None:
        with store.place.writing():
            store.place.create(PROMPT, text.to_bytes())
        has_text = True
    return {
        "world_folder": None if world.folder == WEIGHTS else str(world.folder.absolute()),
        "store": str(store.path.absolute() if store.place.is_local else store.place),
        "device": device,
        "world_name": world.name,
        "fps": world.card.fps,
        "batch_size": batch_size,
        "text": PROMPT if has_text else None,
        "guardrail": guardrail,
        "fitted": prepared.throughput.fitted(prepared.recipe),
    }


def _embed_each(
    config: PrecomputeConfig, world: WorldSource, store: LatentStore, plan: Plan, device: str, progress: Progress
) -> Plan:
    """Embed the prompts of the samples to do; the plan without those whose prompt cannot be used.

    Raises:
        ConfigError: nobody checks the prompts, and the world model's licence asks for that.
    """
    form = world.family.text
    assert form is not None  # resolve_world refused a world model that reads no prompts
    prompts = list(dict.fromkeys(sample.prompt or "" for sample in plan.todo))
    progress.say(f"embedding {len(prompts)} prompts …")
    refused = dict.fromkeys(
        unsafe_prompts(prompts, config.guardrail, form), "NVIDIA's guardrail finds this prompt unsafe"
    )
    safe = [prompt for prompt in prompts if prompt not in refused]
    refused |= embed_sample_prompts(store.place, world.folder, safe, store.recipe, form, device)
    failures = tuple(
        Failure(
            source=sample.source,
            key=sample.key,
            reason=FailureReason.PROMPT,
            message=f"{sample.source}: {refused[sample.prompt or '']}: {sample.prompt!r}",
            attempts=1,
        )
        for sample in plan.todo
        if (sample.prompt or "") in refused
    )
    todo = tuple(sample for sample in plan.todo if (sample.prompt or "") not in refused)
    return replace(plan, todo=todo, refused=(*plan.refused, *failures))
