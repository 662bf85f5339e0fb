"""The processes of one training, as `accelerate launch` or `torchrun` starts them, and sums over them.

Without a launcher there is one process. configs/ddp.yaml and configs/fsdp.yaml start several.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its training."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Rank and size from the launcher's environment; also makes this process's GPU the current one."""
        ranks = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if ranks.size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return ranks

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages for all."""
        return self.rank == 0

    def maximum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The maximum of each value over all processes."""
        return self._reduce(values, device, distributed.ReduceOp.MAX)

    def total(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The sum of each value over all processes."""
        return self._reduce(values, device, distributed.ReduceOp.SUM)

    def _reduce(self, values: Sequence[float], device: torch.device, operation: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(reduced, operation)
        return reduced.tolist()


def is_of_another_process(error: RuntimeError) -> bool:
    """Whether an exchange failed, as it does when another process of the training has ended."""
    return isinstance(error, distributed.DistError) or "/gloo/" in str(error)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on the CPU. If FSDP has split it, it is gathered, and all processes must call this together."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def split_like(tensor: Tensor, model: Tensor) -> Tensor:
    """The reverse of `whole`: the tensor on the device of `model`, split like it."""
    on_device = tensor.to(model.device)
    return (
        distribute_tensor(on_device, model.device_mesh, model.placements) if isinstance(model, DTensor) else on_device
    )


def split_again(model: nn.Module) -> None:
    """Split what FSDP left whole after a pass without gradients: the outermost weights.

    While they are whole, they are other parameters than those that the optimizer has moments of.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
