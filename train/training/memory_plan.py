"""How a training fits into memory, before anything is loaded: images in a pass, and whether to checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ...pipeline.device_memory import free_memory, name_of, usable
from ...pipeline.errors import ConfigError
from ...pipeline.messages import format_bytes
from ..config import TrainConfig
from ..data.batches import Example
from ..reader.context_budget import flags
from ..reader.layouts import TokenLayout, usual_layouts
from ..reader.memory import Estimate, MemoryShape, ReaderShape, Rows
from ..runs.meta import ReaderFacts

LARGE_READER = 200_000_000
"""Trained numbers of a reader above which a training warns; with 16 channels they have some 10 to 30 million."""
_NAMED = 3  # layouts that a message lists


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a training fits into the memory of its device."""

    device: str
    tokens: int
    """World and text tokens of the longest row."""
    rows: int
    """In a pass."""
    wanted: int
    """In a pass, as the settings ask for."""
    checkpointed: bool
    estimate: Estimate
    limit: float | None
    """Bytes that are free; None is not known, as on a CPU."""

    def lines(self) -> list[str]:
        """The lines that are printed before weights load."""
        free = "" if self.limit is None else f" of the {format_bytes(self.limit)} of {self.device}"
        how = " with checkpointing" if self.checkpointed else ""
        lines = [
            f"memory: about {self.estimate.describe()}{free}, for passes of {self.rows} x {self.tokens:,} tokens{how}"
        ]
        if self.rows < self.wanted:
            lines.append(f"memory: passes of {self.wanted} images would not fit; an update is the same in smaller ones")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        sizes = {"device": self.device, "free_bytes": self.limit, "tokens": self.tokens}
        return {**sizes, "images_in_a_pass": self.rows, "gradient_checkpointing": self.checkpointed, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        parts = {f"estimated_{name}_bytes": size for name, size in asdict(self.estimate).items()}
        return {"estimated_bytes": self.estimate.total, **parts}


def longest(rows: Sequence[Sequence[Example]], count: int) -> Rows:
    """A pass of the rows that need most, `count` of them."""
    lengths = [row[0].shared + sum(len(e.prompt) - e.shared + len(e.answer) for e in row) for row in rows]
    answers = sorted((sum(len(e.answer) for e in row) for row in rows), reverse=True)
    count = min(count, len(rows))
    return Rows(
        count=count, text=max(lengths), labels=sum(answers[:count]), is_packed=any(len(row) > 1 for row in rows)
    )


def plan_training(
    config: TrainConfig,
    shape: MemoryShape,
    rows: Sequence[Sequence[Example]],
    *,
    source: str,
    facts: ReaderFacts,
    device: torch.device,
    processes: int = 1,
) -> MemoryPlan:
    """How the passes of an update fit into memory, with as little recomputation as possible.

    On a device without a known limit, and with several processes, which must decide alike, it is as the settings say.

    Args:
        rows: those that need most.
        source: what the language model is called.
    Raises:
        ConfigError: not one image fits; names what would.
    """
    wanted = min(config.micro_batch or config.batch_size, math.ceil(config.batch_size / processes))
    limit = free_memory(device, config.memory)
    name = name_of(device, config.memory)

    def plan(count: int, *, checkpointed: bool) -> MemoryPlan:
        some, passes = longest(rows, count), math.ceil(config.batch_size / processes / count)
        tokens = some.text + (shape.reader.world_tokens if shape.reader else 0)
        estimate = shape.training(some, checkpointing=checkpointed, passes=passes)
        return MemoryPlan(name, tokens, count, wanted, checkpointed, estimate, limit)

    requested = config.gradient_checkpointing
    if limit is None or processes > 1:
        return plan(wanted, checkpointed=bool(requested))
    for checkpointed in (False, True) if requested is None else (requested,):
        count = wanted
        while not (planned := plan(count, checkpointed=checkpointed)).estimate.total <= usable(limit) and count > 1:
            count = math.ceil(count / 2)
        if planned.estimate.total <= usable(limit):
            return planned
    raise _too_small(config, shape, facts, longest(rows, 1), source, plan(1, checkpointed=requested is not False))


def _too_small(
    config: TrainConfig, shape: MemoryShape, facts: ReaderFacts, row: Rows, source: str, least: MemoryPlan
) -> ConfigError:
    """The error of a card that holds not one image, with settings that would fit."""
    limit = least.limit or 0.0
    how = " with checkpointing" if least.checkpointed else ""

    def needs(other: MemoryShape) -> float:
        return other.training(row, checkpointing=True, passes=config.batch_size).total

    notes: list[str] = []
    if not least.checkpointed and needs(shape) <= usable(limit):
        notes.append(f"  --gradient-checkpointing: {format_bytes(needs(shape))}")
    if shape.dtype_bytes == 4 and needs(replace(shape, dtype_bytes=2)) <= usable(limit):
        notes.append(f"  --dtype bfloat16: {format_bytes(needs(replace(shape, dtype_bytes=2)))}")
    for layout in _shorter_layouts(facts, least.tokens - row.text):
        other = replace(shape, reader=_reader(facts, layout, shape))
        if len(notes) < _NAMED and needs(other) <= usable(limit):
            checkpointing = "" if config.gradient_checkpointing is not False else " --gradient-checkpointing"
            notes.append(f"  {flags(layout)}{checkpointing}: {format_bytes(needs(other))}")
    fitting = "\n".join(notes)
    instead = f"These would fit:\n{fitting}" if notes else "No layout fits: choose a smaller --lm, or a larger GPU"
    return ConfigError(
        f"{least.device} is too small to train {source}: one image of {least.tokens:,} tokens needs about "
        f"{least.estimate.describe()}{how}, and {format_bytes(usable(limit))} of {format_bytes(limit)} can be used. "
        f"{instead}"
    )


def large_reader_warning(facts: ReaderFacts, shape: MemoryShape) -> str | None:
    """What to say of a layout whose reader has more numbers to train than data may fill; None of any other.

    Its layers are as wide as four tokens have numbers: with 1,024 channels (V-JEPA 2) and patches of 4 x 4, a billion.
    """
    if shape.reader is None or shape.reader.parameters < LARGE_READER:
        return None
    sizes = {layout: _reader(facts, layout, shape).parameters for layout in usual_layouts(*facts.latent_shape[1:])}
    smallest = sorted(sizes, key=lambda layout: sizes[layout])[:_NAMED]
    choices = ", ".join(f"{flags(layout)} ({sizes[layout] / 1e6:,.0f})" for layout in smallest)
    return (
        f"warning: this layout's reader has {shape.reader.parameters / 1e6:,.0f} million numbers to train, as a token "
        f"holds {shape.reader.numbers:,} of the latents. Smaller, in millions: {choices}"
    )


def _shorter_layouts(facts: ReaderFacts, tokens: int) -> list[TokenLayout]:
    """Usual layouts of fewer world tokens, the longest first."""
    channels, height, width = facts.latent_shape
    frames = 1 + facts.num_world_steps if facts.frames is None else len(facts.frames)
    counts = {layout: layout.count(frames, height, width, channels=channels) for layout in usual_layouts(height, width)}
    return sorted((layout for layout, count in counts.items() if count < tokens), key=lambda layout: -counts[layout])


def _reader(facts: ReaderFacts, layout: TokenLayout, shape: MemoryShape) -> ReaderShape:
    frames = 1 + facts.num_world_steps if facts.frames is None else len(facts.frames)
    return ReaderShape.of(
        layout,
        latent_shape=facts.latent_shape,
        frames=frames,
        max_world_steps=facts.max_world_steps,
        width=shape.lm.width,
    )
