"""What is drawn at random for a sample belongs to the sample."""

import ml_dtypes
import numpy as np
import pytest
import torch

from theworld.pipeline.errors import LatentShapeError
from theworld.pipeline.latents.keys import noise_seed
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.latents.tensors import as_tensor, draw_noise, draw_posterior, standardise, unstandardise

KEYS = ["a" * 32, "b" * 32, "c" * 32]
RECIPE = Recipe(world="x", height=16, width=16, seed=7, draw=2)


def test_noise_belongs_to_the_key_whatever_the_batch() -> None:
    together = draw_noise(RECIPE, KEYS, (4, 3, 2, 2))
    assert together.shape == (3, 4, 3, 2, 2)
    assert together.dtype == torch.float32
    for key, noise in zip(reversed(KEYS), reversed(together), strict=True):
        assert torch.equal(draw_noise(RECIPE, [key], (4, 3, 2, 2))[0], noise)


def test_noise_is_torch_s_own_under_the_sample_s_seed() -> None:  # stores of years are made of it
    generator = torch.Generator().manual_seed(noise_seed(7, KEYS[0], 2))
    assert torch.equal(draw_noise(RECIPE, KEYS, (5, 2))[0], torch.randn((5, 2), generator=generator))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_posterior_is_drawn_in_float32_and_given_in_the_dtype_of_its_moments(dtype: torch.dtype) -> None:
    moments = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    drawn = draw_posterior(moments, torch.Generator().manual_seed(2))
    noise = torch.randn((2, 3, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    wide = moments.float()
    assert torch.equal(drawn, (wide[:, :, :1] + torch.exp(0.5 * wide[:, :, 1:]) * noise).to(dtype))
    assert drawn.dtype == dtype


@pytest.mark.parametrize("channels", [1, 2, 4])  # one channel would be broadcast without a word
def test_latents_of_another_number_of_channels_are_refused(channels: int) -> None:
    spec = LatentSpec(channels=3, spatial_stride=8, temporal_stride=4, mean=(0.0, 1.0, 2.0), std=(1.0, 2.0, 4.0))
    for change in (standardise, unstandardise):
        with pytest.raises(LatentShapeError, match=rf"\(B, 3, T, H, W\), got \(2, {channels}, 2, 4, 4\)"):
            change(torch.zeros(2, channels, 2, 4, 4), spec)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_a_store_reads_is_a_tensor_of_its_dtype_over_the_same_memory(dtype: str) -> None:
    read = np.array([[1.5, -2.0]], dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    tensor = as_tensor(read)
    assert (tensor.dtype, tensor.tolist()) == (getattr(torch, dtype), [[1.5, -2.0]])
    read[0, 0] = 4.0
    assert tensor[0, 0] == 4.0
