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

from ...pipeline.errors import WorldModelError
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
    sample_shape: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Latents (B, C, T, H, W) of up to `size` inputs, made in a batch of exactly `size`; float32, on the CPU.

    Kernels may round differently for another batch size. So the batch is always full, and a latent has the same bits
    whichever samples share its batch.

    Args:
        pixels: of B inputs, as the kind loads them. keys: theirs.
        text: embeddings of B prompts, where each sample has its own.
        sample_shape: (C, T, H, W) of the store; None takes any.
    Raises:
        WorldModelError: the engine gave something else than one latent of that shape for each input.
        torch.OutOfMemoryError: a batch of this size does not fit.
    """
    padding = size - len(keys)
    if text is not None:
        world = cast(PromptedWorld, world).with_text(text.padded(padding))
    batch = torch.stack([*pixels, *repeat(pixels[-1], padding)])
    # our engines see to both themselves; those of other packages need not know of them
    with full_float32(), torch.no_grad():
        latents: object = kind.latents(world, batch, [*keys, *repeat(keys[-1], padding)], recipe)
        return _checked(latents, world, size, sample_shape)[: len(keys)].float().cpu()


def _checked(latents: object, world: WorldModel, size: int, sample_shape: tuple[int, ...] | None) -> Tensor:
    """What an engine gave, if it is what it was asked for: a package's own may give anything."""
    given = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    wanted = f"({size}, {', '.join(map(str, sample_shape or 'CTHW'))})"
    fits = isinstance(given, tuple) and len(given) == 5 and given[0] == size and sample_shape in (None, given[1:])
    if isinstance(latents, Tensor) and fits and latents.is_floating_point():
        return latents
    what = f"{latents.dtype} {given}" if isinstance(latents, Tensor) else given
    raise WorldModelError(
        f"the engine {type(world).__name__} ({type(world).__module__}) gave {what} for {size} inputs, where latents "
        f"are floating-point tensors of the shape {wanted}. Repair its package (docs/worlds.md says what engines give)"
    )


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
