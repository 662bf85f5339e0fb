"""What is known of a job before anything is written: world model, recipe, inputs, what is to do, what it will cost.

Elsewhere: listing (sources.py), subtracting what is done (plan.py), estimating (cost.py), doing it (job.py).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ...pipeline.errors import ConfigError
from ...pipeline.latents.kinds import KINDS as TRAITS
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec
from ...pipeline.machine import device_name, resolve_device, usable_cores
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore, find_store, refuse_store
from ..inputs.hash_cache import HashCache
from ..inputs.listing import Listing, list_inputs
from ..rollout.kinds import KINDS
from ..worlds.prompts import check_prompts
from ..worlds.source import COSMOS, WORLDLET, WorldSource, find_family, resolve_world
from .config import PrecomputeConfig, make_recipe
from .cost import Cost, estimate
from .events import Events
from .plan import Plan, bytes_per_sample, make_plan
from .throughput import ThroughputLog

OWN_FAMILIES = ("buckets",)
"""Of the scenes made where none are given: one family is learned in minutes; `theworld scenes` makes all four."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job, before anything is written."""

    world: WorldSource
    recipe: Recipe
    spec: LatentSpec
    listing: Listing
    index: HashCache
    store: LatentStore | None
    """The one to go on with; None where this recipe has none yet."""
    plan: Plan
    cost: Cost
    experience: ThroughputLog
    device: str
    workers: int
    """On this machine; a cluster's are not known before it is joined, and a plan joins nothing."""


def look_ahead(config: PrecomputeConfig, progress: Progress) -> Prepared:
    """Find out all there is to know without writing, but for the embedded scenes where no inputs are given.

    Raises:
        ConfigError, RecipeError, WorldModelError: this job cannot be done.
    """
    refuse_store(config.cache)  # before scenes are written there
    prompts = [text for text in (config.prompt, config.negative_prompt) if text is not None]
    if prompts:  # before 10 GB of text encoder are fetched for nothing
        check_prompts(prompts, config.guardrail, find_family(config.world).text)
    if config.prompt_field is not None and config.guardrail is None:
        check_prompts([""], None, find_family(config.world).text)  # that anybody checks them; they are not read yet
    world = resolve_world(config.world, with_text=bool(prompts) or config.prompt_field is not None)
    recipe = make_recipe(config, world)
    device = "cpu" if config.address else str(resolve_device(config.device))
    workers = 1 if config.in_process else config.workers or _default_workers(world, device)
    if config.images is None:
        progress.say(_embedded_note(config, world))
    if config.images is None and config.dry_run:
        with TemporaryDirectory() as folder:  # their keys are needed, the files are not
            listing, index = _list(config, _own_scenes(config, world, Path(folder), progress))
    else:
        listing, index = _list(config, config.images or _own_scenes(config, world, config.cache / "scenes", progress))
    spec = world.latent_spec()
    shape = spec.sample_shape(recipe.height, recipe.width, recipe.rollout_steps)
    store = find_store(config.cache, recipe)
    plan = make_plan(listing, store, bytes_per_sample(shape, recipe.dtype), retry_failed=config.retry_failed)
    experience = ThroughputLog.load(config.cache)
    here = None if config.address else device_name(device, _threads(device, workers, in_process=config.in_process))
    return Prepared(
        world=world,
        recipe=recipe,
        spec=spec,
        listing=listing,
        index=index,
        store=store,
        plan=plan,
        cost=estimate(world, recipe, shape, len(plan.todo), experience, device=here, workers=workers),
        experience=experience,
        device=device,
        workers=workers,
    )


def announce(ahead: Prepared, config: PrecomputeConfig, progress: Progress, events: Events) -> None:
    """Say what will be done, what it will cost, and what may come in its way."""
    plan, recipe = ahead.plan, ahead.recipe
    for line in plan.lines(recipe, ahead.world, str(ahead.store.path) if ahead.store else f"new, in {config.cache}"):
        progress.say(line)
    for line in ahead.cost.lines(KINDS[recipe.kind].takes):
        progress.say(line)
    needed = len(plan.todo) * plan.sample_bytes
    events.tell(
        "plan",
        store=str(ahead.store.path if ahead.store else config.cache),
        images=plan.inputs,
        todo=len(plan.todo),
        done=plan.done,
        failed_before=len(plan.failed_before),
        bytes=needed,
        **ahead.cost.to_json(),
    )
    if os.environ.get("RAY_ADDRESS") and not config.address and not config.in_process:
        progress.warn("note: RAY_ADDRESS is not followed, this job starts a Ray of its own; --address joins a cluster")
    if needed > (free := _free_bytes(config.cache)):
        progress.warn(
            f"warning: {needed / 2**30:.1f} GiB to write and {free / 2**30:.1f} GiB free in {config.cache}. "
            "What is committed when it is full stays, and the same command goes on once there is space"
        )


def is_small(world: WorldSource) -> bool:
    """It fits once per core; a large one would not fit twice."""
    return world.weight_bytes() < 2**28


def _list(config: PrecomputeConfig, place: Path) -> tuple[Listing, HashCache]:
    kind = KINDS[config.kind]
    index = HashCache.load(config.cache, place, kind.takes, trust=not config.rehash)
    named = {"column": config.column, "prompt_field": config.prompt_field}
    return list_inputs(place, kind, limit=config.limit, index=index, **named), index


def _default_workers(world: WorldSource, device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.device_count()
    return usable_cores() if is_small(world) else 1


def _free_bytes(cache: Path) -> int:
    return shutil.disk_usage(
        next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
    ).free


def _threads(device: str, workers: int, *, in_process: bool) -> int | None:
    """That a worker computes with, as its device's name says."""
    if device.startswith("cuda"):
        return None
    if in_process:
        import torch

        return torch.get_num_threads()
    return max(1, usable_cores() // workers)


def _own_scenes(config: PrecomputeConfig, world: WorldSource, folder: Path, progress: Progress) -> Path:
    if not TRAITS[config.kind].is_image_rollout:
        raise ConfigError(
            f"no {KINDS[config.kind].takes}s were given: theworld precompute {KINDS[config.kind].takes.upper()}S "
            f"--kind {config.kind}"
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
