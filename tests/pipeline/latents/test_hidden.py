"""What a store of hidden states holds: normed and projected tokens behind the encoded image."""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm

from theworld.pipeline.latents.hidden import hidden_latents, patches_of, projection
from theworld.pipeline.latents.hidden_space import hidden_spec
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec

WORLD = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.5,) * 16, std=(2.0,) * 16)


def recipe(**changes: object) -> Recipe:
    fields = {"kind": "hidden", "world": "sha256:x", "height": 64, "width": 32, "rollout_steps": 2, "hidden_block": 1}
    return Recipe(**(fields | changes))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_recipes_of_the_other_kinds_keep_their_ids() -> None:
    assert Recipe(world="sha256:x", height=64, width=64).id.startswith("9cd29f7f38da349f")


def test_the_space_is_that_of_tokens_and_needs_no_statistics() -> None:
    spec = hidden_spec(WORLD, recipe(hidden_width=16), width=128, patch=2)
    assert spec.sample_shape(64, 32, 2) == (16, 3, 4, 2)
    assert (set(spec.mean), set(spec.std)) == ({0.0}, {1.0})
    assert hidden_spec(WORLD, recipe(), width=128, patch=2).channels == 128


def test_the_projection_is_orthonormal_and_frozen() -> None:
    matrix = projection(32, 8, 0)
    assert torch.allclose(matrix.T @ matrix, torch.eye(8), atol=1e-6)
    assert torch.allclose(matrix[0, :3], torch.tensor([-0.403542, -0.051527, -0.279753]), atol=1e-6)
    assert not torch.allclose(matrix, projection(32, 8, 1))


def test_tokens_are_normed_and_projected_and_every_stride_th_frame_is_kept() -> None:
    tokens = drawn(2, 5 * 8, 32)
    made = hidden_latents(drawn(2, 16, 1, 8, 4), tokens, recipe(hidden_width=8, stride=2))
    expected = (layer_norm(tokens, (32,)) @ projection(32, 8, 0)).unflatten(1, (5, 4, 2)).permute(0, 4, 1, 2, 3)
    assert torch.equal(made[:, :, 1:], expected[:, :, 2::2])


def test_channels_far_beyond_float16_stay_finite() -> None:
    tokens = drawn(1, 3 * 8, 32)
    tokens[..., 5] *= 1e7
    assert hidden_latents(drawn(1, 16, 1, 8, 4), tokens, recipe(hidden_width=8)).half().isfinite().all()


def test_the_encoded_image_keeps_all_its_numbers_where_they_fit() -> None:
    encoded = drawn(2, 16, 1, 8, 4)
    whole = patches_of(encoded, 2, 80, seed=0)
    assert whole.shape == (2, 80, 1, 4, 2)
    assert torch.allclose(whole.square().sum(), encoded.square().sum())
    assert not whole[:, 64:].any()
    assert torch.equal(patches_of(encoded, 1, 16, seed=0), encoded)


def test_the_encoded_image_keeps_the_means_of_patches_where_it_has_to_be_cut() -> None:
    encoded = drawn(2, 16, 1, 8, 4)
    means = torch.nn.functional.avg_pool2d(encoded[:, :, 0], 2)
    assert torch.allclose(patches_of(encoded, 2, 16, seed=0)[:, :, 0], 2 * means, atol=1e-6)
    fewer = patches_of(encoded, 2, 8, seed=0)[:, :, 0]
    assert torch.allclose(fewer, torch.einsum("bchw,cd->bdhw", 2 * means, projection(16, 8, 0)), atol=1e-5)
