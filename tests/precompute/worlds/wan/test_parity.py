"""The engine's stock mode against the installed `WanImageToVideoPipeline`: the same draws, the same latents."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image
from transformers import AutoTokenizer, UMT5EncoderModel

from tests.miniatures.world_model import (
    TEXT_WIDTH,
    mini_clip,
    mini_vae,
    mini_wan_scheduler,
    mini_wan_transformer,
    save_mini_wan,
)
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.media.images import to_tensor
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.prompts import embed_prompts
from theworld.precompute.worlds.text_rows import stack_prompts
from theworld.precompute.worlds.wan.wan21 import Wan21World


def pictures(count: int, height: int, width: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def pipeline(*, euler: bool = False, text_folder: Path | None = None) -> WanImageToVideoPipeline:
    encoder, processor = mini_clip()
    stock = WanImageToVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(text_folder / "tokenizer") if text_folder else None,
        text_encoder=UMT5EncoderModel.from_pretrained(text_folder / "text_encoder") if text_folder else None,
        vae=mini_vae(),
        scheduler=mini_wan_scheduler(euler),
        image_processor=processor,
        image_encoder=encoder,
        transformer=mini_wan_transformer(),
    )
    stock.set_progress_bar_config(disable=True)
    return stock


def engine(*, euler: bool = False) -> Wan21World:
    return Wan21World(mini_vae(), mini_wan_transformer(), mini_wan_scheduler(euler), *mini_clip())


CASES = [
    # height, width, steps, denoise, guidance, batch, euler
    (32, 32, 1, 5, 1.0, 1, False),
    (64, 32, 2, 3, 1.0, 2, False),
    (32, 48, 4, 6, 3.0, 3, False),
    (48, 32, 1, 20, 5.0, 2, False),
    (64, 64, 8, 10, 1.0, 1, False),
    (32, 32, 2, 2, 1.0, 2, False),
    (32, 48, 3, 6, 4.0, 2, True),
    (64, 32, 1, 10, 1.0, 1, True),
]


@pytest.mark.parametrize(("height", "width", "steps", "denoise", "guidance", "batch", "euler"), CASES)
def test_stock_mode_equals_the_installed_pipeline(
    height: int, width: int, steps: int, denoise: int, guidance: float, batch: int, euler: bool
) -> None:
    generator = torch.Generator().manual_seed(7)
    text = torch.randn(1, 512, TEXT_WIDTH, generator=generator)
    negative = torch.randn(1, 512, TEXT_WIDTH, generator=generator)
    images = pictures(batch, height, width)
    run = pipeline(euler=euler)
    stock = torch.cat(
        [  # the pipeline takes one image a call
            run(
                image=image,
                height=height,
                width=width,
                num_frames=1 + 4 * steps,
                num_inference_steps=denoise,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed)],
                prompt_embeds=text,
                negative_prompt_embeds=negative,
                output_type="latent",
            ).frames
            for seed, image in enumerate(images)
        ]
    )
    ours = engine(euler=euler).stock_rollout(
        torch.stack([to_tensor(image) for image in images]),
        [torch.Generator().manual_seed(seed) for seed in range(batch)],
        rollout_steps=steps,
        denoise_steps=denoise,
        guidance=guidance,
        text=text,
        negative_text=negative,
    )
    assert ours.shape == stock.shape == (batch, 16, 1 + steps, height // 8, width // 8)
    assert (ours - stock).abs().max().item() <= 1e-5


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance"),
    [(None, None, 1.0), ("a ball  falls &amp; falls", None, 3.0), ("a ball", "blur", 2.0)],
)
def test_prompts_and_the_empty_prompt_are_embedded_as_the_pipeline_embeds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str | None, negative: str | None, guidance: float
) -> None:
    folder = save_mini_wan(tmp_path / "wan")
    # it repairs wrongly decoded characters, of which there are none here
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)
    [image] = pictures(1, 32, 32)
    stock = pipeline(text_folder=folder)(
        image=image,
        prompt=prompt or "",
        negative_prompt=negative,
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(2)],
        output_type="latent",
    ).frames
    recipe = Recipe(
        world="sha256:x",
        height=32,
        width=32,
        rollout_steps=2,
        denoise_steps=4,
        prompt=prompt,
        negative_prompt=negative,
        guidance=guidance,
    )
    text = embed_prompts(folder, recipe, BUILT_IN["wan2.1-i2v"].text)
    rows, negative_rows = stack_prompts(text)
    assert rows is not None
    assert (negative_rows is not None) == (guidance > 1)
    ours = engine().stock_rollout(
        to_tensor(image)[None],
        [torch.Generator().manual_seed(2)],
        rollout_steps=2,
        denoise_steps=4,
        guidance=guidance,
        text=rows,
        negative_text=negative_rows,
    )
    assert (ours - stock).abs().max().item() <= 1e-5
