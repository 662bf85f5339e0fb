"""The optimiser of the worldlet's trainings, its schedule by elapsed CPU time, and a moving average.

Muon (orthogonalised momentum) for weights of two or more axes, AdamW for the rest. On these small nets
it reached in 115 CPU s what AdamW did not reach in ten minutes.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ....pipeline.files.atomic import replace

# Newton-Schulz coefficients of Keller Jordan's Muon
_A, _B, _C = 3.4445, -4.7750, 2.0315
_UPDATE_RMS = 0.2  # "Muon is Scalable" (2502.16982): matches AdamW's update size


def orthogonalised(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrix with all singular values about one, by Newton-Schulz."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(rounds):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.T if tall else x


class MuonAdamW:
    """One optimiser over a module: Muon for matrices and kernels, AdamW for vectors."""

    def __init__(self, model: nn.Module, *, lr: float, vector_lr: float | None = None, momentum: float = 0.95) -> None:
        self.lr, self.momentum = lr, momentum
        self.matrices = [p for p in model.parameters() if p.requires_grad and p.squeeze().ndim >= 2]
        vectors = [p for p in model.parameters() if p.requires_grad and p.squeeze().ndim < 2]
        self.moving = [torch.zeros_like(p) for p in self.matrices]
        self.vector_lr = vector_lr if vector_lr is not None else lr / 3
        self.adam = torch.optim.AdamW(vectors, lr=self.vector_lr, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients at `scale` times the base rate, then clear them."""
        for parameter, moving in zip(self.matrices, self.moving, strict=True):
            if parameter.grad is None:
                continue
            moving.lerp_(parameter.grad, 1 - self.momentum)
            nesterov = parameter.grad.lerp(moving, self.momentum)
            update = orthogonalised(nesterov.flatten(1))
            size = _UPDATE_RMS * max(update.shape) ** 0.5
            parameter.sub_(update.view_as(parameter), alpha=self.lr * scale * size)
            parameter.grad = None
        for group in self.adam.param_groups:
            group["lr"] = self.vector_lr * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


class Average:
    """An exponential moving average of a model's parameters, kept beside it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter]) -> None:
        self.updates += 1
        weight = 1 - min(self.decay, self.updates / (self.updates + 10))
        for value, parameter in zip(self.values, parameters, strict=True):
            value.lerp_(parameter, weight)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            parameter.copy_(value)


class CpuBudget:
    """Elapsed CPU time of this process as a fraction of a budget, with warm-up and linear decay.

    CPU time, not wall time: a busy machine then slows a training instead of cutting it short.
    """

    def __init__(self, seconds: float, *, already_s: float = 0.0) -> None:
        self.seconds, self.already_s = seconds, already_s
        self.start = time.process_time()

    @property
    def elapsed_s(self) -> float:
        return self.already_s + time.process_time() - self.start

    @property
    def done(self) -> float:
        """Fraction spent, 0 to 1."""
        return min(1.0, self.elapsed_s / max(self.seconds, 1e-9))

    def scale(self, *, warm: float = 0.02, decay_from: float = 0.4, floor: float = 0.02) -> float:
        """Learning-rate factor now: up over `warm`, flat, then linear to `floor` from `decay_from` on."""
        fraction = self.done
        if fraction < warm:
            return 0.1 + 0.9 * fraction / warm
        return 1.0 if fraction < decay_from else max(floor, (1 - fraction) / (1 - decay_from))


def save_training(out: Path, model: nn.Module, average: Average, *, step: int, elapsed_s: float) -> None:
    """Write what a training goes on from. Each file is written as a whole, so that a kill leaves none cut short."""
    values = {f"{number:04d}": value for number, value in enumerate(average.values)}
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name, tensors in (("last", weights), ("average", values)):
        replace(out, out / f"{name}.safetensors", save(tensors))
    replace(out, out / "progress.json", json.dumps({"step": step, "elapsed_s": elapsed_s}).encode())
