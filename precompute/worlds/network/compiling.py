"""Compiling a world model's network: its repeated blocks, for the shapes of one job."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ....pipeline.errors import ConfigError
from ....pipeline.latents.world_model import WorldModel

RECOMPILE_LIMIT = 64
"""Of one block's code. With and without text, and each batch size after one that did not fit, are shapes of their own;
beyond the limit torch would go on uncompiled without a word."""


@runtime_checkable
class Compilable(Protocol):
    """Optional for a world model: its network has blocks that `torch.compile` takes."""

    def compile_blocks(self) -> None:
        """Have them compiled at their first forward, for the shapes they meet there (`dynamic=False`)."""
        ...


def compile_world(world: WorldModel, device: str) -> None:
    """Compile a world model's blocks; they are made when the first batch comes. Last bits change.

    Raises:
        ConfigError: its engine has no such blocks, or torch cannot compile for this device here.
    """
    if not isinstance(world, Compilable):
        raise ConfigError(f"--compile: {type(world).__name__} has no blocks to compile; leave it out")
    try:
        torch.compile(_double, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compilers behind torch raise
        first_line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--compile: torch cannot compile for {device} here: {type(error).__name__}: {first_line}. A CPU needs a "
            "C++ compiler, a GPU a C compiler and Triton. Install what is missing, or leave --compile out"
        ) from error
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, RECOMPILE_LIMIT)
    world.compile_blocks()


def _double(tensor: Tensor) -> Tensor:
    return 2 * tensor
