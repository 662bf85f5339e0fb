"""The Cosmos-Predict2.5 engine: it denoises the future of the first frame or frames.

Given the same draws, its result equals that of diffusers' `Cosmos2_5_PredictBasePipeline`, which takes one image a
call: here they come in batches. The network is that of Predict2 (`forward.py`); what differs is around it. It
predicts the velocity from clean to noise, UniPC steps along a flow, and no text is a constant of the checkpoint.

Axes:  B sample   C channel   T latent frame   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor, nn

from ....pipeline.errors import WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.latents.recipe import Recipe
from ..network.precision import full_float32
from ..text_embeddings import TextEmbeddings
from ..text_rows import stack_prompts_of
from ..wan.vae import load_part
from .forward import LeanTransformer
from .joint_diffusion import JointDiffusion

TIME_OBSERVED = 1e-4
"""Noise level of the observed frames as told to the network: `conditional_frame_timestep` of the pipeline's call."""


class Cosmos25World(JointDiffusion):
    """A `WorldModel` over a Wan 2.1 VAE and a Cosmos-Predict2.5 transformer."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: CosmosTransformer3DModel,
        scheduler: UniPCMultistepScheduler,
        *,
        text: TextEmbeddings | None = None,
    ) -> None:
        """
        Args:
            vae: float32. transformer: float32 or bfloat16, on the same device. Its projection of text is not held.
            scheduler: its config states the noise levels; each rollout uses a copy of it.
            text: embeddings of the recipe's prompts, projected; None rolls out with no text.
        """
        super().__init__(vae)
        self.transformer = LeanTransformer(transformer.eval().requires_grad_(False), projects_text=True)
        self.no_text = no_text(transformer)
        self.scheduler = scheduler
        self._text = text
        # the padding mask is all zeros here; as one more mask channel it needs no resize, thus no torchvision
        self._padding_channel = bool(transformer.config["concat_padding_mask"])
        self.dtype: torch.dtype = transformer.dtype

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> Cosmos25World:
        """Load `vae/`, `transformer/` and `scheduler/` of a folder in the stock layout; nothing else is opened.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """
        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        dtype = getattr(torch, compute_dtype)
        transformer = load_part(CosmosTransformer3DModel, folder, "transformer", device=device, dtype=dtype)
        scheduler = load_pretrained(
            UniPCMultistepScheduler, folder, "scheduler", error=WorldModelError, what="world model's scheduler"
        )
        return cls(vae, transformer, scheduler, text=text)

    @property
    def _network(self) -> LeanTransformer:
        return self.transformer

    def offload(self, device: str, *, pinned: bool) -> None:
        """As `Offloadable` has it."""
        super().offload(device, pinned=pinned)
        self.no_text = self.no_text.to(self.device)

    def _block(self, number: int) -> nn.Module:
        return self.transformer.blocks[number - 1]

    def _begin(self, observed: Tensor, noise: Tensor, recipe: Recipe) -> Tensor:
        """`denoise` with what the recipe says."""
        text, negative = stack_prompts_of(recipe, self._text)
        return self.denoise(
            observed,
            noise,
            first_sigma=recipe.hidden_sigma,
            denoise_steps=recipe.denoise_steps,
            guidance=recipe.guidance,
            text=text,
            negative_text=negative,
        )

    @torch.inference_mode()
    def stock_rollout(
        self,
        pixels: Float[Tensor, "B 3 *frames height width"],
        generators: Sequence[torch.Generator],
        *,
        rollout_steps: int,
        denoise_steps: int,
        guidance: float = 1.0,
        text: Tensor | None = None,
        negative_text: Tensor | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """What `Cosmos2_5_PredictBasePipeline(..., output_type="latent")` returns, for comparison with it: observed
        frames are what the solver makes of them, and each generator is drawn from once, as there."""
        observed = self.encode_seen(pixels)
        shape = (observed.shape[1], 1 + rollout_steps, *observed.shape[3:])
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return self.denoise(
            observed,
            noise.to(self.device),
            denoise_steps=denoise_steps,
            guidance=guidance,
            text=text,
            negative_text=negative_text,
        )

    def solver(self, denoise_steps: int) -> Any:
        """A new scheduler set to so many forwards; its `sigmas` are their levels, and a zero behind them.

        Multistep solvers keep state, so each rollout has its own.
        """
        solver: Any = UniPCMultistepScheduler.from_config(self.scheduler.config)
        solver.set_timesteps(denoise_steps, device=self.device)
        return solver

    @torch.inference_mode()
    @full_float32()
    def denoise(
        self,
        observed: Float[Tensor, "B C K H W"],
        noise: Float[Tensor, "B C T H W"],
        *,
        denoise_steps: int,
        guidance: float = 1.0,
        text: Float[Tensor, "texts L D"] | None = None,
        negative_text: Float[Tensor, "negatives L D"] | None = None,
        first_sigma: float | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """From pure noise to a clip that begins with about the latents in `observed`; float32.

        Args:
            observed: standardised latents of the observed frames. noise: unit normal, and where the solver starts:
                its first level is 0.995 and not 1, as in the pipeline.
            denoise_steps: forwards, twice as many with guidance.
            guidance: velocity = cond + guidance * (cond - uncond) above 1.0.
            text, negative_text: projected embeddings, one for all or one for each sample, of 512 rows, none of them
                zero; None is no text.
            first_sigma: noise level of the first forward, up to 1, for its hidden states; None is the schedule's.

        Source: `Cosmos2_5_PredictBasePipeline.__call__`.
        """
        batch, _, frames, height, width = noise.shape
        is_observed = noise.new_zeros(1, 1, frames, 1, 1)
        is_observed[:, :, : observed.shape[2]] = 1.0
        clean = torch.zeros_like(noise)
        clean[:, :, : observed.shape[2]] = observed
        mask = is_observed.expand(batch, 1, frames, height, width).to(self.dtype)
        if self._padding_channel:
            mask = torch.cat([mask, torch.zeros_like(mask)], dim=1)
        velocity_observed = (noise - clean) * is_observed
        contexts = [self._context(text, batch)]
        if guidance > 1.0:
            contexts.append(self._context(negative_text, batch))
        solver = self.solver(denoise_steps)
        latents = noise
        if first_sigma is not None:
            latents, solver.sigmas[0] = noise * first_sigma, first_sigma
        for step, t in enumerate(solver.timesteps):
            level = solver.sigmas[step].to(self.device, torch.float32)
            # in float32, whatever the network computes in
            time = (is_observed * TIME_OBSERVED + (1 - is_observed) * level).expand(batch, -1, -1, -1, -1)
            hidden = (is_observed * clean + (1 - is_observed) * latents).to(self.dtype)
            velocities: list[Tensor] = []
            for context in contexts:
                output: Tensor = self.transformer(hidden, time, context, mask=mask)
                velocities.append(velocity_observed + output * (1 - is_observed))
            velocity = velocities[0]
            if guidance > 1.0:
                velocity = velocity + guidance * (velocity - velocities[1])
            latents = solver.step(velocity, t, latents, return_dict=False)[0]
        return latents

    def _context(self, text: Tensor | None, batch: int) -> Tensor:
        rows = self.no_text if text is None else text.to(self.device, self.dtype)
        return rows.expand(batch, -1, -1)


@torch.inference_mode()
def no_text(transformer: CosmosTransformer3DModel) -> Float[Tensor, "1 1 D"]:
    """What a Predict2.5 network sees where there is no text: its projection of zeros, which is GELU of its bias.

    In training a dropped prompt is its raw embedding times zero, before the projection. All rows of that are equal, so
    attention to one of them is attention to all 512.

    Source: `dropout_rate=0.2, use_empty_string=False` in nvidia-cosmos/cosmos-predict2.5.
    """
    width = transformer.config["crossattn_proj_in_channels"]
    weights = next(transformer.parameters())
    return transformer.crossattn_proj(torch.zeros(1, 1, width, device=weights.device, dtype=weights.dtype))
