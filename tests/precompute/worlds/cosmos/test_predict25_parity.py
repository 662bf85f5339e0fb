"""The engine's stock mode against the installed `Cosmos2_5_PredictBasePipeline`: the same draws, the same latents."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Cosmos2_5_PredictBasePipeline
from diffusers.models.transformers import transformer_cosmos
from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tests.miniatures.cosmos25 import RAW_WIDTH, add_qwen, mini_transformer25, mini_unipc, save_mini_world25
from tests.miniatures.world_model import TEXT_WIDTH, mini_vae
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.cosmos.predict25 import Cosmos25World
from theworld.precompute.worlds.cosmos.predict25_text import load_projection
from theworld.precompute.worlds.prompts import embed_prompts
from theworld.precompute.worlds.text_rows import stack_prompts

TEXT = BUILT_IN["cosmos-predict2.5"].text


class _NoChecker:
    """The pipeline insists on a safety checker object; nothing here has text or decoded frames to check."""

    def to(self, *_: object) -> None: ...


class _Nearest:
    """torchvision's nearest resize, which the stock transformer applies to its padding mask; there is no CPU wheel."""

    class InterpolationMode:
        NEAREST = "nearest"

    class functional:  # noqa: N801
        @staticmethod
        def resize(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
            return torch.nn.functional.interpolate(mask, size=size, mode=interpolation)


@pytest.fixture(autouse=True)
def _without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_is = SimpleNamespace(functional=SimpleNamespace(to_tensor=lambda image: image))
    stand_in = SimpleNamespace(transforms=as_it_is)
    monkeypatch.setattr(pipeline_cosmos2_5_predict, "torchvision", stand_in, raising=False)
    monkeypatch.setattr(transformer_cosmos, "transforms", _Nearest, raising=False)


def stock(*, padding_mask: bool = False, dtype: torch.dtype = torch.float32, **parts: Any) -> Any:
    pipeline = Cosmos2_5_PredictBasePipeline(
        text_encoder=parts.get("text_encoder"),
        tokenizer=parts.get("tokenizer"),
        transformer=mini_transformer25(padding_mask=padding_mask).to(dtype),
        vae=mini_vae(),
        scheduler=mini_unipc(),
        safety_checker=_NoChecker(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(
    pipeline: Any, seen: Tensor, seed: int, *, steps: int, denoise: int, guidance: float, text: Tensor, negative: Tensor
) -> Tensor:
    """Of one input: the pipeline takes no more."""
    dtype = pipeline.transformer.dtype
    shown = {"image": (seen[0] + 1) / 2} if seen.ndim == 4 else {"image": None, "video": seen}
    return pipeline(
        **shown,
        height=seen.shape[-2],
        width=seen.shape[-1],
        num_frames=1 + 4 * steps,
        num_inference_steps=denoise,
        guidance_scale=guidance,
        num_latent_conditional_frames=1 + (seen.shape[2] - 1) // 4 if seen.ndim == 5 else 1,
        generator=torch.Generator().manual_seed(seed),
        prompt_embeds=text.to(dtype),
        negative_prompt_embeds=negative.to(dtype),
        output_type="latent",
    ).frames


def projected(raw: Tensor, *, padding_mask: bool = False) -> Tensor:
    with torch.inference_mode():
        return mini_transformer25(padding_mask=padding_mask).crossattn_proj(raw)


CASES = [
    # height, width, steps, denoise, guidance, padding mask
    (32, 32, 1, 2, 1.0, False),
    (64, 32, 2, 3, 1.0, True),
    (32, 48, 4, 6, 1.0, False),
    (32, 32, 2, 4, 3.0, False),
    (48, 32, 1, 5, 7.0, True),
    (64, 64, 8, 10, 1.0, False),
    (64, 64, 4, 10, 4.0, True),
    (32, 32, 2, 36, 1.0, False),
]


@pytest.mark.parametrize(("height", "width", "steps", "denoise", "guidance", "padding_mask"), CASES)
def test_stock_mode_equals_the_installed_pipeline(
    height: int, width: int, steps: int, denoise: int, guidance: float, padding_mask: bool
) -> None:
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    text, negative = torch.randn(2, 1, 12, RAW_WIDTH, generator=generator)
    pipeline = stock(padding_mask=padding_mask)
    given = {"steps": steps, "denoise": denoise, "guidance": guidance, "text": text, "negative": negative}
    theirs = torch.cat([stock_latents(pipeline, images[n : n + 1], n, **given) for n in range(2)])
    ours = Cosmos25World(mini_vae(), mini_transformer25(padding_mask=padding_mask), mini_unipc()).stock_rollout(
        images,  # in one batch
        [torch.Generator().manual_seed(n) for n in range(2)],
        rollout_steps=steps,
        denoise_steps=denoise,
        guidance=guidance,
        text=projected(text, padding_mask=padding_mask),
        negative_text=projected(negative, padding_mask=padding_mask),
    )
    assert ours.shape == theirs.shape == (2, 16, 1 + steps, height // 8, width // 8)
    assert (ours - theirs).abs().max().item() <= 1e-5


@pytest.mark.parametrize("frames", [1, 5])
def test_shown_the_first_frames_of_a_video_it_equals_the_pipeline(frames: int) -> None:
    generator = torch.Generator().manual_seed(8)
    video = torch.rand(1, 3, frames, 32, 48, generator=generator) * 2 - 1
    text = torch.randn(1, 12, RAW_WIDTH, generator=generator)
    theirs = stock_latents(stock(), video, 5, steps=3, denoise=5, guidance=3.0, text=text, negative=text * 0.5)
    ours = Cosmos25World(mini_vae(), mini_transformer25(), mini_unipc()).stock_rollout(
        video,
        [torch.Generator().manual_seed(5)],
        rollout_steps=3,
        denoise_steps=5,
        guidance=3.0,
        text=projected(text),
        negative_text=projected(text * 0.5),
    )
    assert (ours - theirs).abs().max().item() <= 1e-5


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-4)])
def test_no_text_is_the_pipeline_s_with_embeddings_of_zeros(dtype: torch.dtype, apart: float) -> None:
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(9)) * 2 - 1
    zeros = torch.zeros(1, 512, RAW_WIDTH)
    given = {"steps": 2, "denoise": 6, "guidance": 1.0, "text": zeros, "negative": zeros}
    theirs = stock_latents(stock(dtype=dtype), image, 3, **given)
    world = Cosmos25World(mini_vae(), mini_transformer25().to(dtype), mini_unipc())
    assert world.no_text.shape == (1, 1, TEXT_WIDTH)
    ours = world.stock_rollout(image, [torch.Generator().manual_seed(3)], rollout_steps=2, denoise_steps=6)
    assert (ours - theirs).abs().max().item() <= apart


def test_the_noise_levels_are_those_of_the_pipeline_and_frozen() -> None:
    # a wrong schedule is the classic error of ports (NVlabs/FastGen#18)
    solver = Cosmos25World(mini_vae(), mini_transformer25(), mini_unipc()).solver(10)
    frozen = [0.995025, 0.990836, 0.982171, 0.963125, 0.918879, 0.814327, 0.593979, 0.284485, 0.074173, 0.009901, 0.0]
    torch.testing.assert_close(solver.sigmas, torch.tensor(frozen), atol=1e-6, rtol=0)
    ramp = torch.linspace(200 ** (1 / 7), 0.01 ** (1 / 7), 10, dtype=torch.float64) ** 7  # Karras et al. 2022, eq. 5
    torch.testing.assert_close(solver.sigmas[:-1], (ramp / (ramp + 1)).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_prompt_is_read_and_projected_as_the_pipeline_does(tmp_path: Path, padding_side: str) -> None:
    folder = add_qwen(save_mini_world25(tmp_path / "world"), padding_side=padding_side)
    settings = {"prompt": "a ball falls", "negative_prompt": "blur", "guidance": 3.0}
    recipe = Recipe(world="sha256:x", height=32, width=32, rollout_steps=2, **settings)
    text = embed_prompts(folder, recipe, TEXT)
    assert text is not None
    assert TEXT is not None
    ours, negative = stack_prompts(text)
    pipeline = stock(
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )
    with torch.inference_mode():
        raw = pipeline._get_prompt_embeds(["a ball falls", "blur"], device="cpu", dtype=torch.float32)
        theirs = pipeline.transformer.crossattn_proj(raw)
    for part, expected in zip((ours, negative), theirs, strict=True):
        assert part is not None
        assert part.shape == (1, 512, TEXT_WIDTH)
        assert (part[0] - expected).abs().max().item() <= 1e-5
    # what a store keeps of it is the projection alone, and no more than was planned
    assert len(text.to_bytes()) < 2 * (512 * TEXT_WIDTH * 4 + 1000)
    with pytest.raises(ConfigError, match="tokens; the world model reads 512"):
        embed_prompts(folder, recipe.model_copy(update={"prompt": "ball " * 600}), TEXT)


def test_a_text_encoder_of_another_width_and_one_without_a_template_are_refused(tmp_path: Path) -> None:
    folder = add_qwen(save_mini_world25(tmp_path / "world"))
    recipe = Recipe(world="sha256:x", height=32, width=32, rollout_steps=2, prompt="a ball falls")
    mini_transformer25(crossattn_proj_in_channels=30).save_pretrained(folder / "transformer")
    with pytest.raises(WorldModelError, match="gives 40 numbers a token, and its transformer takes 30"):
        embed_prompts(folder, recipe, TEXT)
    mini_transformer25().save_pretrained(folder / "transformer")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:40], whole[: len(whole) // 2], b""):
        weights.write_bytes(damaged)
        with pytest.raises(WorldModelError, match=r"the projection of text in .* cannot be read"):
            load_projection(folder)
    weights.write_bytes(whole)
    for file in (folder / "tokenizer").glob("chat_template*"):
        file.unlink()
    with pytest.raises(WorldModelError, match="no chat template"):
        embed_prompts(folder, recipe, TEXT)
