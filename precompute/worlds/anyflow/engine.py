"""The AnyFlow FAR engine: it predicts an image's future chunk by chunk, each from what it keeps of all before it.

A clip is one latent frame, the encoding of the image, and then chunks of three. A chunk is denoised with all of the
past in view, and is never changed again, so a longer clip begins with the bits of a shorter one. What has to be kept to
go on are the latents alone: keys and values are computed from them (forward.py). Nothing is decoded on the way.

Given the same draws, its results equal those of diffusers' `AnyFlowFARPipeline`, where that fills no keys with zeros.

Axes:  B sample   C channel   T latent frame   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AnyFlowFARTransformer3DModel, AutoencoderKLWan, FlowMapEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.latents.hidden import hidden_latents
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.tensors import draw_noise
from ..network.precision import full_float32
from ..text_embeddings import FollowsPrompts, TextEmbeddings
from ..text_rows import stack_prompts
from ..wan.vae import WanLatents, load_part
from .chunks import CHUNK_FRAMES, chunk_sizes
from .forward import CausalTransformer


class AnyFlowWorld(FollowsPrompts, WanLatents):
    """A `WorldModel` over the parts of an AnyFlow FAR pipeline."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: AnyFlowFARTransformer3DModel,
        scheduler: FlowMapEulerDiscreteScheduler,
        *,
        text: TextEmbeddings | None = None,
        zero_keys: bool = False,
    ) -> None:
        """
        Args:
            vae: float32. transformer: float32 or bfloat16, on the same device.
            scheduler: its config states the noise levels; each rollout uses a copy of it.
            text: embeddings of the recipe's prompts, the empty one included; with None it can encode, not roll out.
            zero_keys: as diffusers has it, for comparison with it (forward.py).
        """
        super().__init__(vae)
        self.transformer = CausalTransformer(transformer, zero_keys=zero_keys)
        self.scheduler = scheduler
        self._text = text
        self.dtype: torch.dtype = self.transformer.dtype

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> AnyFlowWorld:
        """Load all but the text encoder of a folder in the stock layout.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """
        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        dtype = getattr(torch, compute_dtype)
        transformer = load_part(AnyFlowFARTransformer3DModel, folder, "transformer", device=device, dtype=dtype)
        what = "world model's scheduler"
        scheduler = load_pretrained(
            FlowMapEulerDiscreteScheduler, folder, "scheduler", error=WorldModelError, what=what
        )
        return cls(vae, transformer, scheduler, text=text)

    @torch.inference_mode()
    def rollout(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B C T H W"]:
        """Standardised float32 latents of the observed frames and their predicted future, of any length.

        Observed frames are encoded, not predicted; frame 0 equals `encode` of the image or first frame. The last chunk
        is made whole and cut where the clip ends.

        Args:
            seen: float32 in [-1, 1], of the recipe's size: images, or the first frames of videos that fill whole
                chunks. keys: one per input; with the recipe's seed and draw, and the number of a chunk, it fixes the
                chunk's noise, so batch, order and length do not matter.
        Raises:
            ConfigError: this world was loaded without the embeddings of the recipe's prompts (the empty one too), or
                its latents are not those of one rollout, or the frames shown fill no whole chunks.
        """
        if not recipe.traits.is_one_diffusion or recipe.chunk_frames:
            raise ConfigError(f"a recipe of kind {recipe.kind} is not one rollout from a state that is kept")
        observed = self.encode_seen(seen)
        observed_frames, frames = observed.shape[2], 1 + recipe.rollout_steps * recipe.stride
        if (observed_frames - 1) % CHUNK_FRAMES:
            raise ConfigError(
                f"AnyFlow FAR goes on behind 1 + a multiple of {CHUNK_FRAMES} latent frames, not {observed_frames}"
            )
        past = list(observed.split(chunk_sizes(observed_frames), dim=2))
        shape = (observed.shape[1], CHUNK_FRAMES, *observed.shape[3:])
        noise = [
            draw_noise(recipe, [f"{key} chunk {number}" for key in keys], shape)
            for number in range(len(past), len(chunk_sizes(frames)))
        ]
        if noise:
            text, negative = stack_prompts(self._text)
            if text is None:
                raise ConfigError(
                    "AnyFlow FAR was loaded without the embeddings of its prompt, which it needs even if empty"
                )
            settings = {"denoise_steps": recipe.denoise_steps, "guidance": recipe.guidance}
            past += self.predict_chunks(past, noise, text=text, negative_text=negative, **settings)
        return torch.cat(past, dim=2)[:, :, : frames : recipe.stride].contiguous()

    @torch.inference_mode()
    @full_float32()
    def hidden(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B D T rows columns"]:
        """As `HasHiddenStates` has it, of the first chunk; raises as `rollout`."""
        observed = self.encode_seen(seen)
        text, _ = stack_prompts(self._text)
        if text is None:
            raise ConfigError(
                "AnyFlow FAR was loaded without the embeddings of its prompt, which it needs even if empty"
            )
        shape = (observed.shape[1], CHUNK_FRAMES, *observed.shape[3:])
        noise = draw_noise(recipe, [f"{key} chunk 1" for key in keys], shape).to(self.device)
        sigmas = self.noise_levels(recipe.denoise_steps)
        sigma, scale = recipe.hidden_sigma or sigmas[0], self.scheduler.config["num_train_timesteps"]
        memory = self.transformer.begin(text)
        self.transformer.remember(memory, [observed])
        positions = self.transformer.positions(1 + CHUNK_FRAMES, 1, noise)
        times = (scale * sigma, scale * min(sigma, sigmas[1]))
        latents = noise if recipe.hidden_sigma is None else noise * sigma
        tokens = self.transformer.tokens(latents, *times, memory, positions, blocks=recipe.hidden_block)
        each = tokens.shape[1] // CHUNK_FRAMES
        tokens = torch.cat([torch.zeros_like(tokens[:, :each]), tokens], dim=1)  # the encoding stands in its place
        return hidden_latents(observed, tokens[:, : each * (1 + recipe.rollout_steps * recipe.stride)], recipe)

    @torch.inference_mode()
    @full_float32()
    def predict_chunks(
        self,
        past: Sequence[Float[Tensor, "B C _ H W"]],
        noise: Iterable[Float[Tensor, "B C _ H W"]],
        *,
        denoise_steps: int,
        text: Float[Tensor, "texts L D"],
        negative_text: Float[Tensor, "negatives L D"] | None = None,
        guidance: float = 1.0,
    ) -> list[Float[Tensor, "B C _ H W"]]:
        """The chunks that follow a past, float32: one for each noise, from the keys and values of all before it.

        Args:
            past: clean latents of each chunk, the encoding of the image first. It may be what this function made.
            noise: unit normal, of each chunk.
            denoise_steps: forwards of a chunk, twice as many with guidance.
            text, negative_text: prompt embeddings, one for all or one for each sample, padded to 512 as the pipeline
                pads them; the second with guidance.
            guidance: flow = uncond + guidance * (cond - uncond) above 1.0.
        Raises:
            ConfigError: guidance without `negative_text`.

        Source: `AnyFlowFARPipeline.__call__`, which rounds latents to the transformer's dtype after each step.
        """
        texts = [text]
        if guidance > 1.0:
            if negative_text is None:
                raise ConfigError("guidance steers away from a text, and no embeddings of one were given")
            texts.append(negative_text)
        memories = [self.transformer.begin(each) for each in texts]
        sigmas, scale = self.noise_levels(denoise_steps), self.scheduler.config["num_train_timesteps"]
        chunks = list(past)
        for unit_normal in noise:
            latents = unit_normal.to(self.device)
            for memory in memories:  # the chunk before this one: after the last, nothing has to be kept
                self.transformer.remember(memory, chunks)
            done = sum(chunk.shape[2] for chunk in chunks)
            positions = self.transformer.positions(done + latents.shape[2], done, latents)
            for sigma, following in pairwise(sigmas):
                flows = [
                    self.transformer.predict(latents, scale * sigma, scale * following, memory, positions).float()
                    for memory in memories
                ]
                flow = flows[0] if len(flows) == 1 else flows[1] + guidance * (flows[0] - flows[1])
                latents = latents - (sigma - following) * flow
            chunks.append(latents)
        return chunks[len(past) :]

    def noise_levels(self, denoise_steps: int) -> list[float]:
        """Sigmas from 1 down to 0, one more than steps."""
        scheduler: Any = FlowMapEulerDiscreteScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(denoise_steps, device="cpu")
        return scheduler.sigmas.tolist()
