"""What the AnyFlow FAR engine promises beyond parity with the stock pipeline: above all, of clips of any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.miniatures.anyflow import mini_anyflow_scheduler, mini_anyflow_transformer, save_mini_anyflow
from tests.miniatures.world_model import TEXT_WIDTH, mini_vae
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.world_model import WorldModel
from theworld.precompute.worlds.anyflow.engine import AnyFlowWorld
from theworld.precompute.worlds.network.compiling import compile_world
from theworld.precompute.worlds.text_embeddings import TextEmbeddings

KEYS = [key_of_bytes(bytes([i])) for i in range(4)]
EMPTY, BALL = torch.randn(2, 1, 512, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


def recipe(**changes: object) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 64, "rollout_steps": 4, "denoise_steps": 2}
    return Recipe(**(fields | changes))


def engine(text: TextEmbeddings | None) -> AnyFlowWorld:
    return AnyFlowWorld(mini_vae(), mini_anyflow_transformer(), mini_anyflow_scheduler(), text=text)


@pytest.fixture(scope="module")
def world() -> AnyFlowWorld:
    return engine(TextEmbeddings.of_rows(EMPTY))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    pixels = torch.randint(0, 256, (4, 3, 32, 64), generator=torch.Generator().manual_seed(1))
    return pixels / 127.5 - 1


def test_a_rollout_begins_with_the_encoding_of_its_image_bit_by_bit(world: AnyFlowWorld, images: torch.Tensor) -> None:
    assert isinstance(world, WorldModel)
    encoded = world.encode(images)
    assert encoded.shape == (4, 16, 1, 4, 8)
    assert torch.equal(world.rollout(images, KEYS, recipe(rollout_steps=0)), encoded)
    rolled = world.rollout(images, KEYS, recipe())
    assert rolled.shape == (4, 16, 5, 4, 8)
    assert rolled.dtype == torch.float32
    assert torch.equal(rolled[:, :, :1], encoded)


def test_a_longer_rollout_begins_with_the_bits_of_a_shorter_one(world: AnyFlowWorld, images: torch.Tensor) -> None:
    """Of any length: a clip that ends within a chunk is cut from the whole one."""
    longest = world.rollout(images[:2], KEYS[:2], recipe(rollout_steps=25))  # beyond the window of 21 frames
    assert longest.shape[2] == 26
    assert longest.isfinite().all()
    for steps in (1, 2, 3, 4, 12, 21):
        shorter = world.rollout(images[:2], KEYS[:2], recipe(rollout_steps=steps))
        assert torch.equal(shorter, longest[:, :, : steps + 1])
    assert torch.equal(world.rollout(images[:2], KEYS[:2], recipe(rollout_steps=5, stride=5)), longest[:, :, ::5])


def test_it_goes_on_from_latents_alone_with_the_bits_of_the_whole(world: AnyFlowWorld, images: torch.Tensor) -> None:
    """Keys and values are a function of the latents, up to the order of sums: nothing else need be kept."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(5, 2, 16, 3, 4, 8, generator=generator)
    first, settings = world.encode(images[:2]), {"denoise_steps": 2, "text": EMPTY}
    whole = world.predict_chunks([first], noise, **settings)
    begun = world.predict_chunks([first], noise[:3], **settings)
    assert all(map(torch.equal, whole[:3], begun))
    resumed = world.predict_chunks([first, *begun], noise[3:], **settings)
    assert len(resumed) == 2
    for ours, theirs in zip(resumed, whole[3:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_what_is_kept_is_two_chunks_and_a_quarter_of_each_before(world: AnyFlowWorld, images: torch.Tensor) -> None:
    network = world.transformer
    memory, past = network.begin(EMPTY), [world.encode(images[:2])]
    numbers = []
    for _ in range(6):
        network.remember(memory, past)
        numbers.append(memory.numbers)
        past.append(torch.randn(2, 16, 3, 4, 8))
    layers, batch, width, tokens, large = 2, 2, 32, 8, 2  # tokens of a frame, in patches of 2x2 and 4x4 cells
    of_a_token = 2 * layers * batch * width
    assert numbers == [
        of_a_token * each
        for each in (tokens, 4 * tokens, 6 * tokens + large, *(6 * tokens + large * far for far in (4, 7, 10)))
    ]


def test_the_past_decides_the_future_and_the_future_not_the_past(world: AnyFlowWorld, images: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(3, 1, 16, 3, 4, 8, generator=generator)
    settings = {"denoise_steps": 2, "text": EMPTY}
    made = world.predict_chunks([world.encode(images[:1])], noise, **settings)
    other_image = world.predict_chunks([world.encode(images[1:2])], noise, **settings)
    assert not any(map(torch.equal, made, other_image))
    other_end = torch.cat([noise[:2], -noise[2:]])
    ended = world.predict_chunks([world.encode(images[:1])], other_end, **settings)
    assert [torch.equal(a, b) for a, b in zip(made, ended, strict=True)] == [True, True, False]
    other_start = torch.cat([-noise[:1], noise[1:]])
    assert not any(map(torch.equal, made, world.predict_chunks([world.encode(images[:1])], other_start, **settings)))


def test_a_latent_depends_on_its_key_and_the_recipe_and_not_on_its_batch(
    world: AnyFlowWorld, images: torch.Tensor
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


def test_text_and_guidance_change_the_future_and_nothing_goes_without_the_empty_prompt(
    world: AnyFlowWorld, images: torch.Tensor
) -> None:
    plain = world.rollout(images[:1], KEYS[:1], recipe())
    prompted = world.with_text(TextEmbeddings.of_rows(BALL, EMPTY))
    told = prompted.rollout(images[:1], KEYS[:1], recipe(prompt="a ball"))
    guided = prompted.rollout(images[:1], KEYS[:1], recipe(prompt="a ball", guidance=3.0))
    for a, b in ((plain, told), (told, guided)):
        assert torch.equal(a[:, :, 0], b[:, :, 0])
        assert not torch.equal(a[:, :, 1:], b[:, :, 1:])
    assert torch.equal(world.rollout(images[:1], KEYS[:1], recipe()), plain)
    with pytest.raises(ConfigError, match="even if empty"):
        engine(None).rollout(images[:1], KEYS[:1], recipe())
    with pytest.raises(ConfigError, match="steers away"):
        world.rollout(images[:1], KEYS[:1], recipe(prompt="a ball", guidance=3.0))


def test_videos_that_fill_whole_chunks_are_gone_on_from(world: AnyFlowWorld, images: torch.Tensor) -> None:
    video = torch.rand(2, 3, 13, 32, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    continuation = recipe(kind="continuation", observed_frames=13, rollout_steps=5)
    rolled = world.rollout(video, KEYS[:2], continuation)
    assert rolled.shape == (2, 16, 6, 4, 8)
    assert torch.equal(rolled[:, :, :4], world.encode_video(video))
    one = world.rollout(images[:1].unsqueeze(2), KEYS[:1], recipe())
    assert torch.equal(one, world.rollout(images[:1], KEYS[:1], recipe()))
    with pytest.raises(ConfigError, match="a multiple of 3 latent frames, not 2"):
        world.rollout(video[:, :, :5], KEYS[:2], continuation)


def test_a_folder_loads_to_the_same_engine_and_bfloat16_touches_the_transformer_alone(
    tmp_path: Path, world: AnyFlowWorld, images: torch.Tensor
) -> None:
    folder = save_mini_anyflow(tmp_path / "anyflow")
    text = TextEmbeddings.of_rows(EMPTY)
    exact = world.rollout(images, KEYS, recipe())
    assert torch.equal(AnyFlowWorld.load(folder, text=text).rollout(images, KEYS, recipe()), exact)
    half = AnyFlowWorld.load(folder, compute_dtype="bfloat16", text=text)
    assert half.dtype == torch.bfloat16
    rounded = half.rollout(images, KEYS, recipe(compute_dtype="bfloat16"))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded[:, :, 0], exact[:, :, 0])
    assert 0 < (rounded - exact).abs().max() < 0.5
    with pytest.raises(ConfigError, match="no blocks to compile"):  # each chunk is a shape of its own
        compile_world(half, "cpu")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WorldModelError, match="cannot be loaded"):
        AnyFlowWorld.load(folder)


def test_real_frames_and_decoded_chunks_are_never_made_by_a_rollout(world: AnyFlowWorld, images: torch.Tensor) -> None:
    for other in (
        Recipe(world="sha256:x", height=32, width=64, kind="frames"),
        recipe(chunk_frames=3, chunk_context=1),
    ):
        with pytest.raises(ConfigError, match="not one rollout"):
            world.rollout(images, KEYS, other)


def test_a_rollout_leaves_the_scheduler_as_it_was(world: AnyFlowWorld, images: torch.Tensor) -> None:
    before = {name: repr(value) for name, value in vars(world.scheduler).items()}
    world.rollout(images[:1], KEYS[:1], recipe())
    assert {name: repr(value) for name, value in vars(world.scheduler).items()} == before
