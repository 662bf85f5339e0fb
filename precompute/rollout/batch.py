"""One batch of inputs through the world model, and the facts of the machine that does it.

Lives here: what a worker and an audit have to do alike for the same bits to come out. Elsewhere: shards (worker.py),
comparing with a store (audit.py).
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Sequence
from importlib.metadata import version
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor

from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.world_model import WorldModel
from ...pipeline.machine import cpu_model
from ..worlds.text_embeddings import PromptedWorld, TextEmbeddings
from .kinds import Kind


def latents_of_batch(
    kind: Kind,
    world: WorldModel,
    pixels: Sequence[Tensor],
    keys: Sequence[str],
    recipe: Recipe,
    size: int,
    *,
    text: TextEmbeddings | None = None,
) -> Tensor:
    """Latents (B, C, T, H, W) of up to `size` inputs, made in a batch of exactly `size`; float32, on the CPU.

    Always a full batch: kernels may round differently for another batch size, and with the size fixed a latent has the
    same bits whichever samples share its batch.

    Args:
        pixels: B of them, as the kind loads them. keys: as many.
        text: embeddings of B prompts, where each sample has its own.
    Raises:
        torch.OutOfMemoryError: a batch of this size does not fit.
    """
    missing = size - len(keys)
    if text is not None:
        world = cast(PromptedWorld, world).with_text(text.padded(missing))
    batch = torch.stack([*pixels, *repeat(pixels[-1], missing)])
    return kind.latents(world, batch, [*keys, *repeat(keys[-1], missing)], recipe)[: len(keys)].float().cpu()


def machine_facts(device: str) -> dict[str, Any]:
    """What is recorded beside a shard, never hashed, of who made it: all that may decide its last bits."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor()
    return {
        "host": socket.gethostname(),
        "device": f"{device} {name}".strip(),
        "cpu": f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "python": platform.python_version(),
        },
    }
