"""Latents of one batch, and the facts of the machine that made them; workers and audits share both."""

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
from ..worlds.network.precision import FULL, full_float32
from ..worlds.text_embeddings import PromptedWorld, TextEmbeddings
from .kind import Kind


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

    Kernels may round differently for another batch size. So the batch is always full, and a latent has the same bits
    whichever samples share its batch.

    Args:
        pixels: of B inputs, as the kind loads them. keys: theirs.
        text: embeddings of B prompts, where each sample has its own.
    Raises:
        torch.OutOfMemoryError: a batch of this size does not fit.
    """
    padding = size - len(keys)
    if text is not None:
        world = cast(PromptedWorld, world).with_text(text.padded(padding))
    batch = torch.stack([*pixels, *repeat(pixels[-1], padding)])
    with full_float32():  # our engines see to it themselves; those of other packages need not know of it
        return kind.latents(world, batch, [*keys, *repeat(keys[-1], padding)], recipe)[: len(keys)].float().cpu()


def machine_facts(device: str, *, compiled: bool = False) -> dict[str, Any]:
    """Host, device, CPU, threads, versions, and how the engine computes: what may change a latent's last bits.

    Recorded, never hashed.

    Args:
        compiled: the world model's blocks are (worlds/compiling.py).
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor()
    return {
        "host": socket.gethostname(),
        "device": f"{device} {name}".strip(),
        "cpu": f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "engine": {"float32": FULL, "compiled": compiled},
        "versions": {
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "python": platform.python_version(),
        },
    }
