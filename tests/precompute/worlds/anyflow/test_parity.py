"""The AnyFlow FAR engine against the installed `AnyFlowFARPipeline`: the same draws, the same latents, by chunk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AnyFlowFARPipeline, AnyFlowFARTransformer3DModel
from diffusers.pipelines.anyflow import pipeline_anyflow_far
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from tests.miniatures.anyflow import mini_anyflow_scheduler, mini_anyflow_transformer, save_mini_anyflow
from tests.miniatures.world_model import TEXT_WIDTH, mini_vae
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.worlds.anyflow.engine import AnyFlowWorld
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.prompts import embed_prompts
from theworld.precompute.worlds.text_rows import stack_prompts

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

GOLDEN_LEVELS = {
    2: [1.0, 0.8333333333, 0.0],
    4: [1.0, 0.9375, 0.8333333333, 0.625, 0.0],
    8: [1.0, 0.9722222222, 0.9375, 0.8928571429, 0.8333333333, 0.75, 0.625, 0.4166666667, 0.0],
}
"""Sigmas at the shift of the released models, 5: s -> 5 s / (1 + 4 s) of 1 to 0 in equal steps."""


def pipeline(
    *, text_folder: Path | None = None, transformer: AnyFlowFARTransformer3DModel | None = None, **changes: object
) -> AnyFlowFARPipeline:
    stock = AnyFlowFARPipeline(
        tokenizer=AutoTokenizer.from_pretrained(text_folder / "tokenizer") if text_folder else None,
        text_encoder=UMT5EncoderModel.from_pretrained(text_folder / "text_encoder") if text_folder else None,
        vae=mini_vae(),
        transformer=transformer or mini_anyflow_transformer(**changes),
        scheduler=mini_anyflow_scheduler(),
    )
    stock.set_progress_bar_config(disable=True)
    return stock


def draws(batch: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], as the pipeline takes them, and noise of the clip."""
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(batch, 3, height, width, generator=generator)
    return images, torch.randn(batch, 16, frames, height // 8, width // 8, generator=generator)


def texts(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(count, 512, TEXT_WIDTH, generator=generator) for _ in range(2))


def both(
    stock: AnyFlowFARPipeline,
    images: Tensor,
    noise: Tensor,
    chunks: list[int],
    *,
    denoise: int,
    guidance: float = 1.0,
    zero_keys: bool = True,
    prompts: int = 1,
) -> tuple[Tensor, Tensor]:
    """Latents of the pipeline and of the engine over the same network."""
    text, negative = texts(prompts)
    batch, height, width = len(images), *images.shape[2:]
    expected = stock(
        video=images[:, None],
        height=height,
        width=width,
        num_frames=1 + 4 * (sum(chunks) - 1),
        chunk_partition=chunks,
        num_inference_steps=denoise,
        guidance_scale=guidance,
        latents=noise,
        prompt_embeds=text.expand(batch, -1, -1),
        negative_prompt_embeds=negative.expand(batch, -1, -1) if guidance > 1 else None,
        output_type="latent",
    ).frames
    world = AnyFlowWorld(mini_vae(), stock.transformer, stock.scheduler, zero_keys=zero_keys)
    first = world.encode(images * 2 - 1)
    later = world.predict_chunks(
        [first],
        noise[:, :, 1:].split(chunks[1:], dim=2),
        denoise_steps=denoise,
        guidance=guidance,
        text=text,
        negative_text=negative,
    )
    return expected, torch.cat([first, *later], dim=2)


CASES = [
    # height, width, chunks, denoise, guidance, batch, prompts
    (32, 32, [1, 3], 2, 1.0, 1, 1),
    (64, 32, [1, 3, 3], 4, 1.0, 2, 2),
    (32, 64, [1, 3, 3, 3], 3, 3.0, 2, 1),
    (64, 64, [1, 3, 3, 3, 3, 3], 2, 1.0, 1, 1),  # four chunks far
    (32, 32, [1, 3, 3, 3, 3, 3, 3, 2], 2, 2.0, 2, 2),  # the released models' own clip
]


@pytest.mark.parametrize(("height", "width", "chunks", "denoise", "guidance", "batch", "prompts"), CASES)
def test_each_chunk_equals_that_of_the_installed_pipeline(
    height: int, width: int, chunks: list[int], denoise: int, guidance: float, batch: int, prompts: int
) -> None:
    images, noise = draws(batch, sum(chunks), height, width)
    stock, ours = both(pipeline(), images, noise, chunks, denoise=denoise, guidance=guidance, prompts=prompts)
    assert ours.shape == stock.shape
    for number, (expected, chunk) in enumerate(zip(stock.split(chunks, 2), ours.split(chunks, 2), strict=True)):
        assert (chunk - expected).abs().max().item() <= 1e-5, f"chunk {number}"


@pytest.mark.parametrize(
    "changes", [{"full_chunk_limit": 2}, {"full_chunk_limit": 4}, {"deltatime_type": "t-r"}, {"gate_value": 0.5}]
)
def test_networks_of_other_settings_equal_the_installed_pipeline_too(changes: dict[str, object]) -> None:
    chunks = [1, 3, 3, 3, 3]
    stock, ours = both(pipeline(**changes), *draws(1, 13, 32, 64), chunks, denoise=2)
    assert (ours - stock).abs().max().item() <= 1e-5


def test_without_zero_keys_it_equals_the_pipeline_where_that_has_none_and_differs_where_it_has() -> None:
    """The pipeline fills a chunk to 128 tokens: here it has 384 and then 12 of its own."""
    stock, ours = both(pipeline(), *draws(1, 7, 128, 256), [1, 3, 3], denoise=2, zero_keys=False)
    assert (ours - stock).abs().max().item() <= 1e-5
    stock, ours = both(pipeline(), *draws(1, 7, 32, 32), [1, 3, 3], denoise=2, zero_keys=False)
    assert (ours - stock).abs().max().item() > 1e-2


def test_in_bfloat16_it_stays_near_the_pipeline_which_rounds_latents_too(tmp_path: Path) -> None:
    mini_anyflow_transformer().save_pretrained(tmp_path)  # loading leaves norms in float32
    half = AnyFlowFARTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    stock, ours = both(pipeline(transformer=half), *draws(2, 7, 64, 32), [1, 3, 3], denoise=4)
    assert ours.dtype == torch.float32
    assert (ours - stock.float()).abs().max().item() <= 0.1


def test_the_noise_levels_are_those_that_were_frozen() -> None:
    world = AnyFlowWorld(mini_vae(), mini_anyflow_transformer(), mini_anyflow_scheduler())
    for steps, levels in GOLDEN_LEVELS.items():
        assert world.noise_levels(steps) == pytest.approx(levels, abs=1e-10)


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance"),
    [(None, None, 1.0), ("a ball  falls &amp; falls", None, 3.0), ("a ball", "blur", 2.0)],
)
def test_prompts_and_the_empty_prompt_are_embedded_as_the_pipeline_embeds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str | None, negative: str | None, guidance: float
) -> None:
    folder = save_mini_anyflow(tmp_path / "anyflow")
    # it repairs wrongly decoded characters, of which there are none here
    monkeypatch.setattr(pipeline_anyflow_far, "ftfy", SimpleNamespace(fix_text=str), raising=False)
    expected, expected_negative = pipeline(text_folder=folder).encode_prompt(
        prompt or "", negative, do_classifier_free_guidance=guidance > 1, max_sequence_length=512
    )
    fields = {"prompt": prompt, "negative_prompt": negative, "guidance": guidance}
    recipe = Recipe(world="sha256:x", height=32, width=32, **fields)
    rows, negative_rows = stack_prompts(embed_prompts(folder, recipe, BUILT_IN["anyflow-far"].text))
    torch.testing.assert_close(rows, expected)
    assert (negative_rows is None) == (expected_negative is None)
    if negative_rows is not None:
        torch.testing.assert_close(negative_rows, expected_negative)
