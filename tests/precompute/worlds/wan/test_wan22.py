"""What the engines of Wan 2.2 and its autoencoder promise beyond parity with the stock pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.miniatures.wan22 import mini_wan22_vae, save_mini_ti2v, save_mini_two_stage
from tests.miniatures.world_model import TEXT_WIDTH
from theworld.pipeline.errors import ConfigError, LatentShapeError, WorldModelError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.world_model import WorldModel
from theworld.precompute.worlds.network import encode_slices
from theworld.precompute.worlds.network.taking_turns import TakingTurns
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.precompute.worlds.wan.engine import WanWorld
from theworld.precompute.worlds.wan.vae import WanLatents
from theworld.precompute.worlds.wan.wan22 import WanTI2VWorld, WanTwoStageWorld

KEYS = [key_of_bytes(bytes([i])) for i in range(4)]
EMPTY, BALL = torch.randn(2, 1, 512, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


def recipe(**changes: object) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 64, "rollout_steps": 2, "denoise_steps": 4}
    return Recipe(**(fields | changes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wan22")
    return {"ti2v": save_mini_ti2v(root / "ti2v"), "two-stage": save_mini_two_stage(root / "two-stage")}


def load(folders: dict[str, Path], model: str, text: TextEmbeddings | None, dtype: str = "float32") -> WanWorld:
    kind = {"ti2v": WanTI2VWorld, "two-stage": WanTwoStageWorld}[model]
    return kind.load(folders[model], compute_dtype=dtype, text=text)


@pytest.fixture(scope="module", params=["ti2v", "two-stage"])
def world(request: pytest.FixtureRequest, folders: dict[str, Path]) -> WanWorld:
    return load(folders, request.param, TextEmbeddings.of_rows(EMPTY))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    pixels = torch.randint(0, 256, (4, 3, 32, 64), generator=torch.Generator().manual_seed(1))
    return pixels / 127.5 - 1


@pytest.fixture(scope="module")
def vae() -> WanLatents:
    return WanLatents(mini_wan22_vae())


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(5, 3, 9, 64, 64, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)


def test_the_first_frame_of_a_clip_is_encoded_as_if_it_were_alone_bit_by_bit(
    vae: WanLatents, clips: torch.Tensor
) -> None:
    whole = vae.encode_video(clips)
    assert whole.shape == (5, *vae.spec.sample_shape(64, 64, 2)) == (5, 48, 3, 4, 4)
    assert torch.equal(vae.encode(clips[:, :, 0]), whole[:, :, :1])
    assert torch.equal(vae.encode_video(clips[:, :, :5]), whole[:, :, :2])
    with pytest.raises(LatentShapeError, match="multiple of 4"):
        vae.encode_video(clips[:, :, :8])


def test_its_clips_are_encoded_in_slices_to_the_same_bits(
    vae: WanLatents, clips: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vae.encode_video(clips)
    monkeypatch.setattr(encode_slices, "ENCODE_PIXELS", 1)
    assert torch.equal(vae.encode_video(clips), whole)


def test_decoding_gives_sixteen_pixels_a_cell_and_four_frames_a_latent_after_the_first(
    vae: WanLatents, clips: torch.Tensor
) -> None:
    latents = vae.encode_video(clips[:2])
    video = vae.decode(latents)
    assert video.shape == (2, 3, 9, 64, 64)
    assert video.abs().max() <= 1
    assert torch.equal(vae.decode(latents[:, :, :2]), video[:, :, :5])
    mean, _ = vae.posterior(clips[:2, :, 0]).unbind(2)
    assert torch.equal(mean, latents[:, :, 0])


def test_a_rollout_begins_with_the_encoding_of_its_image_bit_by_bit(world: WanWorld, images: torch.Tensor) -> None:
    assert isinstance(world, WorldModel)
    encoded = world.encode(images)
    assert torch.equal(world.rollout(images, KEYS, recipe(rollout_steps=0)), encoded)
    rolled = world.rollout(images, KEYS, recipe())
    assert rolled.shape == (4, *world.spec.sample_shape(32, 64, 2))
    assert torch.equal(rolled[:, :, :1], encoded)


def test_a_latent_depends_on_its_key_and_the_recipe_and_not_on_its_batch(world: WanWorld, images: torch.Tensor) -> None:
    order = [3, 0, 1, 2]
    straight = world.rollout(images, KEYS, recipe())
    assert torch.equal(world.rollout(images[order], [KEYS[i] for i in order], recipe()), straight[order])
    alone = world.rollout(images[2:3], KEYS[2:3], recipe())
    assert (straight[2:3] - alone).abs().max().item() <= 1e-5
    for changes in ({"seed": 1}, {"draw": 1}):
        other = world.rollout(images[:1], KEYS[:1], recipe(**changes))
        assert not torch.equal(other[:, :, 1:], straight[:1, :, 1:])
    assert not torch.equal(world.rollout(images[:1], KEYS[1:2], recipe())[:, :, 1:], straight[:1, :, 1:])


def test_stride_keeps_every_nth_frame_of_the_longer_clip(world: WanWorld, images: torch.Tensor) -> None:
    long = world.rollout(images[:1], KEYS[:1], recipe(rollout_steps=4))
    assert torch.equal(world.rollout(images[:1], KEYS[:1], recipe(stride=2)), long[:, :, ::2])


@pytest.mark.parametrize("model", ["ti2v", "two-stage"])
def test_text_and_guidance_change_the_future_and_nothing_goes_without_the_empty_prompt(
    folders: dict[str, Path], model: str, images: torch.Tensor
) -> None:
    prompted = load(folders, model, TextEmbeddings.of_rows(BALL, EMPTY))
    told = prompted.rollout(images[:1], KEYS[:1], recipe(prompt="a ball"))
    guided = prompted.rollout(images[:1], KEYS[:1], recipe(prompt="a ball", guidance=3.0))
    plain = prompted.with_text(TextEmbeddings.of_rows(EMPTY)).rollout(images[:1], KEYS[:1], recipe())
    for a, b in ((plain, told), (told, guided)):
        assert torch.equal(a[:, :, 0], b[:, :, 0])
        assert not torch.equal(a[:, :, 1:], b[:, :, 1:])
    with pytest.raises(ConfigError, match=r"Wan 2\.2 .* even if empty"):
        load(folders, model, None).rollout(images[:1], KEYS[:1], recipe())
    with pytest.raises(ConfigError, match=r"Wan 2\.2 .* one frame, not 5"):
        prompted.rollout(images[:1].unsqueeze(2).repeat(1, 1, 5, 1, 1), KEYS[:1], recipe())


@pytest.mark.parametrize("model", ["ti2v", "two-stage"])
def test_bfloat16_touches_the_transformers_alone(folders: dict[str, Path], model: str, images: torch.Tensor) -> None:
    text = TextEmbeddings.of_rows(EMPTY)
    half = load(folders, model, text, "bfloat16")
    assert (half.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)
    exact = load(folders, model, text).rollout(images, KEYS, recipe())
    rounded = half.rollout(images, KEYS, recipe(compute_dtype="bfloat16"))
    assert torch.equal(rounded[:, :, 0], exact[:, :, 0])
    assert 0 < (rounded - exact).abs().max() < 0.5


def test_a_second_transformer_that_is_missing_is_said(tmp_path: Path) -> None:
    folder = save_mini_two_stage(tmp_path / "world")
    (folder / "transformer_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WorldModelError, match="transformer_2"):
        WanTwoStageWorld.load(folder)


def test_of_networks_that_take_turns_one_is_on_the_device_and_all_keep_their_weights() -> None:
    networks = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    before = [network.weight.clone() for network in networks]
    device = torch.device("meta")  # a device that loses what is only there
    turns = TakingTurns(networks, device)
    for place in (0, 1, 1, 0):
        turns.take(networks[place])
        away = networks[1 - place].weight
        assert networks[place].weight.device == device
        assert torch.equal(away, before[1 - place])
