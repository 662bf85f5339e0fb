"""Prepare a job before anything is written: find the world model, recipe, inputs, plan and cost."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ...pipeline.errors import ConfigError, Interrupted
from ...pipeline.files.hash_cache import HashCache
from ...pipeline.files.places.local import place_of, url_of
from ...pipeline.files.places.local_copy import machine_folder
from ...pipeline.latents.kinds import KINDS as TRAITS
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec
from ...pipeline.machine import device_name, resolve_device, usable_cores
from ...pipeline.messages import MAX_NAMES, command, format_bytes, printable
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore, find_store, refuse_store
from ..inputs.listing.inputs import Listing, list_inputs
from ..inputs.listing.places import check_named
from ..rollout.batch_size import computed_rows
from ..rollout.kinds import KINDS, at_moments
from ..worlds.cosmos.guardrail import check_prompts
from ..worlds.family import read_configs
from ..worlds.network.offloading import copies_text
from ..worlds.source import COSMOS, WORLDLET, WorldSource, find_family, resolve_world
from .config import PrecomputeConfig
from .planning.cautions import cautions
from .planning.cost import Cost, Target, a_or_an, estimate
from .planning.memory_plan import MemoryPlan, plan_memory, room_of
from .planning.plan import (
    SHARD_BYTES,
    Plan,
    bytes_per_sample,
    first_failures,
    make_plan,
    samples_per_task,
    shard_capacity,
    task_size,
)
from .planning.recipe import make_recipe
from .planning.throughput import ThroughputLog
from .price import parse_price
from .watching.events import Events

OWN_FAMILIES = ("buckets",)
"""The families made if no inputs are given. One is learned in minutes; `theworld scenes` makes all four."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job, before anything is written."""

    world: WorldSource
    recipe: Recipe
    spec: LatentSpec
    listing: Listing
    index: HashCache
    store: LatentStore | None
    """The store to resume; None if this recipe has none yet."""
    plan: Plan
    shards: int
    """That the work is cut into, by what is known before it begins."""
    cost: Cost
    memory: MemoryPlan
    throughput: ThroughputLog
    device: str
    workers: int
    """On this machine. The workers of a cluster are counted when it is joined, which a plan does not do."""


def prepare(config: PrecomputeConfig, progress: Progress) -> Prepared:
    """Resolve, list, plan and estimate a job. Writes nothing, except the embedded scenes if no inputs are given.

    Raises:
        ConfigError, RecipeError, WorldModelError: this job cannot be done.
    """
    refuse_store(place_of(config.cache))  # before scenes are written there
    if config.images is not None:
        check_named(config.images, KINDS[config.kind])  # before gigabytes of weights are fetched
    prompts = [text for text in (config.prompt, config.negative_prompt) if text is not None]
    if prompts:  # before 10 GB of text encoder are fetched for nothing
        check_prompts(prompts, config.guardrail, find_family(config.world).text)
    if config.prompt_field is not None and config.guardrail is None:
        # the prompts are not read yet: this only checks that a guardrail is named where one is needed
        check_prompts([""], None, find_family(config.world).text)
    world = resolve_world(
        config.world,
        with_text=bool(prompts) or config.prompt_field is not None,
        with_weights=config.accelerator is None,  # a plan for a machine elsewhere fetches none to this one
        progress=progress,
        trust=not config.rehash,
    )
    recipe = make_recipe(config, world)
    target = _target(config, world)
    if config.images is None:
        progress.say(_embedded_note(config, world))
    if config.images is None and config.dry_run:
        with TemporaryDirectory() as folder:  # only their keys are needed
            listing, index = _list(config, _own_scenes(config, world, Path(folder), progress))
    else:
        listing, index = _list(
            config, config.images or _own_scenes(config, world, Path(config.cache) / "scenes", progress)
        )
    require_usable(listing, config.images)
    spec = world.spec_of(recipe)
    shape = spec.sample_shape(recipe.height, recipe.width, recipe.rollout_steps)
    store = find_store(config.cache, recipe)
    sample_bytes = bytes_per_sample(shape, recipe.dtype)
    plan = make_plan(listing, store, sample_bytes, retry_failed=config.retry_failed, part=config.own_part)
    throughput = ThroughputLog.load(machine_folder(place_of(config.cache)), offload=config.offload)
    price = parse_price(config.gpu_hour_price) if config.gpu_hour_price else None
    todo = len(plan.todo)
    cost = estimate(world, recipe, shape, todo, throughput, target, price=price)
    memory = plan_memory(
        world,
        recipe,
        world.latent_spec(),  # whose cells make the tokens of a forward
        plan.distinct,
        requested=config.batch_size,
        on_gpu=target.is_gpu,
        room=room_of(config, target) if todo else None,
        offload=config.offload is not None,
    )
    batch_size = memory.batch
    most, is_shared = largest_task(config, plan, cost, store, batch_size)
    size = task_size(todo, most, target.workers if is_shared else 1, batch_size)
    return Prepared(
        world=world,
        recipe=recipe,
        spec=spec,
        listing=listing,
        index=index,
        store=store,
        plan=plan,
        shards=math.ceil(todo / size),
        cost=replace(cost, computed=computed_rows(todo, batch_size, size)),
        memory=memory,
        throughput=throughput,
        device=target.device or "cpu",
        workers=target.workers,
    )


def announce(prepared: Prepared, config: PrecomputeConfig, progress: Progress, events: Events) -> None:
    """Print the plan and the cost, and warn of what may stop the job."""
    plan, recipe = prepared.plan, prepared.recipe
    for line in plan.lines(
        recipe,
        prepared.world,
        str(prepared.store.place) if prepared.store else f"new, in {config.cache}",
        prepared.shards,
    ):
        progress.say(line)
    for caution in cautions(prepared.world, recipe, plan.todo) if plan.todo else ():
        progress.warn(f"warning: {caution}")
    for line in prepared.memory.lines() if plan.todo else ():
        progress.say(line)
    if plan.todo and (warning := prepared.memory.warning()):
        progress.warn(warning)
    for line in prepared.cost.lines(KINDS[recipe.kind].takes):
        progress.say(line)
    of_prompts = _prompt_bytes(prepared)
    if of_prompts:
        progress.say(f"prompts up to {format_bytes(of_prompts)} of their embeddings, kept beside the latents")
    needed_bytes = len(plan.todo) * plan.sample_bytes + of_prompts
    events.write(
        "plan",
        store=str(prepared.store.place if prepared.store else config.cache),
        images=plan.inputs,
        todo=len(plan.todo),
        done=plan.done,
        failed_before=len(plan.failed_before),
        refused=len(plan.refused),
        left_out=plan.passed_over,
        of_other_parts=plan.of_other_parts,
        bytes=needed_bytes,
        shards=prepared.shards,
        **prepared.cost.to_json(),
        memory=prepared.memory.to_json(),
    )
    accelerator, weight_bytes = prepared.cost.target.accelerator, prepared.world.weight_bytes()
    is_unknown = prepared.memory.need is None  # else the plan has refused what does not fit
    if config.offload is not None and prepared.cost.target.device == "cpu":
        progress.warn("note: --offload changes nothing on a CPU, whose memory holds the weights already")
    elif config.offload is not None:
        if copied := weight_bytes or prepared.memory.copied:  # a plan for a machine elsewhere fetches no weights
            progress.say(f"offload {copies_text(copied)}")
    elif is_unknown and accelerator is not None and weight_bytes > accelerator.memory_gb * 1e9:
        progress.warn(
            f"warning: the weights alone take {format_bytes(weight_bytes)}, more than the {accelerator.memory_gb:g} GB "
            f"of {a_or_an(accelerator.name)}: they will not fit. Plan for a device with more memory, for a smaller "
            "world model, or with --offload pinned"
        )
    if os.environ.get("RAY_ADDRESS") and not config.address and not config.in_process:
        progress.warn("note: RAY_ADDRESS is not followed, this job starts a Ray of its own; --address joins a cluster")
    array = os.environ.get("SLURM_ARRAY_TASK_COUNT", "")
    if array not in ("", "1") and config.part is None:
        progress.warn(
            f"note: this is one of the {array} tasks of a SLURM array, and each of them makes all of it. To give each "
            f"a part, number them from 1: --array=1-{array}, and --part $SLURM_ARRAY_TASK_ID/{array}"
        )
    if isinstance(config.cache, Path) and needed_bytes > (free := _free_bytes(config.cache)):
        progress.warn(
            f"warning: {format_bytes(needed_bytes)} to write and {format_bytes(free)} free in {config.cache}. "
            "If the disk fills up, committed latents are kept: free some space and run the same command again to resume"
        )


def require_usable(listing: Listing, place: Path | None) -> None:
    """Refuse a job none of whose inputs can be read, before anything is made for it.

    Raises:
        ConfigError: says how many there are, and the first reasons.
    """
    refused = listing.refused
    if len(listing.samples) or not refused:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(bad.reason for bad in refused).items())
    first = "".join(f"\n  {printable(failure.message)}" for failure in first_failures(refused, MAX_NAMES))
    shown = place if place is None else url_of(place) or place
    raise ConfigError(
        f"none of the {len(refused):,} inputs of {shown} can be read ({reasons}), and nothing was made. "
        f"The first:{first}"
    )


def is_small(world: WorldSource) -> bool:
    """Whether a world model is small enough (256 MiB) that every core can load one."""
    return world.weight_bytes() < 2**28


def largest_task(
    config: PrecomputeConfig, plan: Plan, cost: Cost, store: LatentStore | None, batch_size: int
) -> tuple[int, bool]:
    """Samples of a task at the most: by the shard's room, and unless the user says how many, by bytes and by time.

    Returns:
        The number, and whether tasks may be made smaller so that every worker gets some.
    """
    room = store.shard_size if store is not None else config.shard_size or shard_capacity(plan.sample_bytes)
    if config.shard_size is not None:
        return min(config.shard_size, room), False
    in_bytes = max(1, SHARD_BYTES // plan.sample_bytes)
    return min(room, in_bytes, samples_per_task(cost.seconds_of_one, batch_size)), True


def _list(config: PrecomputeConfig, place: Path) -> tuple[Listing, HashCache]:
    kind = KINDS[config.kind]
    start_s, start_field = config.start
    if start_s is not None or start_field is not None or config.end_field is not None:
        kind = at_moments(kind)
    index = HashCache.load(machine_folder(place_of(config.cache)), place, kind.takes, trust=not config.rehash)
    try:
        listing = list_inputs(
            place,
            kind,
            limit=config.limit,
            column=config.column,
            prompt_field=config.prompt_field,
            start_field=start_field,
            end_field=config.end_field,
            start_s=start_s,
            image_root=config.image_root,
            index=index,
        )
    except Interrupted:
        if not config.dry_run:
            index.save(keep_others=True)  # hours of reading, for millions of inputs
        raise
    return listing, index


def _target(config: PrecomputeConfig, world: WorldSource) -> Target:
    """What the run is planned for: a device that is named, or what is here; of a cluster nothing is known yet."""
    if config.accelerator is not None or config.address:
        return Target(1 if config.in_process else config.workers or 1, accelerator=config.accelerator)
    device = str(resolve_device(config.own_device))
    workers = 1 if config.in_process else config.workers or _default_workers(world, device)
    threads = _threads(device, workers, in_process=config.in_process)
    return Target(workers, device=device, device_name=device_name(device, threads), threads=threads)


def _default_workers(world: WorldSource, device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.device_count()
    return usable_cores() if is_small(world) else 1


def _prompt_bytes(prepared: Prepared) -> int:
    """That the embeddings of the samples' own prompts take at the most; 0 where there are none, or it is not known."""
    form = prepared.world.family.text
    if form is None or prepared.recipe.prompts != "sample":
        return 0
    prompts = {sample.prompt for sample in prepared.plan.todo}
    return len(prompts) * form.most_bytes(read_configs(prepared.world.folder)) if prompts else 0


def _free_bytes(cache: Path) -> int:
    return shutil.disk_usage(
        next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
    ).free


def _threads(device: str, workers: int, *, in_process: bool) -> int | None:
    """CPU threads of one worker; None on a GPU."""
    if device.startswith("cuda"):
        return None
    if in_process:
        import torch

        return torch.get_num_threads()
    return max(1, usable_cores() // workers)


def _own_scenes(config: PrecomputeConfig, world: WorldSource, folder: Path, progress: Progress) -> Path:
    if not TRAITS[config.kind].is_image_rollout:
        raise ConfigError(
            f"no {KINDS[config.kind].takes}s were given: "
            + command("precompute", f"{KINDS[config.kind].takes.upper()}S", "--kind", config.kind)
        )
    if world.name != WORLDLET:
        raise ConfigError(
            f"no images were given. The embedded scenes are the worldlet's own; for {world.name} name a folder: "
            "theworld precompute PHOTOS --world …"
        )
    from ..worldlet.scenes.files import write_scenes

    test = max(1, 2 * round(config.scenes / 6))  # whole pairs
    splits = {"train": config.scenes - test, "test": test}
    write_scenes(folder, splits=splits, families=OWN_FAMILIES, jobs=usable_cores(), progress=progress)
    return folder / "images"


def _embedded_note(config: PrecomputeConfig, world: WorldSource) -> str:
    if world.name != WORLDLET or not TRAITS[config.kind].is_image_rollout:
        return ""
    return (
        f"No images given: making {config.scenes} scenes of the embedded worldlet "
        f"(--world {COSMOS} and a folder of images for the real thing)."
    )
