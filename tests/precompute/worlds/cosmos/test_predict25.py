"""What the Cosmos-Predict2.5 engine promises beyond parity with the stock pipeline, alone and in a whole job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.miniatures.cosmos25 import add_qwen, mini_transformer25, mini_unipc, save_mini_world25
from tests.miniatures.world_model import TEXT_WIDTH, mini_transformer, mini_vae
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.latents.keys import key_of_bytes, key_of_file
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.job.run import run_precompute
from theworld.precompute.media.images import load_image
from theworld.precompute.worlds.arithmetic import cosmos_forward_flops
from theworld.precompute.worlds.cosmos.predict25 import Cosmos25World
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.source import resolve_world
from theworld.precompute.worlds.text_embeddings import TextEmbeddings

KEYS = [key_of_bytes(bytes([i])) for i in range(4)]
BALL, BLUR = torch.randn(2, 1, 512, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


def recipe(**changes: object) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 48, "rollout_steps": 2, "denoise_steps": 4}
    return Recipe(**(fields | changes))


def engine(text: TextEmbeddings | None = None) -> Cosmos25World:
    return Cosmos25World(mini_vae(), mini_transformer25(), mini_unipc(), text=text)


@pytest.fixture(scope="module")
def world() -> Cosmos25World:
    return engine()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_frame_zero_is_the_encoding_and_neither_order_nor_a_second_try_changes_a_future(
    world: Cosmos25World, images: torch.Tensor
) -> None:
    made = world.rollout(images, KEYS, recipe())
    assert made.shape == (4, 16, 3, 4, 6)
    assert torch.equal(made[:, :, :1], world.encode(images))
    assert torch.equal(world.rollout(images, KEYS, recipe(rollout_steps=0)), made[:, :, :1])
    assert torch.equal(world.rollout(images.flip(0), KEYS[::-1], recipe()), made.flip(0))
    alone = world.rollout(images[1:2], KEYS[1:2], recipe())
    assert (alone - made[1:2]).abs().max().item() <= 1e-5
    assert not torch.equal(world.rollout(images, KEYS, recipe(seed=1)), made)


def test_the_first_frames_of_a_video_stay_as_they_are_encoded(world: Cosmos25World) -> None:
    video = torch.rand(2, 3, 5, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    made = world.rollout(video, KEYS[:2], recipe(kind="continuation", observed_frames=5, rollout_steps=3))
    assert torch.equal(made[:, :, :2], world.encode_video(video))


def test_prompts_and_what_guidance_steers_away_from_change_the_future(
    world: Cosmos25World, images: torch.Tensor
) -> None:
    plain = world.rollout(images[:2], KEYS[:2], recipe())
    prompted = engine(TextEmbeddings.of_rows(BALL)).rollout(images[:2], KEYS[:2], recipe(prompt="a ball"))
    asked = recipe(prompt="a ball", guidance=3.0)
    steered = engine(TextEmbeddings.of_rows(BALL)).rollout(images[:2], KEYS[:2], asked)
    away = engine(TextEmbeddings.of_rows(BALL, BLUR)).rollout(images[:2], KEYS[:2], asked)
    futures = [latents[:, :, 1:] for latents in (plain, prompted, steered, away)]
    assert all(not torch.allclose(a, b) for n, a in enumerate(futures) for b in futures[:n])
    both = world.with_text(TextEmbeddings.of_rows(torch.cat([BALL, BLUR])))
    each = both.rollout(images[:2], KEYS[:2], recipe(prompts="sample"))
    assert (each[:1] - prompted[:1]).abs().max().item() <= 1e-5
    assert not torch.allclose(each[1:], prompted[1:])
    with pytest.raises(ConfigError, match="without its embeddings"):
        world.rollout(images, KEYS, recipe(prompt="a ball"))


def test_a_network_of_predict2_is_refused_by_name() -> None:
    with pytest.raises(WorldModelError, match=r"Cosmos-Predict2 transformer.*Cosmos-Predict2\.5"):
        Cosmos25World(mini_vae(), mini_transformer(), mini_unipc())


def test_the_projection_of_text_is_not_held(world: Cosmos25World) -> None:
    stock = sum(parameter.numel() for parameter in mini_transformer25().parameters())
    projection = sum(parameter.numel() for parameter in mini_transformer25().crossattn_proj.parameters())
    held = sum(parameter.numel() for parameter in world.transformer.parameters())
    assert held == stock - projection


def test_a_job_rolls_out_without_text_and_with_prompts(tmp_path: Path) -> None:
    folder = add_qwen(save_mini_world25(tmp_path / "mini25"))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    settings = {"images": tmp_path / "x.png", "cache": tmp_path / "cache", "world": str(folder), "steps": 2}
    settings |= {"size": "32x48", "denoise_steps": 3, "compute_dtype": "float32", "in_process": True, "batch_size": 1}
    report = run_precompute(PrecomputeConfig(**settings))
    assert (report.written, report.bad) == (1, 0)
    assert report.cost is not None
    assert report.cost.operations is not None
    plain = open_store(report.store)
    key = key_of_file(tmp_path / "x.png")
    pixels = load_image((tmp_path / "x.png").read_bytes(), 32, 48, "cover", source="")[None]
    expected = load_world(folder).rollout(pixels, [key], plain.recipe)
    np.testing.assert_allclose(plain.read([key]), expected.numpy(), atol=4e-3, rtol=2e-3)
    with pytest.raises(ConfigError, match="a prompt needs a guardrail"):
        run_precompute(PrecomputeConfig(**settings, prompt="a ball falls"))
    asked = PrecomputeConfig(**settings, prompt="a ball falls", guardrail="external")
    prompted = open_store(run_precompute(asked).store)
    assert not np.array_equal(prompted.read([key])[:, :, 1], plain.read([key])[:, :, 1])
    assert run_precompute(asked).written == 0


def test_a_plan_counts_as_many_forwards_as_denoise_steps(tmp_path: Path) -> None:
    source = resolve_world(str(save_mini_world25(tmp_path / "world")))
    config = dict(mini_transformer25().config)
    plan = operations_of(source, recipe(rollout_steps=8, denoise_steps=3))
    assert plan is not None
    assert plan.predict == 3 * cosmos_forward_flops(config, 9, 4, 6, 1)  # no text is one row
    guided = operations_of(source, recipe(rollout_steps=8, denoise_steps=3, prompt="a", guidance=2.0))
    assert guided is not None
    assert guided.predict == plan.predict + 3 * cosmos_forward_flops(config, 9, 4, 6, 512)
