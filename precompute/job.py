"""The job: inputs, recipe, plan and store, then the workers' loop over what is missing.

Lives here: the order of things. Elsewhere: the loop and what follows a failure (drive.py), one shard's work
(worker.py), who runs it (pools.py, cluster.py), what it will cost (cost.py), how it ended (report.py).
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..pipeline.commit import publish
from ..pipeline.device import resolve_device
from ..pipeline.errors import ConfigError, Interrupted, TheWorldError
from ..pipeline.ledger import Failure
from ..pipeline.progress import Progress
from ..pipeline.store import PROMPT, LatentStore, create_store, find_store
from .builtin import EMBEDDED
from .cluster import crew_of, ray_cluster
from .config import PrecomputeConfig, make_recipe
from .cost import estimate
from .drive import Drive
from .events import Events
from .experience import FILE, Experience, device_name
from .input_index import InputIndex
from .kinds import KINDS
from .plan import Plan, bytes_per_sample, choose_shard_size, make_plan
from .pools import Task, join_pool, open_pool
from .report import Report
from .signals import Signals
from .sources import Listing, list_inputs
from .text import check_prompts, embed_each, embed_prompts, unsafe_prompts
from .world import COSMOS, WORLDLET, WorldSource, find_family, resolve_world


def run_precompute(config: PrecomputeConfig, *, progress: Progress | None = None) -> Report:
    """Make the latents of every input that has none yet: roll images out, or encode videos.

    Args:
        progress: where a person watches; None is silent.
    Returns:
        A report; inputs that failed are in it and in the store's ledger, and did not stop the run.
    Raises:
        ConfigError, RecipeError, WorldModelError: before anything is written.
        StoreError: the store cannot be written.
        Interrupted: a signal, or Ray died; what is committed stays.
    """
    events, signals = Events(config.events), Signals()
    try:
        with signals.caught():
            report = _run(config, progress or Progress.silent(), events, signals)
        events.tell("finished", **report.to_json())
        return report
    except TheWorldError as error:
        stopped = isinstance(error, Interrupted)
        events.tell("interrupted" if stopped else "failed", message=str(error), exit_code=error.exit_code)
        raise
    finally:
        events.close()


def _run(config: PrecomputeConfig, progress: Progress, events: Events, signals: Signals) -> Report:
    prompts = [text for text in (config.prompt, config.negative_prompt) if text is not None]
    if prompts:  # before 10 GB of text encoder are fetched for nothing
        check_prompts(prompts, config.guardrail, find_family(config.world).text)
    if config.prompt_field is not None and config.guardrail is None:
        check_prompts([""], None, find_family(config.world).text)  # that anybody checks them; they are not read yet
    world = resolve_world(config.world, with_text=bool(prompts) or config.prompt_field is not None)
    recipe = make_recipe(config, world)
    kind = KINDS[recipe.kind]
    device = "cpu" if config.address else str(resolve_device(config.device))
    workers = 1 if config.in_process else config.workers or _default_workers(world, device)
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
    experience = Experience.load(config.cache)
    # a cluster's devices are not known before it is joined, and a plan joins nothing
    threads = _threads(device, workers, in_process=config.in_process)
    here = None if config.address else device_name(device, threads)
    cost = estimate(world, recipe, shape, len(plan.todo), experience, device=here, workers=workers)
    for line in cost.lines(kind.takes):
        progress.say(line)
    events.tell(
        "plan",
        store=str(store.path) if store else str(config.cache),
        images=plan.inputs,
        todo=len(plan.todo),
        done=plan.done,
        failed_before=len(plan.failed_before),
        bytes=len(plan.todo) * plan.sample_bytes,
        **cost.to_json(),
    )
    if os.environ.get("RAY_ADDRESS") and not config.address and not config.in_process:
        progress.warn("note: RAY_ADDRESS is not followed, this job starts a Ray of its own; --address joins a cluster")
    if (needed := len(plan.todo) * plan.sample_bytes) > (free := _free_bytes(config.cache)):
        progress.warn(
            f"warning: {needed / 2**30:.1f} GiB to write and {free / 2**30:.1f} GiB free in {config.cache}. "
            "What is committed when it is full stays, and the same command goes on once there is space"
        )
    if config.dry_run:
        return Report(store=store.path if store else config.cache, recipe=recipe, plan=plan, cost=cost, dry_run=True)

    if store is not None and not plan.todo and not os.access(store.path, os.W_OK):
        return Report(store=store.path, recipe=recipe, plan=plan, failures=plan.refused)  # all done, on read-only media
    with ExitStack() as stack:
        session = crew = None
        if config.address and plan.todo:
            progress.say(f"joining {config.address} …")
            session = stack.enter_context(ray_cluster(config.address))
            signals.install()  # over Ray's own
            crew = crew_of(session.ray.nodes(), device=config.device, workers=config.workers, small=_is_small(world))
            device, workers = crew.device, crew.workers
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
            progress.warn(f"warning: {damage}")
        store.record_sources(
            ((sample.source, sample.key) for sample in listing.samples),
            {sample.key: sample.prompt for sample in listing.samples if sample.prompt is not None},
        )
        for failure in store.failures():
            if failure.key is None and failure.source in listing.readable:
                store.clear_failure(failure)
        if recipe.prompts == "sample" and plan.todo:
            plan = _embed_each(config, world, store, plan, device, progress)
        for failure in plan.refused:
            store.record_failure(failure)
        if not plan.todo:
            store.publish()
            return Report(store=store.path, recipe=recipe, plan=plan, failures=plan.refused)

        text_file: Path | None = store.path / PROMPT
        if not text_file.is_file():  # one that is there stays: all shards see the same embeddings
            text = embed_prompts(world.folder, recipe, world.family.text)
            if text is None:
                text_file = None
            else:
                publish(store.path / "tmp", text_file, text.to_bytes())
        batch_size = config.batch_size or kind.batch[0 if device == "cpu" else 1]
        fitted = experience.fitted(recipe)
        for name, batch in fitted.items():
            if batch < batch_size:
                progress.say(f"batches of {batch} on {name}: larger ones did not fit ({config.cache / FILE})")
        setup = {
            "world_folder": None if world.folder == EMBEDDED else str(world.folder.absolute()),
            "store": str(store.path.absolute()),
            "device": device,
            "world_name": world.name,
            "fps": world.card.fps,
            "batch_size": batch_size,
            "text": str(text_file.absolute()) if text_file else None,
            "fitted": fitted,
        }
        first, size = store.next_number, store.shard_size
        tasks = [
            Task(plan.todo[start : start + size], first + number)
            for number, start in enumerate(range(0, len(plan.todo), size))
        ]
        progress.say("starting the workers …")
        if session is not None and crew is not None:
            pool = stack.enter_context(join_pool(session, setup, crew, plan.todo[0]))
        else:
            pool = stack.enter_context(open_pool(setup, min(workers, len(tasks)), in_process=config.in_process))
            signals.install()
        drive = Drive(
            pool,
            store,
            experience,
            progress,
            events,
            batch_size=batch_size,
            refused=plan.refused,
            signals=signals,
        )
        work = drive.run(tasks)
    return Report(store=store.path, recipe=recipe, plan=plan, cost=cost, work=work, failures=tuple(work.failures))


def _list(config: PrecomputeConfig, place: Path) -> tuple[Listing, InputIndex]:
    kind = KINDS[config.kind]
    index = InputIndex.of(config.cache, place, kind.takes, trust=not config.rehash)
    named = {"column": config.column, "prompt_field": config.prompt_field}
    return list_inputs(place, kind, limit=config.limit, index=index, **named), index


def _embed_each(
    config: PrecomputeConfig, world: WorldSource, store: LatentStore, plan: Plan, device: str, progress: Progress
) -> Plan:
    """Embed the prompts of the samples to do; the plan without those whose prompt cannot be used.

    Raises:
        ConfigError: nobody checks the prompts, and the world model's licence asks for that.
    """
    encoder = world.family.text
    assert encoder is not None  # resolve_world refused a world model that reads no prompts
    prompts = list(dict.fromkeys(sample.prompt or "" for sample in plan.todo))
    progress.say(f"embedding {len(prompts)} prompts …")
    refused = dict.fromkeys(
        unsafe_prompts(prompts, config.guardrail, encoder), "NVIDIA's guardrail finds this prompt unsafe"
    )
    refused |= embed_each(store.path, world.folder, [p for p in prompts if p not in refused], encoder, device)
    failures = tuple(
        Failure(
            source=sample.source,
            key=sample.key,
            reason="prompt",
            message=f"{sample.source}: {refused[sample.prompt or '']}: {sample.prompt!r}",
            attempts=1,
        )
        for sample in plan.todo
        if (sample.prompt or "") in refused
    )
    todo = tuple(sample for sample in plan.todo if (sample.prompt or "") not in refused)
    return replace(plan, todo=todo, refused=(*plan.refused, *failures))


def _free_bytes(cache: Path) -> int:
    return shutil.disk_usage(
        next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
    ).free


def _default_workers(world: WorldSource, device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.device_count()
    return max(1, os.cpu_count() or 1) if _is_small(world) else 1


def _is_small(world: WorldSource) -> bool:
    """It fits once per core; a large one would not fit twice."""
    return world.weight_bytes() < 2**28


def _threads(device: str, workers: int, *, in_process: bool) -> int | None:
    """That a worker computes with, as its device's name says."""
    if device.startswith("cuda"):
        return None
    if in_process:
        import torch

        return torch.get_num_threads()
    return max(1, (os.cpu_count() or 1) // workers)


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
