"""What the engine promises beyond parity with the stock pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.miniature import mini_transformer, mini_vae, save_mini_world
from theworld.pipeline.errors import ConfigError, LatentShapeError, WorldModelError
from theworld.pipeline.keys import key_of_bytes
from theworld.pipeline.latents import standardise
from theworld.pipeline.recipe import Recipe
from theworld.precompute.cosmos import CosmosWorld

KEYS = [key_of_bytes(bytes([i])) for i in range(6)]


def recipe(**changes: object) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 48, "rollout_steps": 2, "denoise_steps": 4}
    return Recipe(**(fields | changes))


@pytest.fixture(scope="module")
def world() -> CosmosWorld:
    return CosmosWorld(mini_vae(), mini_transformer())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_no_steps_is_the_encoding_and_equals_frame_zero_of_a_rollout(world: CosmosWorld, images: torch.Tensor) -> None:
    encoded = world.encode(images)
    assert encoded.shape == (6, 16, 1, 4, 6)
    assert torch.equal(world.rollout(images, KEYS, recipe(rollout_steps=0)), encoded)
    assert torch.equal(world.rollout(images, KEYS, recipe())[:, :, :1], encoded)


def test_one_frame_encodes_to_the_bits_of_a_clip_s_first_frame(images: torch.Tensor) -> None:
    vae = mini_vae()
    with torch.inference_mode():
        clip = images[:1].unsqueeze(2).repeat(1, 1, 17, 1, 1)
        alone = vae.encode(images[:1].unsqueeze(2)).latent_dist.mode()
        assert torch.equal(vae.encode(clip).latent_dist.mode()[:, :, :1], alone)


def test_a_video_encodes_to_what_the_stock_vae_gives_and_begins_with_its_first_frame(world: CosmosWorld) -> None:
    videos = torch.rand(2, 3, 17, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = world.encode_video(videos)
    assert encoded.shape == (2, 16, 5, 4, 6)
    assert encoded.dtype == torch.float32
    with torch.inference_mode():
        stock = standardise(mini_vae().encode(videos).latent_dist.mode(), world.spec)
    assert torch.equal(encoded, stock)
    assert torch.equal(encoded[:, :, :1], world.encode(videos[:, :, 0]))
    assert torch.equal(encoded[:, :, :3], world.encode_video(videos[:, :, :9]))  # causal: the rest comes after


def test_a_clip_whose_last_frames_the_vae_would_drop_is_refused(world: CosmosWorld) -> None:
    with pytest.raises(LatentShapeError, match="1 \\+ a multiple of 4"):
        world.encode_video(torch.zeros(1, 3, 16, 32, 48))


def test_real_frames_are_never_made_up_by_a_rollout(world: CosmosWorld, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="frames"):
        world.rollout(images, KEYS, Recipe(world="sha256:x", height=32, width=48, kind="frames"))


def test_a_latent_does_not_depend_on_its_place_in_the_batch(world: CosmosWorld, images: torch.Tensor) -> None:
    order = [3, 0, 5, 1, 4, 2]
    straight = world.rollout(images, KEYS, recipe())
    permuted = world.rollout(images[order], [KEYS[i] for i in order], recipe())
    assert torch.equal(permuted, straight[order])


def test_a_latent_does_not_depend_on_the_size_of_the_batch(world: CosmosWorld, images: torch.Tensor) -> None:
    together = world.rollout(images, KEYS, recipe())
    alone = torch.cat([world.rollout(images[i : i + 1], [KEYS[i]], recipe()) for i in range(6)])
    assert (together - alone).abs().max().item() <= 1e-5


def test_noise_follows_the_key_the_seed_and_the_draw(world: CosmosWorld, images: torch.Tensor) -> None:
    same = images[:1].expand(2, -1, -1, -1)
    a, b = world.rollout(same, KEYS[:2], recipe())
    assert not torch.equal(a[:, 1:], b[:, 1:])
    for changes in ({"seed": 1}, {"draw": 1}):
        assert not torch.equal(world.rollout(same[:1], KEYS[:1], recipe(**changes))[0, :, 1:], a[:, 1:])


def test_stride_keeps_every_nth_frame_of_the_longer_clip(world: CosmosWorld, images: torch.Tensor) -> None:
    long = world.rollout(images[:1], KEYS[:1], recipe(rollout_steps=4))
    kept = world.rollout(images[:1], KEYS[:1], recipe(rollout_steps=2, stride=2))
    assert torch.equal(kept, long[:, :, ::2])


def test_a_prompt_without_its_embeddings_is_refused(world: CosmosWorld, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        world.rollout(images[:1], KEYS[:1], recipe(prompt="a ball"))


def test_decoding_gives_four_frames_for_each_latent_after_the_first(world: CosmosWorld, images: torch.Tensor) -> None:
    video = world.decode(world.rollout(images[:2], KEYS[:2], recipe()))
    assert video.shape == (2, 3, 9, 32, 48)
    assert video.abs().max() <= 1


def test_the_stock_folder_layout_round_trips(tmp_path: Path, world: CosmosWorld, images: torch.Tensor) -> None:
    loaded = CosmosWorld.load(save_mini_world(tmp_path / "w"))
    assert loaded.spec == world.spec
    assert torch.equal(loaded.rollout(images, KEYS, recipe()), world.rollout(images, KEYS, recipe()))


def test_bfloat16_touches_the_transformer_alone(tmp_path: Path, world: CosmosWorld, images: torch.Tensor) -> None:
    half = CosmosWorld.load(save_mini_world(tmp_path / "w"), compute_dtype="bfloat16")
    exact = world.rollout(images, KEYS, recipe())
    rounded = half.rollout(images, KEYS, recipe(compute_dtype="bfloat16"))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded[:, :, 0], exact[:, :, 0])
    assert 0 < (rounded - exact).abs().max() < 0.5


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    save_mini_world(tmp_path / "w")
    (tmp_path / "w" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WorldModelError, match="cannot be loaded"):
        CosmosWorld.load(tmp_path / "w")
