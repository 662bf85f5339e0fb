"""The sizes of a training, or of a run, that decide how much memory it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...pipeline.device_memory import free_memory, name_of, usable
from ...pipeline.errors import ConfigError
from ...pipeline.messages import format_bytes
from ...pipeline.progress import Progress
from ..language.lm import attention_of, load_lm_config
from ..language.weights import Weights
from ..reader.memory import Adapters, Estimate, LMShape, MemoryShape, ReaderShape, Rows
from .meta import ReaderFacts, RunMeta

_TEXT = 100  # tokens of a question, where none has been asked yet


def shape_of(
    lm: Mapping[str, Any], facts: ReaderFacts, adapters: Adapters, *, dtype: torch.dtype, attention: str, shows: bool
) -> MemoryShape:
    """The sizes of a training or of a run.

    Args:
        lm: the language model's configuration.
        attention: of transformers: eager, sdpa, …
        shows: whether there are world tokens at all.
    Raises:
        ConfigError: the configuration does not state the sizes.
    """
    frames = 1 + facts.num_world_steps if facts.frames is None else len(facts.frames)
    try:
        shape = LMShape.of(lm)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"the language model's configuration does not state its sizes: {error}") from error
    reader = ReaderShape.of(
        facts.token_layout(),
        latent_shape=facts.latent_shape,
        frames=frames if shows else 0,
        max_world_steps=facts.max_world_steps,
        width=shape.width,
    )
    return MemoryShape(
        lm=shape,
        reader=reader,
        adapters=adapters,
        dtype_bytes=dtype.itemsize,
        is_eager=attention == "eager",
        masks_whole=attention in ("eager", "sdpa"),
    )


def sizes_of_run(meta: RunMeta, weights: Weights, dtype: torch.dtype) -> MemoryShape:
    """The sizes of a run that answers on such weights.

    Raises:
        ConfigError: the language model's configuration cannot be read.
    """
    rank = meta.config.get("lora_rank")  # anyone may have written it; all layers are the most
    return shape_of(
        load_lm_config(weights).to_dict(),
        meta.reader,
        Adapters.on(None, rank if isinstance(rank, int) else Adapters().rank),
        dtype=dtype,
        attention=attention_of(weights, "auto"),
        shows=meta.reader.frames != (),
    )


def one_answer(sizes: MemoryShape) -> Estimate:
    """What the answer to one question takes."""
    return sizes.answering(Rows(count=1, text=_TEXT, labels=1))


def require_room(
    sizes: MemoryShape,
    device: torch.device,
    *,
    source: str,
    memory: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Refuse a device that has no room to answer a single question; say how much one needs.

    Args:
        memory: the size of a GPU that is planned for, in GiB.
    Raises:
        ConfigError: it is too small.
    """
    estimate, free = one_answer(sizes), free_memory(device, memory)
    tokens = _TEXT + (sizes.reader.world_tokens if sizes.reader else 0)
    if free is not None and estimate.total > usable(free):
        raise ConfigError(
            f"{name_of(device, memory)} is too small for {source}: to answer one question of {tokens:,} tokens it "
            f"needs about {estimate.describe()}, and {format_bytes(usable(free))} of {format_bytes(free)} can be used. "
            "Answer on a CPU (--device cpu), or on a larger GPU"
        )
    if progress is not None:
        progress.say(f"memory: about {estimate.describe()} for a question of {tokens:,} tokens")
