"""The noise levels of Cosmos-Predict2, and the two solvers that go from one to the next. Loads no diffusers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ....pipeline.latents.recipe import Solver

SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0
"""EDM noise levels of Cosmos-Predict2. Source: `Cosmos2VideoToWorldPipeline.__init__`; Karras et al. 2022, eq. 5."""

Estimate = Callable[[Tensor, Tensor], Tensor]
"""Estimates x0 from noisy latents and their noise level."""


def sigma_schedule(denoise_steps: int) -> Float[Tensor, " levels"]:
    """Noise levels from 80 to 0.002, and the last one again: denoise_steps + 1 values, float32.

    Source: Karras et al. 2022, eq. 5 with rho = 7, as `FlowMatchEulerDiscreteScheduler` computes it for
    `use_karras_sigmas=True`; the pipeline then replaces the final zero by a copy of sigma_min.
    """
    ramp = np.linspace(0, 1, denoise_steps)
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    sigmas = (high + ramp * (low - high)) ** RHO
    return torch.from_numpy(np.append(sigmas, sigmas[-1])).to(torch.float32)


def euler(estimate: Estimate, latents: Tensor, sigmas: Tensor) -> Tensor:
    """First order, from the first noise level to the last; one evaluation fewer than levels.

    Source: `FlowMatchEulerDiscreteScheduler.step`. The stock schedule repeats its last level: that step has length
    zero, so its evaluation is left out.
    """
    for sigma, next_sigma in pairwise(sigmas):
        x0 = estimate(latents, sigma)
        latents = latents + (next_sigma - sigma) * ((latents - x0) / sigma)
    return latents


def two_step(estimate: Estimate, latents: Tensor, sigmas: Tensor) -> Tensor:
    """Second order: x0 goes on as it went from the level before, in -log sigma; ends with an estimate of x0 itself.

    As many evaluations as levels. Of unit Gaussian data, 10, 20 and 35 levels leave 1.34, 1.06 and 1.02 of the
    standard deviation; Euler 0.75, 0.87 and 0.93. So it is worth its evaluations from about 20 levels on.

    Source: the "2ab" solver and clean last pass of nvidia-cosmos/cosmos-predict2; arXiv:2308.02157, eq. 12, with the
    previous level for c2.
    """
    before: tuple[Tensor, Tensor] | None = None
    for sigma, next_sigma in pairwise(sigmas):
        x0 = estimate(latents, sigma)
        step = torch.log(sigma / next_sigma)
        decay, new = torch.exp(-step), -torch.expm1(-step)
        latents_next = decay * latents + new * x0
        if before is not None:
            last_x0, last_sigma = before
            slope = (x0 - last_x0) / torch.log(last_sigma / sigma)
            latents_next = latents_next + (step - new) * slope
        before = (x0, sigma)
        latents = latents_next
    return estimate(latents, sigmas[-1])


def spread_kept(solver: Solver, denoise_steps: int) -> float:
    """Share of the standard deviation of unit Gaussian data that a rollout keeps: 1 is all of it.

    Its exact estimate is x / (1 + sigma^2), so the solver alone makes the difference. A rollout of pictures loses about
    as much; `theworld cache info` shows it.
    """
    start = torch.full((1, 1, 1, 1, 1), SIGMA_MAX, dtype=torch.float64)
    sigmas = sigma_schedule(denoise_steps)[:-1].double()
    solve = {"euler": euler, "2ab": two_step}[solver]
    return float(solve(lambda x, sigma: x / (1 + sigma**2), start, sigmas)) / float((1 + SIGMA_MAX**-2) ** 0.5)
