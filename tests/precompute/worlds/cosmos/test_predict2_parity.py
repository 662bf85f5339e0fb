"""The engine's stock mode against the installed `Cosmos2VideoToWorldPipeline`: the same draws, the same latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import Cosmos2VideoToWorldPipeline
from diffusers.models.transformers import transformer_cosmos

from tests.miniatures.world_model import TEXT_WIDTH, mini_scheduler, mini_transformer, mini_vae
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.cosmos.solvers import sigma_schedule


class _NoChecker:
    """The pipeline insists on a safety checker object; nothing here has text or decoded frames to check."""

    def to(self, *_: object) -> None: ...


class _NearestResize:
    """torchvision's nearest resize, which the stock transformer applies to its padding mask; there is no CPU wheel."""

    class InterpolationMode:
        NEAREST = "nearest"

    class functional:  # noqa: N801
        @staticmethod
        def resize(mask: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
            return torch.nn.functional.interpolate(mask, size=size, mode=interpolation)


def stock_latents(
    images: torch.Tensor,
    seeds: list[int],
    *,
    rollout_steps: int,
    denoise_steps: int,
    guidance: float,
    text: torch.Tensor,
    negative: torch.Tensor,
    fps: float | None = None,
    padding_mask: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    pipeline = Cosmos2VideoToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=mini_transformer(padding_mask=padding_mask).to(dtype),
        vae=mini_vae(),
        scheduler=mini_scheduler(),
        safety_checker=_NoChecker(),
    )
    pipeline.set_progress_bar_config(disable=True)
    batch, height, width = len(images), *images.shape[-2:]
    return pipeline(
        **({"video": ((images + 1) / 2).transpose(1, 2)} if images.ndim == 5 else {"image": (images + 1) / 2}),
        height=height,
        width=width,
        num_frames=1 + 4 * rollout_steps,
        num_inference_steps=denoise_steps,
        guidance_scale=guidance,
        fps=fps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        prompt_embeds=text.to(dtype).expand(batch, -1, -1),
        negative_prompt_embeds=negative.to(dtype).expand(batch, -1, -1),
        output_type="latent",
    ).frames


CASES = [
    # height, width, steps, denoise, guidance, batch, fps
    (32, 32, 1, 5, 1.0, 1, None),
    (64, 32, 2, 3, 1.0, 2, None),
    (32, 48, 4, 6, 1.0, 3, None),
    (32, 32, 2, 4, 3.0, 1, None),
    (48, 32, 1, 5, 7.0, 2, 16.0),
    (64, 64, 8, 10, 1.0, 2, None),
    (64, 64, 4, 10, 4.0, 4, 10.0),
]


@pytest.mark.parametrize(("height", "width", "steps", "denoise", "guidance", "batch", "fps"), CASES)
def test_stock_mode_equals_the_installed_pipeline(
    height: int, width: int, steps: int, denoise: int, guidance: float, batch: int, fps: float | None
) -> None:
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    text = torch.randn(1, 12, TEXT_WIDTH, generator=generator)
    negative = torch.randn(1, 12, TEXT_WIDTH, generator=generator)
    settings = {"rollout_steps": steps, "denoise_steps": denoise, "guidance": guidance, "fps": fps}
    seeds = list(range(batch))
    stock = stock_latents(images, seeds, text=text, negative=negative, **settings)
    world = CosmosWorld(mini_vae(), mini_transformer())
    ours = world.stock_rollout(
        images, [torch.Generator().manual_seed(s) for s in seeds], text=text, negative_text=negative, **settings
    )
    assert ours.shape == stock.shape == (batch, 16, 1 + steps, height // 8, width // 8)
    assert (ours - stock).abs().max().item() <= 1e-5


@pytest.mark.parametrize(("frames", "guidance"), [(5, 1.0), (9, 3.0)])
def test_stock_mode_shown_the_first_frames_of_videos_equals_the_pipeline(frames: int, guidance: float) -> None:
    generator = torch.Generator().manual_seed(8)
    videos = torch.rand(2, 3, frames, 32, 48, generator=generator) * 2 - 1
    text = torch.randn(1, 12, TEXT_WIDTH, generator=generator)
    settings = {"rollout_steps": 3, "denoise_steps": 5, "guidance": guidance}
    stock = stock_latents(videos, [5, 6], text=text, negative=text * 0.5, **settings)
    ours = CosmosWorld(mini_vae(), mini_transformer()).stock_rollout(
        videos, [torch.Generator().manual_seed(s) for s in (5, 6)], text=text, negative_text=text * 0.5, **settings
    )
    assert (ours - stock).abs().max().item() <= 1e-5


def test_no_text_equals_zero_embeddings_in_the_pipeline() -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    zeros = torch.zeros(1, 512, TEXT_WIDTH)
    settings = {"rollout_steps": 2, "denoise_steps": 6, "guidance": 1.0}
    stock = stock_latents(images, [3, 4], text=zeros, negative=zeros, **settings)
    ours = CosmosWorld(mini_vae(), mini_transformer()).stock_rollout(
        images, [torch.Generator().manual_seed(s) for s in (3, 4)], **settings
    )
    assert (ours - stock).abs().max().item() <= 1e-5


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_in_bfloat16_the_bits_are_the_pipeline_s(guidance: float) -> None:
    generator = torch.Generator().manual_seed(9)
    images = torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1
    text, zeros = torch.randn(1, 12, TEXT_WIDTH, generator=generator), torch.zeros(1, 512, TEXT_WIDTH)
    settings = {"rollout_steps": 2, "denoise_steps": 6, "guidance": guidance}
    given = text if guidance > 1 else zeros
    stock = stock_latents(images, [3], text=given, negative=zeros, dtype=torch.bfloat16, **settings)
    world = CosmosWorld(mini_vae(), mini_transformer().to(torch.bfloat16))
    draws = [torch.Generator().manual_seed(3)]
    assert torch.equal(world.stock_rollout(images, draws, text=text if guidance > 1 else None, **settings), stock)


def test_the_padding_mask_of_released_checkpoints_needs_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_cosmos, "transforms", _NearestResize, raising=False)
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    text = torch.randn(1, 4, TEXT_WIDTH)
    settings = {"rollout_steps": 2, "denoise_steps": 5, "guidance": 2.0}
    stock = stock_latents(images, [1], text=text, negative=text * 0.5, padding_mask=True, **settings)
    monkeypatch.undo()
    world = CosmosWorld(mini_vae(), mini_transformer(padding_mask=True))
    ours = world.stock_rollout(
        images, [torch.Generator().manual_seed(1)], text=text, negative_text=text * 0.5, **settings
    )
    assert (ours - stock).abs().max().item() <= 1e-5


def test_the_noise_levels_are_those_of_the_pipeline_and_frozen() -> None:
    # a wrong schedule is the classic error of ports (NVlabs/FastGen#18)
    scheduler = mini_scheduler()
    scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, 10, dtype=torch.float64))
    scheduler.sigmas[-1] = scheduler.sigmas[-2]
    assert torch.equal(sigma_schedule(10), scheduler.sigmas)
    frozen = [80.0, 42.4152, 21.1087, 9.7232, 4.06612, 1.50174, 0.469979, 0.116639, 0.0204353, 0.002, 0.002]
    torch.testing.assert_close(sigma_schedule(10), torch.tensor(frozen), atol=0, rtol=1e-5)
