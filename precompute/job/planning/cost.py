"""Estimate the cost of a run: operations from what its family says of its arithmetic, time from what was measured.

The rate of an earlier run here wins. Where there is none, the operations are divided by a share of what the device
reaches in products of matrices: measured on a device that is here, from a data sheet for one that is only named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ....pipeline.accelerators import Accelerator, known_accelerator
from ....pipeline.errors import WorldModelError
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import TOKEN_CELLS, latent_frames, usual_patch, video_frames
from ....pipeline.matmul_speed import emulates_bfloat16, matmul_speeds, speed_text
from ....pipeline.messages import format_amount, format_rate
from ...worlds.arithmetic import Operations, is_plain
from ...worlds.family import Configs, HasArithmetic, read_configs
from ...worlds.memory import frames_of_forward
from ...worlds.source import WorldSource
from ..price import Price
from .throughput import DeviceRecord, ThroughputLog

SHARE_OF_MEASURED, SHARE_OF_PEAK = 0.5, 0.4
"""Assumed, until something has run: of a measured product of matrices, and of a data sheet's peak, of which a product
reaches about 0.8 on an H100."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a run is planned for."""

    workers: int
    device: str | None = None
    """Of torch, on this machine; None where the workers are elsewhere."""
    device_name: str | None = None
    """By its model, as rates are kept; None where it is not known yet."""
    accelerator: Accelerator | None = None
    """Named by the user, and not looked at."""
    threads: int | None = None
    """Of a worker on a CPU."""

    @property
    def is_gpu(self) -> bool:
        """Whether the workers compute on GPUs, as far as it is known."""
        return self.accelerator is not None or (self.device or "").startswith("cuda")

    @property
    def hours(self) -> str:
        """What a worker's hour is called."""
        return "GPU-hour" if self.is_gpu else "worker-hour"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one input and of a run; None is unknown."""

    todo: int
    computed: int = 0
    """The same, with the copies that fill batches; 0 where there are none."""
    tokens: int
    """World tokens of one latent, one a cell: T * H * W."""
    patch: int
    """Cells per side of the tokens that `theworld train` makes of it by default, or could make."""
    operations: Operations | None
    target: Target
    rate: float | None = None
    """Inputs a second of all workers together, measured in an earlier run."""
    rate_of: str | None = None
    """The device that it was measured on."""
    worker_s: float | None = None
    """Without a rate: the seconds that one input takes a worker, at the assumed share."""
    assumed: str = ""
    """Why that long, or why nothing is known, in words."""
    price: Price | None = None
    """Of a worker's hour."""

    @property
    def seconds(self) -> float | None:
        """Of the whole run: from the measured rate, else estimated."""
        seconds = self.seconds_of_one
        inputs = self.todo if self.rate else max(self.todo, self.computed)  # a rate counts what was asked for
        return None if seconds is None else seconds * inputs / self.target.workers

    @property
    def seconds_of_one(self) -> float | None:
        """That one input takes one worker: as measured, else estimated."""
        return self.target.workers / self.rate if self.rate else self.worker_s

    @property
    def worker_hours(self) -> float | None:
        """Of all workers, without the loading of the world model."""
        return None if self.seconds is None else self.seconds * self.target.workers / 3600

    def lines(self, takes: str) -> list[str]:
        """The lines of the plan."""
        usual = ", the default of train" if self.patch == TOKEN_CELLS else ""
        patches = f"{self.tokens // self.patch**2:,} in patches of {self.patch}x{self.patch}{usual}"
        lines = [f"tokens  {self.tokens:,} per {takes}; {patches} (other layouts: theworld tokens)"]
        if not self.todo:
            return lines
        work = f"{format_amount(self.operations.total / 1e12)} TFLOP per {takes}" if self.operations else ""
        lines.append(f"cost    {'; '.join(filter(None, (work, self._time_of_one(takes))))}")
        if self.seconds is not None and self.worker_hours is not None:
            workers = f" on {self.target.workers:,} workers" if self.target.workers > 1 else ""
            hours = hours_text(self.worker_hours, self.target.hours)
            money = f", {self.price.times(self.worker_hours)} at {self.price} each" if self.price else ""
            copies = 0 if self.rate else self.computed - self.todo
            filled = f"with {copies:,} copies that fill batches; " if copies > 0 else ""
            lines.append(
                f"total   about {duration(self.seconds)}{workers}, {hours}{money}; {filled}loading comes on top"
            )
        elif self.price:
            lines.append("total   no time is known, so no price either")
        return lines

    def _time_of_one(self, takes: str) -> str:
        if self.rate:
            workers = f", {self.target.workers} workers" if self.target.workers > 1 else ""
            return f"{format_rate(self.rate, f'{takes}s')} measured on {self.rate_of}{workers}"
        if self.worker_s is None:
            return self.assumed
        return f"{format_rate(1 / self.worker_s, f'{takes}s')} for a worker that reaches {self.assumed}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and events."""
        hours = self.worker_hours
        return {
            "tokens": {"spatial": self.tokens, "patch": self.tokens // self.patch**2},
            "flops_per_input": None if self.operations is None else self.operations.total,
            "estimated_s": None if self.seconds is None else round(self.seconds, 1),
            "estimate_from": "measured" if self.rate else "arithmetic" if self.worker_s is not None else None,
            "estimated_worker_hours": None if hours is None else round(hours, 4),
            "estimated_price": str(self.price.times(hours)) if self.price and hours is not None else None,
            "planned_workers": self.target.workers,
            "planned_device": self.target.accelerator.name if self.target.accelerator else self.target.device_name,
        }


def estimate(
    world: WorldSource,
    recipe: Recipe,
    shape: Sequence[int],
    todo: int,
    throughput: ThroughputLog,
    target: Target,
    *,
    price: Price | None = None,
) -> Cost:
    """The cost of `todo` inputs of a recipe.

    Args:
        shape: (C, T, H, W) of one latent.
    """
    operations = operations_of(world, recipe)
    _, frames, height, width = shape
    tokens = frames * height * width
    patch = usual_patch(height, width)
    cost = partial(Cost, todo=todo, tokens=tokens, patch=patch, operations=operations, target=target, price=price)
    name, record = _recorded(throughput.by_device(recipe), target)
    if record is not None and record.per_worker_s:
        return cost(rate=record.per_worker_s * target.workers, rate_of=name)
    if not todo:
        return cost()
    worker_s, assumed = _estimated(operations, recipe, target)
    return cost(worker_s=worker_s, assumed=assumed)


def _recorded(records: Mapping[str, DeviceRecord], target: Target) -> tuple[str, DeviceRecord | None]:
    """What an earlier run measured on such a device; of a cluster whose devices are not named, on any."""
    if target.device_name is not None:
        return target.device_name, records.get(target.device_name)
    rated = {name: record for name, record in records.items() if record.per_worker_s}
    if target.accelerator is not None:
        rated = {name: record for name, record in rated.items() if known_accelerator(name) == target.accelerator}
    name = max(rated, key=lambda name: rated[name].inputs, default="")
    return name, rated.get(name)


def _estimated(operations: Operations | None, recipe: Recipe, target: Target) -> tuple[float | None, str]:
    """Seconds of one input and worker, and of what they are assumed; without the first, why nothing is known."""
    if operations is None:
        return None, "time not known before something has run: its operations cannot be counted from its configs"
    dtype = recipe.compute_dtype if operations.predict else "float32"
    if target.accelerator is not None:
        peaks = {"bfloat16": target.accelerator.bfloat16 * 1e12, "float32": target.accelerator.float32 * 1e12}
        source = f"of {a_or_an(target.accelerator.name)} (data sheet, dense {dtype})"
        assumed = f"{100 * SHARE_OF_PEAK:.0f} % of the {speed_text(peaks[dtype])} {source}"
        return _seconds(operations, peaks["float32"], peaks[dtype], SHARE_OF_PEAK), assumed
    if target.device is None:
        plan = 'a dry run can plan for a device by its name: --device "H100 80GB" --workers 64'
        return None, f"time not known before something has run there; {plan}"
    speeds = matmul_speeds(target.device)
    if not speeds:
        return None, "time not known before something has run: the speed of this device could not be measured"
    assumed = (
        f"{100 * SHARE_OF_MEASURED:.0f} % of the {speed_text(speeds[dtype])} that this device multiplies matrices with"
    )
    if dtype == "bfloat16" and emulates_bfloat16(speeds):
        assumed += f" in bfloat16, which it emulates; in float32 it has {speed_text(speeds['float32'])}"
    share = SHARE_OF_MEASURED * _threads_of(target)
    return _seconds(operations, speeds["float32"], speeds[dtype], share), assumed


def _seconds(operations: Operations, encode: float, predict: float, share: float) -> float:
    """The time of one input at a share of the speeds of both parts."""
    return (operations.encode / encode + operations.predict / predict) / share


def _threads_of(target: Target) -> float:
    """The threads of a worker for one of those that the speed was measured with."""
    if target.threads is None:
        return 1.0
    import torch

    return target.threads / torch.get_num_threads()


def operations_of(world: WorldSource, recipe: Recipe) -> Operations | None:
    """Operations for one input, as the family counts them; None if it does not count this kind of work."""
    if not isinstance(world.family, HasArithmetic):
        return None
    try:
        return _operations_of(world, world.family, recipe)
    # a config of no such class: loading says why
    except (WorldModelError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _operations_of(world: WorldSource, family: HasArithmetic, recipe: Recipe) -> Operations | None:
    configs = {part: config for part, config in read_configs(world.folder).items() if is_plain(config)}
    kind, strides = recipe.traits, {"stride": recipe.stride, "temporal_stride": world.latent_spec().temporal_stride}
    encode = partial(family.encode_flops, configs, recipe.height, recipe.width)
    if kind.is_real_video:
        return Operations(encode(video_frames(recipe.rollout_steps, **strides)))
    if not kind.predicts:
        return Operations(kind.pictures(latent_frames(recipe.rollout_steps)) * encode(1))
    if recipe.rollout_steps == 0:
        return Operations(encode(1))
    if recipe.chunk_frames:
        return None
    frames = frames_of_forward(recipe)
    if kind.is_hidden:
        return _one_forward(world, family, configs, recipe, frames)
    flops = family.rollout_flops(configs, recipe, kind.first_predicted_frame(recipe) or 1, frames)
    return Operations(recipe.draws * flops.encode, recipe.draws * flops.predict)


def _one_forward(
    world: WorldSource, family: HasArithmetic, configs: Configs, recipe: Recipe, frames: int
) -> Operations:
    """Of the first forward, up to the block: the share of the blocks is that of the work, but for its two ends."""
    two, three = (
        family.rollout_flops(configs, recipe.model_copy(update={"denoise_steps": steps}), 1, frames) for steps in (2, 3)
    )
    forward = three.predict - two.predict or two.predict  # a family that does not denoise has one forward
    return Operations(two.encode, forward * recipe.hidden_block / world.blocks().count)


def hours_text(hours: float, name: str) -> str:
    """A number of hours: 236 GPU-hours, less than 0.01 GPU-hours."""
    return f"{format_amount(hours)} {name}s" if hours >= 0.01 else f"less than 0.01 {name}s"


def a_or_an(name: str) -> str:
    """With its article, as its first letter is spoken."""
    return f"{'an' if name[0] in 'AEFHILMNORSX' else 'a'} {name}"


def duration(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if length > 60 else f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds))} s"
