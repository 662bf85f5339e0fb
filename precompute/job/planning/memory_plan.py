"""How the batches of a job fit into the memory of the device that makes them, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ....pipeline.device_memory import CONTEXT, GIB, memory_of_size, total_memory, usable, wrong_estimate
from ....pipeline.errors import ConfigError
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import LatentSpec
from ....pipeline.messages import format_bytes
from ...rollout.batch_size import batch_of_run
from ...worlds.builtin import BUILT_IN
from ...worlds.family import Configs, WorldFamily, read_configs, size_multiple
from ...worlds.memory import Memory, memory_of_batch
from ...worlds.public_sizes import PUBLIC_CONFIGS
from ...worlds.source import WorldSource
from ..config import PrecomputeConfig
from .cost import Target, a_or_an

_MULTIPLE = 16  # of a picture's sides, in pixels
_SMALLEST = 64
_NAMED = 5  # choices that a message lists


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of a device that one worker may take."""

    device: str
    """In words, such as `an H100 80GB`."""
    limit: float
    """Bytes, if nothing else is on the device."""

    @property
    def usable(self) -> float:
        """How much of it an estimate may take."""
        return usable(self.limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """The batch of a job, and the memory that it takes."""

    batch: int
    wanted: int
    """By the settings, or by tokens, whatever the memory."""
    is_requested: bool
    need: Memory | None
    """Of a batch; None is not known."""
    wanted_need: Memory | None
    room: Room | None
    """None: the device's memory is not known, or there is no limit, as on a CPU."""
    offload: bool = False
    """Whether `need` leaves weights in main memory."""
    copied: int = 0
    """Bytes that then come to the GPU in each forward, at least; 0 where it is not known."""

    def lines(self) -> list[str]:
        """The lines of the plan."""
        if self.need is None:
            return ["memory  not known: this world model's family does not say what it takes"]
        room = f", of the {format_bytes(self.room.limit)} of {self.room.device}" if self.room else ""
        elsewhere = ", the other weights in main memory" if self.offload else ""
        line = f"memory  about {self.need.describe()} a worker, for batches of {self.batch}{room}{elsewhere}"
        if self.wanted_need is None or self.batch == self.wanted:
            return [line]
        return [line, f"memory  batches of {self.wanted} would need {format_bytes(self.wanted_need.total)}"]

    def warning(self) -> str | None:
        """Where a batch that was asked for does not fit by the estimate."""
        if not self.is_requested or self.need is None or self.room is None or self.need.total <= self.room.usable:
            return None
        return (
            f"warning: batches of {self.batch} need about {format_bytes(self.need.total)}, and "
            f"{format_bytes(self.room.usable)} of {self.room.device} can be used: they will be halved when memory runs "
            "out. Leave --batch-size out to have it chosen by memory"
        )

    def wrong(self, measured: int | None) -> str | None:
        """The note at the end of a job whose estimate was far off; None if it was not, or nothing was measured.

        Args:
            measured: the most bytes that tensors of a worker took on its GPU.
        """
        return None if measured is None or self.need is None else wrong_estimate(self.need.total, measured)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and events."""
        return {
            "batch_size": self.batch,
            "estimated_bytes": None if self.need is None else self.need.total,
            "estimated_weight_bytes": None if self.need is None else self.need.weights,
            "device_bytes": None if self.room is None else int(self.room.limit),
        }


def room_of(config: PrecomputeConfig, target: Target) -> Room | None:
    """The memory of a worker's device, as far as it is known: given, of a named device, or of the GPU that is here."""
    if config.memory is not None:
        return Room(f"a GPU of {config.memory:g} GiB", memory_of_size(config.memory * GIB))
    if target.accelerator is not None:
        return Room(a_or_an(target.accelerator.name), memory_of_size(target.accelerator.memory_gb * 1e9))
    limit = total_memory(target.device) if target.device else None
    if limit is None or target.device_name is None:
        return None
    import torch

    sharing = math.ceil(target.workers / torch.cuda.device_count())
    shared = f"{target.device_name}, which {sharing} workers share" if sharing > 1 else target.device_name
    return Room(shared, memory_of_size((limit + CONTEXT) / sharing))  # each has a context of its own


def plan_memory(
    world: WorldSource,
    recipe: Recipe,
    spec: LatentSpec,
    inputs: int,
    *,
    requested: int | None,
    on_gpu: bool,
    room: Room | None,
    offload: bool = False,
) -> MemoryPlan:
    """The batch of a run: exactly as requested; by default by tokens, and smaller where it would not fit.

    Args:
        inputs: of the whole run, as of `batch_of_run`.
        offload: whether weights stay in main memory; on a CPU, that changes nothing.
    Raises:
        ConfigError: not one input fits; names settings that would.
    """
    wanted = batch_of_run(requested, recipe, spec, inputs, on_gpu=on_gpu)
    configs = read_configs(world.folder)
    offload = offload and (on_gpu or room is not None)
    limit = room.limit if room is not None else None
    need = partial(memory_of_batch, world.family, configs, recipe, limit=limit, offload=offload)
    memory_of_one, whole = need(1), need(wanted)
    stock = memory_of_batch(world.family, configs, recipe, 1) if offload else None
    plan = partial(
        MemoryPlan,
        wanted=wanted,
        is_requested=requested is not None,
        wanted_need=whole,
        room=room,
        offload=offload,
        copied=stock.offloadable if stock is not None else 0,
    )
    if memory_of_one is None or whole is None or room is None:
        return plan(batch=wanted, need=whole)
    if memory_of_one.total > room.usable:
        raise _too_small(world, configs, recipe, memory_of_one, room, offload=offload)
    batch, fitting = wanted, whole
    while not requested and batch > 1 and fitting is not None and fitting.total > room.usable:
        batch = math.ceil(batch / 2)
        fitting = need(batch)
    return plan(batch=batch, need=fitting)


def _too_small(
    world: WorldSource, configs: Configs, recipe: Recipe, memory_of_one: Memory, room: Room, *, offload: bool
) -> ConfigError:
    """The error of a device that holds not one input, with settings that would fit."""
    requested = _Choice(world.family, configs, recipe, offload=offload)
    changed = list(requested.changes())
    fitting = _fitting(changed, room) or _fitting([other for choice in changed for other in choice.changes()], room)
    instead = "Choose a device with more memory, or --device cpu"
    if fitting:
        instead = "These would fit:" + "".join(fitting)
    return ConfigError(
        f"{room.device} is too small for {world.name}: one {recipe.traits.takes} of {recipe.height}x{recipe.width} and "
        f"{recipe.rollout_steps} steps needs about {memory_of_one.describe()}{' with --offload' * offload}, and "
        f"{format_bytes(room.usable)} of {format_bytes(room.limit)} can be used. {instead}"
    )


@dataclass(frozen=True, slots=True)
class _Choice:
    """What could be asked for."""

    family: WorldFamily
    configs: Configs
    recipe: Recipe
    flags: tuple[tuple[str, str], ...] = ()
    """What to add to the command for it."""
    offload: bool = False
    """Whether weights stay in main memory."""

    def changes(self) -> Iterator[_Choice]:
        """Choices with one setting changed that is not yet; of each setting the nearest value first."""
        recipe = self.recipe
        if not self.offload and recipe.traits.predicts and recipe.rollout_steps:
            yield replace(self._with("--offload", "pinned", {}), offload=True)
        if recipe.compute_dtype == "float32" and recipe.traits.predicts:
            yield self._with("--compute-dtype", "bfloat16", {"compute_dtype": "bfloat16"})
        changed = {flag for flag, _ in self.flags}
        for share in () if "--size" in changed else (0.75, 0.5, 0.25):
            multiple = max(_MULTIPLE, size_multiple(self.family, self.configs))
            height, width = (round(side * share / multiple) * multiple for side in (recipe.height, recipe.width))
            if min(height, width) >= _SMALLEST:
                yield self._with("--size", f"{height}x{width}", {"height": height, "width": width})
        steps = 0 if "--steps" in changed or recipe.chunk_frames else recipe.steps_of_a_draw
        while recipe.traits.is_clip and (steps := steps // 2) >= 1:
            yield self._with("--steps", f"{steps}", {"rollout_steps": steps * recipe.draws})
        for family in () if "--world" in changed else BUILT_IN.values():
            for name in family.names:
                configs = PUBLIC_CONFIGS.get(name)
                if configs is None or math.gcd(recipe.height, recipe.width) % size_multiple(family, configs):
                    continue  # not known, or it takes no such size
                yield replace(self._with("--world", name, {}), family=family, configs=configs)

    def _with(self, flag: str, value: str, changes: dict[str, Any]) -> _Choice:
        return replace(self, recipe=self.recipe.model_copy(update=changes), flags=(*self.flags, (flag, value)))


def _fitting(choices: Sequence[_Choice], room: Room) -> list[str]:
    """Lines of those that fit, one for each way to change settings."""
    options: dict[frozenset[str], str] = {}
    for choice in choices:
        need = memory_of_batch(
            choice.family, choice.configs, choice.recipe, 1, limit=room.limit, offload=choice.offload
        )
        if need is not None and need.total <= room.usable:
            words = " ".join(f"{flag} {value}" for flag, value in choice.flags)
            flags = frozenset(flag for flag, _ in choice.flags)
            options.setdefault(flags, f"\n  {words}: {format_bytes(need.total)}")
    return list(options.values())[:_NAMED]
