"""Every field of a recipe that is part of its id changes the latent, to the values that the stock pipeline gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import Cosmos2VideoToWorldPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from tests.miniatures.world_model import TEXT_WIDTH, mini_scheduler, mini_transformer, mini_vae
from theworld.pipeline.latents.kinds import KINDS as TRAITS
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.tensors import draw_noise
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.precompute.worlds.text_rows import stack_prompts

KEYS = ["a" * 64, "b" * 64]
TEXT, NEGATIVE = torch.randn(2, 1, 12, TEXT_WIDTH, generator=torch.Generator().manual_seed(4))
PROMPT = {"prompt": "a ball", "guidance": 3.0, "negative_prompt": "blur"}
HIDDEN = {"kind": "hidden", "hidden_block": 1, "denoise_steps": 10}
NAMES_A_VERSION = {"world", "image_rules", "engine"}
"""Fields that name weights and rules; other weights or another release make other latents."""
BEFORE_OR_AFTER = {"kind", "height", "width", "fit", "views", "clip_fps", "dtype", "prompts"}
"""Fields of pixels, of stored numbers and of whose prompt it is; tests of media, kinds, store and prompts vary them."""
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # field -> the recipe, and what changes in it
    "rollout_steps": ({}, {"rollout_steps": 3}),
    "stride": ({}, {"stride": 2}),
    "denoise_steps": ({}, {"denoise_steps": 5}),
    "solver": ({}, {"solver": "2ab"}),
    "guidance": (PROMPT, {"guidance": 5.0}),
    "prompt": ({}, {"prompt": "a ball"}),
    "negative_prompt": ({"prompt": "a ball", "guidance": 3.0}, {"negative_prompt": "blur"}),
    "fps": ({}, {"fps": 10.0}),
    "seed": ({}, {"seed": 1}),
    "draw": ({}, {"draw": 1}),
    "draws": ({"kind": "samples", "rollout_steps": 4, "draws": 2}, {"draws": 4}),
    "observed_frames": ({"kind": "continuation", "rollout_steps": 3}, {"observed_frames": 9}),
    "chunk_frames": ({"rollout_steps": 4, "chunk_frames": 3, "chunk_context": 1}, {"chunk_frames": 4}),
    "chunk_context": ({"rollout_steps": 4, "chunk_frames": 3, "chunk_context": 1}, {"chunk_context": 5}),
    "hidden_block": (HIDDEN, {"hidden_block": 2}),
    "hidden_sigma": (HIDDEN, {"hidden_sigma": 4.0}),
    "hidden_width": (HIDDEN, {"hidden_width": 16}),
    "hidden_projection": (HIDDEN | {"hidden_width": 16}, {"hidden_projection": 1}),
    "compute_dtype": ({}, {"compute_dtype": "bfloat16"}),
}
STOCK = (
    *("rollout_steps", "denoise_steps", "guidance", "prompt", "negative_prompt", "fps", "seed", "draw"),
    "compute_dtype",
)


def recipe(**changes: Any) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 48, "rollout_steps": 2, "denoise_steps": 4}
    return Recipe(**(fields | changes))


def pixels(made: Recipe) -> Tensor:
    clip = torch.rand(2, 3, 9, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return clip[:, :, : made.observed_frames] if made.kind == "continuation" else clip[:, :, 0]


def text_of(made: Recipe) -> TextEmbeddings:
    prompt = None if made.prompt is None else TEXT
    return TextEmbeddings.of_rows(prompt, None if made.negative_prompt is None else NEGATIVE)


def latents(made: Recipe) -> Tensor:
    dtype = getattr(torch, made.compute_dtype)
    world = CosmosWorld(mini_vae(), mini_transformer().to(dtype), text=text_of(made))
    return KINDS[made.kind].latents(world, pixels(made), KEYS, made)


def stock_latents(made: Recipe, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the installed pipeline makes of the recipe, shown the posterior's mode and given the recipe's noise."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())
    checker = type("NoChecker", (), {"to": lambda *_: None})()
    pipeline = Cosmos2VideoToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=mini_transformer().to(getattr(torch, made.compute_dtype)),
        vae=mini_vae(),
        scheduler=mini_scheduler(),
        safety_checker=checker,
    )
    pipeline.set_progress_bar_config(disable=True)
    zeros = torch.zeros(1, 512, TEXT_WIDTH)
    prompt, negative = (zeros if part is None else part for part in stack_prompts(text_of(made)))
    return pipeline(
        image=(pixels(made) + 1) / 2,
        height=made.height,
        width=made.width,
        num_frames=1 + 4 * made.rollout_steps,
        num_inference_steps=made.denoise_steps,
        guidance_scale=made.guidance,
        fps=made.fps,
        latents=draw_noise(made, KEYS, (16, 1 + made.rollout_steps, 4, 6)),
        prompt_embeds=prompt.expand(2, -1, -1).to(pipeline.transformer.dtype),
        negative_prompt_embeds=negative.expand(2, -1, -1).to(pipeline.transformer.dtype),
        output_type="latent",
    ).frames.float()


def test_every_field_is_varied_here_or_named_as_tested_elsewhere() -> None:
    assert set(FIELDS) | NAMES_A_VERSION | BEFORE_OR_AFTER == set(Recipe.model_fields)
    assert not set(FIELDS) & (NAMES_A_VERSION | BEFORE_OR_AFTER)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_with_a_meaning_changes_the_latent(field: str) -> None:
    before, change = FIELDS[field]
    one, other = recipe(**before), recipe(**before | change)
    assert field not in TRAITS[other.kind].fields_without_meaning
    assert one.id != other.id
    assert not torch.equal(latents(one), latents(other))


@pytest.mark.parametrize("field", STOCK)
def test_the_changed_latent_is_the_stock_pipeline_s(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, change = FIELDS[field]
    made = recipe(**before | change)
    ours, stock = latents(made), stock_latents(made, monkeypatch)
    assert (ours - stock)[:, :, 1:].abs().max().item() <= 1e-4  # the pipeline leaves sigma_min of noise in frame 0


def test_samples_from_a_later_draw_are_the_rollouts_of_those_draws() -> None:
    several = latents(recipe(kind="samples", rollout_steps=4, draws=2, draw=1))
    for number, draw in enumerate((1, 2)):
        future = latents(recipe(rollout_steps=2, draw=draw))[:, :, 1:]
        assert torch.equal(several[:, :, 1 + 2 * number : 3 + 2 * number], future)
