"""Estimate the cost of a run: operations from the model's configs, time from rates measured in earlier runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...pipeline.files.limits import MAX_CONFIG_BYTES, MAX_LAYERS
from ...pipeline.files.plain import read_json
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import latent_frames, video_frames
from ..worlds.source import WorldSource
from .throughput import ThroughputLog

TEXT_TOKENS = 512
"""Of a prompt, as the pipeline pads it; without one, a single token of zeros."""
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Operations a second in bfloat16, dense: vendors' data sheets. A large matmul reaches about 790e12 on an H100."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one input and of a run; None is unknown."""

    todo: int
    tokens: int
    """World tokens of one latent, one a cell: T * H * W."""
    flops: float | None
    """Of one input."""
    workers: int
    device: str | None
    rate: float | None
    """Inputs a second of all workers together, measured in an earlier run."""
    floor_s: float | None
    """Lower bound of the time: the operations at the machine's full speed."""

    @property
    def seconds(self) -> float | None:
        """Of the whole run: from the measured rate, else the lower bound."""
        return self.todo / self.rate if self.rate else self.floor_s

    @property
    def seconds_of_one(self) -> float | None:
        """That one input takes one worker: as measured, else the lower bound."""
        return self.seconds * self.workers / self.todo if self.seconds and self.todo else None

    def lines(self, takes: str) -> list[str]:
        """The lines of the plan."""
        patches = f"{-(-self.tokens // 4):,} in patches of 2x2 (other layouts: theworld tokens)"
        lines = [f"tokens  {self.tokens:,} per {takes}, {patches}"]
        if not self.todo:
            return lines
        work_text = f"{self.flops / 1e12:,.3g} TFLOP per {takes}" if self.flops else ""
        if self.rate:
            time_text = f"about {duration(self.todo / self.rate)}: {self.rate:.3g} {takes}s/s measured on {self.device}"
            time_text += f", {self.workers} workers" if self.workers > 1 else ""
        elif self.floor_s is not None:
            time_text = (
                f"more than {duration(self.floor_s)} (the arithmetic alone); measured once something has run here"
            )
        else:
            time_text = "time not known before something has run here"
        return [*lines, f"cost    {'; '.join(part for part in (work_text, time_text) if part)}"]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and events."""
        return {
            "tokens": {"spatial": self.tokens, "patch": -(-self.tokens // 4)},
            "flops_per_input": self.flops,
            "estimated_s": None if self.seconds is None else round(self.seconds, 1),
            "estimate_from": "measured" if self.rate else "arithmetic" if self.floor_s is not None else None,
        }


def estimate(
    world: WorldSource,
    recipe: Recipe,
    shape: Sequence[int],
    todo: int,
    throughput: ThroughputLog,
    *,
    device: str | None,
    workers: int,
) -> Cost:
    """The cost of `todo` inputs of a recipe.

    Args:
        shape: (C, T, H, W) of one latent. device: of the workers, by its model; None where that is not known yet.
    """
    record = throughput.by_device(recipe).get(device) if device else None
    rate = record.per_worker_s * workers if record and record.per_worker_s else None
    flops = flops_per_input(world, recipe, shape)
    floor_s = None
    if todo and flops and device and not rate and (speed := _speed(device, recipe, workers)):
        floor_s = todo * flops / speed
    _, frames, height, width = shape
    return Cost(
        todo=todo,
        tokens=frames * height * width,
        flops=flops,
        workers=workers,
        device=device,
        rate=rate,
        floor_s=floor_s,
    )


def flops_per_input(world: WorldSource, recipe: Recipe, shape: Sequence[int]) -> float | None:
    """Operations for one input of a kind and an architecture that are known here; None for others."""
    try:
        return _flops_per_input(world, recipe, shape)
    except (LookupError, TypeError, ValueError, ArithmeticError):  # a config of no such class: loading says why
        return None


def _flops_per_input(world: WorldSource, recipe: Recipe, shape: Sequence[int]) -> float | None:
    vae, transformer = (_config(world.folder / part) for part in ("vae", "transformer"))
    if vae.get("_class_name") != "AutoencoderKLWan":
        return None
    size = recipe.height, recipe.width
    picture = encode_flops(vae, *size, 1)
    kind = recipe.traits
    if kind.is_real_video:
        strides = {"stride": recipe.stride, "temporal_stride": world.latent_spec().temporal_stride}
        return encode_flops(vae, *size, video_frames(recipe.rollout_steps, **strides))
    if not kind.predicts:
        return kind.pictures(latent_frames(recipe.rollout_steps)) * picture
    if recipe.rollout_steps == 0:
        return picture
    if recipe.chunk_frames or transformer.get("_class_name") != "CosmosTransformer3DModel":
        return None
    _, _, height, width = shape
    frames = 1 + recipe.rollout_steps // recipe.draws * recipe.stride
    has_text = recipe.prompt is not None or recipe.prompts == "sample"
    levels = recipe.denoise_steps - (recipe.solver == "euler")  # Euler's last forward changes nothing
    texts = [TEXT_TOKENS if has_text else 0]
    if recipe.guidance > 1:
        texts.append(0 if recipe.negative_prompt is None else TEXT_TOKENS)
    per_level = sum(forward_flops(transformer, frames, height, width, text_tokens) for text_tokens in texts)
    observed_flops = encode_flops(vae, *size, kind.first_predicted_frame(recipe) or 1)
    return recipe.draws * (observed_flops + levels * per_level)


def forward_flops(config: Mapping[str, Any], frames: int, height: int, width: int, text_tokens: int) -> float:
    """One lean forward of a `CosmosTransformer3DModel` (worlds/cosmos_forward.py); a multiply and an add are two.

    Args:
        frames, height, width: of the latent. text_tokens: 0 is no text, and no cross-attention.
    """
    depth, tall, wide = config["patch_size"]
    n = (frames // depth) * (height // tall) * (width // wide)
    d = config["num_attention_heads"] * config["attention_head_dim"]
    a = config["adaln_lora_dim"]
    attention = 8 * n * d**2 + 4 * n**2 * d
    cross_attention = 4 * n * d**2 + 4 * n * text_tokens * d + 4 * text_tokens * config["text_embed_dim"] * d
    cross_attention *= bool(text_tokens)
    mlp = 4 * config["mlp_ratio"] * n * d**2
    modulation = (3 if text_tokens else 2) * 8 * frames * a * d  # of frames, not of tokens
    channels = config["in_channels"] + bool(config["concat_padding_mask"]) + config["out_channels"]
    projections = 2 * n * d * channels * depth * tall * wide + 6 * frames * a * d
    return config["num_layers"] * (attention + cross_attention + mlp + modulation) + projections


def encode_flops(config: Mapping[str, Any], height: int, width: int, frames: int) -> float:
    """Encoding a clip with an `AutoencoderKLWan`, whose first frame is a chunk of its own.

    Args:
        height, width: of the frames, in pixels. frames: 1 + a multiple of the temporal stride.
    """
    base, widths = config["base_dim"], config["dim_mult"]
    dims = [base * factor for factor in (1, *widths)]
    z = 2 * config["z_dim"]
    cells = frames * height * width
    total = 2.0 * 27 * 3 * dims[0] * cells
    for stage, (width_in, width_out) in enumerate(pairwise(dims)):
        for block in range(config["num_res_blocks"]):
            start = width_in if block == 0 else width_out
            total += 2 * 27 * (start + width_out) * width_out * cells + (
                2 * start * width_out * cells if start != width_out else 0
            )
        if stage == len(widths) - 1:
            break
        height, width = height // 2, width // 2
        total += 2 * 9 * width_out * width_out * frames * height * width
        if config["temperal_downsample"][stage]:  # diffusers' spelling
            later_frames = (frames - 1) // 2
            total += 2 * 3 * width_out * width_out * later_frames * height * width
            frames = 1 + later_frames
        cells = frames * height * width
    top, area = dims[-1], height * width
    total += 2 * 2 * 27 * 2 * top * top * cells + (2 * 4 * top * top + 4 * area * top) * cells
    return total + 2 * 27 * top * z * cells + 2 * z * z * cells


def duration(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if length > 60 else f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds))} s"


def _speed(device: str, recipe: Recipe, workers: int) -> float | None:
    """Operations a second of all workers at the most: of a CPU tried out here, of a GPU from its data sheet."""
    if not device.endswith(" threads"):
        speeds = [speed for name, speed in PEAK.items() if name in device]
        return speeds[0] * workers if speeds and recipe.compute_dtype == "bfloat16" else None
    import torch

    threads = int(device.rpartition(", ")[2].split()[0])
    matrix, best = torch.ones(512, 512), 0.0
    for _ in range(6):
        started = time.perf_counter()
        torch.matmul(matrix, matrix)
        best = max(best, 2 * 512**3 / (time.perf_counter() - started))
    return best / torch.get_num_threads() * threads * workers


def _config(folder: Path) -> dict[str, Any]:
    try:
        value = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and _is_plain(value) else {}


def _is_plain(config: dict[str, Any]) -> bool:
    """Whether no number is so large, and no list so long, that an estimate would take as long as the work."""
    lists = [value for value in config.values() if isinstance(value, list)]
    numbers = [value for values in (config.values(), *lists) for value in values if isinstance(value, int | float)]
    return all(len(each) <= 100 for each in lists) and all(abs(number) <= 10 * MAX_LAYERS for number in numbers)
