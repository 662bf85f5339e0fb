"""What is drawn at random for a sample belongs to the sample."""

import torch

from theworld.pipeline.latents.keys import noise_seed
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.tensors import draw_noise

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
