"""Latents as tensors: raw and standardised values, and the random draws of noise and of a posterior.

Axes, everywhere:  B sample   C channel (16)   T latent frame   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import LatentShapeError, RunError
from .keys import noise_seed
from .recipe import Recipe, StoredDtype
from .spec import LatentSpec


def as_tensor(latents: NDArray[Any]) -> Tensor:
    """What a store's `read` returns as a tensor over the same memory; also bfloat16, which numpy knows by ml_dtypes."""
    if latents.dtype == ml_dtypes.bfloat16:
        return _tensor(latents.view(np.int16)).view(torch.bfloat16)
    return _tensor(latents)


_STORED: dict[StoredDtype, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def as_stored(
    latents: Float[Tensor, "B C T H W"], dtype: StoredDtype, keys: Sequence[str] | None = None
) -> Float[Tensor, "B C T H W"]:
    """Latents that were just made, with the bits that a store of this dtype would hold.

    Args:
        keys: of the inputs, to name them in an error.
    Raises:
        RunError: values are not finite in this dtype, so a store would refuse them.
    """
    rounded = latents.to(_STORED[dtype])
    finite: list[bool] = rounded.isfinite().flatten(1).all(1).tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    names = keys or [f"input {number}" for number in range(len(finite))]
    if bad := [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]:
        raise RunError(
            f"the rollouts of {', '.join(bad[:3])} hold values that {dtype} cannot; a store would have left these "
            "images out. Take their questions out of the file"
        )
    return rounded


def standardise(raw: Float[Tensor, "B C T H W"], spec: LatentSpec) -> Float[Tensor, "B C T H W"]:
    """Shift and scale each channel to about zero mean and unit variance.

    Args:
        raw: latents as the VAE encoder returns them.
        spec: the latent space `raw` lives in.
    Returns:
        A new tensor; same shape, dtype and device. Stores hold this form.
    Raises:
        LatentShapeError: `raw` does not have the space's number of channels.

    Source: `Cosmos2VideoToWorldPipeline.prepare_latents` in diffusers, with sigma_data = 1.
    """
    mean, std = _statistics(raw, spec)
    return (raw - mean) / std


def unstandardise(standardised: Float[Tensor, "B C T H W"], spec: LatentSpec) -> Float[Tensor, "B C T H W"]:
    """The inverse of `standardise`: what the VAE decoder takes."""
    mean, std = _statistics(standardised, spec)
    return standardised * std + mean


def draw_posterior(
    moments: Float[Tensor, "B C 2 H W"], generator: torch.Generator | None = None
) -> Float[Tensor, "B C 1 H W"]:
    """One sample of each encoding whose mean and log-variance a store of kind posterior holds.

    Args:
        moments: standardised mean and log-variance. generator: on the same device.
    Returns:
        Standardised latents of single frames, in the dtype of `moments`.
    """
    mean, log_variance = moments[:, :, :1].float(), moments[:, :, 1:].float()
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return (mean + torch.exp(0.5 * log_variance) * noise).to(moments.dtype)


def draw_noise(recipe: Recipe, keys: Sequence[str], shape: Sequence[int]) -> Float[Tensor, "B ..."]:
    """Unit normal noise of each sample: a function of the recipe's seed and draw and of its key alone.

    So batch, order, worker and retry cannot change the noise; nor can the device, as it is drawn on the CPU.

    Args:
        keys: B of them. shape: of one sample's noise.
    Returns:
        Float32, on the CPU.
    """
    seeds = (noise_seed(recipe.seed, key, recipe.draw) for key in keys)
    noise = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) for seed in seeds]
    return torch.stack(noise)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]


def _statistics(latents: Tensor, spec: LatentSpec) -> tuple[Tensor, Tensor]:
    if latents.ndim != 5 or latents.shape[1] != spec.channels:
        raise LatentShapeError(f"expected latents of shape (B, {spec.channels}, T, H, W), got {tuple(latents.shape)}")
    shape = (1, spec.channels, 1, 1, 1)
    return latents.new_tensor(spec.mean).view(shape), latents.new_tensor(spec.std).view(shape)
