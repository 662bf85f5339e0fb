"""What the Wan 2.1 engine promises beyond parity with the stock pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.miniatures.world_model import (
    TEXT_WIDTH,
    mini_clip,
    mini_transformer,
    mini_vae,
    mini_wan_scheduler,
    mini_wan_transformer,
    save_mini_wan,
)
from theworld.pipeline.errors import ConfigError, LatentShapeError, WorldModelError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.world_model import WorldModel
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.precompute.worlds.wan.wan21 import Wan21World

KEYS = [key_of_bytes(bytes([i])) for i in range(4)]
EMPTY, BALL = torch.randn(2, 1, 512, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


def recipe(**changes: object) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 48, "rollout_steps": 2, "denoise_steps": 4}
    return Recipe(**(fields | changes))


def engine(text: TextEmbeddings | None) -> Wan21World:
    return Wan21World(mini_vae(), mini_wan_transformer(), mini_wan_scheduler(), *mini_clip(), text=text)


@pytest.fixture(scope="module")
def world() -> Wan21World:
    return engine(TextEmbeddings.of_rows(EMPTY))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    pixels = torch.randint(0, 256, (4, 3, 32, 48), generator=torch.Generator().manual_seed(1))
    return pixels / 127.5 - 1


def test_it_is_a_world_model_in_the_latent_space_of_cosmos(world: Wan21World, images: torch.Tensor) -> None:
    assert isinstance(world, WorldModel)
    videos = images[:1].unsqueeze(2).repeat(1, 1, 9, 1, 1)
    cosmos = CosmosWorld(mini_vae(), mini_transformer())
    assert world.spec == cosmos.spec
    assert torch.equal(world.encode_video(videos), cosmos.encode_video(videos))
    with pytest.raises(LatentShapeError, match="multiple of 4"):
        world.encode_video(videos[:, :, :8])


def test_a_rollout_begins_with_the_encoding_of_its_image_bit_by_bit(world: Wan21World, images: torch.Tensor) -> None:
    encoded = world.encode(images)
    assert encoded.shape == (4, 16, 1, 4, 6)
    assert torch.equal(world.rollout(images, KEYS, recipe(rollout_steps=0)), encoded)
    rolled = world.rollout(images, KEYS, recipe())
    assert rolled.shape == (4, 16, 3, 4, 6)
    assert torch.equal(rolled[:, :, :1], encoded)


def test_a_latent_depends_on_its_key_and_the_recipe_and_not_on_its_batch(
    world: Wan21World, images: torch.Tensor
) -> None:
    order = [3, 0, 1, 2]
    straight = world.rollout(images, KEYS, recipe())
    permuted = world.rollout(images[order], [KEYS[i] for i in order], recipe())
    assert torch.equal(permuted, straight[order])
    alone = world.rollout(images[2:3], KEYS[2:3], recipe())
    assert (straight[2:3] - alone).abs().max().item() <= 1e-5
    for changes in ({"seed": 1}, {"draw": 1}):
        other = world.rollout(images[:1], KEYS[:1], recipe(**changes))
        assert not torch.equal(other[:, :, 1:], straight[:1, :, 1:])
    assert not torch.equal(world.rollout(images[:1], KEYS[1:2], recipe())[:, :, 1:], straight[:1, :, 1:])


def test_stride_keeps_every_nth_frame_of_the_longer_clip(world: Wan21World, images: torch.Tensor) -> None:
    long = world.rollout(images[:1], KEYS[:1], recipe(rollout_steps=4))
    assert torch.equal(world.rollout(images[:1], KEYS[:1], recipe(stride=2)), long[:, :, ::2])


def test_the_image_reaches_the_future_by_the_mask_the_vae_and_clip(world: Wan21World, images: torch.Tensor) -> None:
    condition = world.condition(images[:1], 2)
    assert condition.shape == (1, 4 + 16, 3, 4, 6)
    assert condition[:, :4].sum((0, 1, 3, 4)).tolist() == [4 * 24, 0, 0]
    noise = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    settings = {"denoise_steps": 3, "text": EMPTY}
    rolled = world.denoise(images[:1], condition, noise, **settings)
    other_look = world.denoise(images[1:2], condition, noise, **settings)
    other_clip = world.denoise(images[:1], world.condition(images[1:2], 2), noise, **settings)
    assert not torch.equal(other_look, rolled)
    assert not torch.equal(other_clip, rolled)


def test_text_and_guidance_change_the_future_and_nothing_goes_without_the_empty_prompt(
    world: Wan21World, images: torch.Tensor
) -> None:
    plain = world.rollout(images[:1], KEYS[:1], recipe())
    prompted = engine(TextEmbeddings.of_rows(BALL, EMPTY))
    told = prompted.rollout(images[:1], KEYS[:1], recipe(prompt="a ball"))
    guided = prompted.rollout(images[:1], KEYS[:1], recipe(prompt="a ball", guidance=3.0))
    for a, b in ((plain, told), (told, guided)):
        assert torch.equal(a[:, :, 0], b[:, :, 0])
        assert not torch.equal(a[:, :, 1:], b[:, :, 1:])
    with pytest.raises(ConfigError, match="even if empty"):
        engine(None).rollout(images[:1], KEYS[:1], recipe())
    with pytest.raises(ConfigError, match="steers away"):
        world.rollout(images[:1], KEYS[:1], recipe(prompt="a ball", guidance=3.0))


def test_real_frames_are_never_made_up_by_a_rollout(world: Wan21World, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="frames"):
        world.rollout(images, KEYS, Recipe(world="sha256:x", height=32, width=48, kind="frames"))


def test_a_folder_loads_to_the_same_engine_and_bfloat16_touches_the_transformer_alone(
    tmp_path: Path, world: Wan21World, images: torch.Tensor
) -> None:
    folder = save_mini_wan(tmp_path / "wan")
    text = TextEmbeddings.of_rows(EMPTY)
    exact = world.rollout(images, KEYS, recipe())
    assert torch.equal(Wan21World.load(folder, text=text).rollout(images, KEYS, recipe()), exact)
    half = Wan21World.load(folder, compute_dtype="bfloat16", text=text)
    assert half.dtype == torch.bfloat16
    assert half.vae.dtype == half.image_encoder.dtype == torch.float32
    rounded = half.rollout(images, KEYS, recipe(compute_dtype="bfloat16"))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded[:, :, 0], exact[:, :, 0])
    assert 0 < (rounded - exact).abs().max() < 0.5
    (folder / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(WorldModelError, match="cannot be loaded"):
        Wan21World.load(folder)


def test_decoding_gives_four_frames_for_each_latent_after_the_first(world: Wan21World, images: torch.Tensor) -> None:
    video = world.decode(world.rollout(images[:2], KEYS[:2], recipe()))
    assert video.shape == (2, 3, 9, 32, 48)
    assert video.abs().max() <= 1


def test_a_video_of_one_frame_is_its_image_and_longer_ones_are_refused(world: Wan21World, images: torch.Tensor) -> None:
    rolled = world.rollout(images[:1], KEYS[:1], recipe())
    assert torch.equal(world.rollout(images[:1].unsqueeze(2), KEYS[:1], recipe()), rolled)
    with pytest.raises(ConfigError, match="one frame, not 5"):
        world.rollout(images[:1].unsqueeze(2).repeat(1, 1, 5, 1, 1), KEYS[:1], recipe())


def test_other_prompts_are_followed_by_a_copy_and_leave_the_world_as_it_is(
    world: Wan21World, images: torch.Tensor
) -> None:
    before = world.rollout(images[:1], KEYS[:1], recipe())
    other = world.with_text(TextEmbeddings.of_rows(BALL)).rollout(images[:1], KEYS[:1], recipe())
    assert not torch.equal(other, before)
    assert torch.equal(other, engine(TextEmbeddings.of_rows(BALL)).rollout(images[:1], KEYS[:1], recipe()))
    assert torch.equal(world.rollout(images[:1], KEYS[:1], recipe()), before)


def test_a_rollout_leaves_the_scheduler_as_it_was(images: torch.Tensor) -> None:
    world = engine(TextEmbeddings.of_rows(EMPTY))
    before = {name: repr(value) for name, value in vars(world.scheduler).items()}
    world.rollout(images[:1], KEYS[:1], recipe())
    assert {name: repr(value) for name, value in vars(world.scheduler).items()} == before
