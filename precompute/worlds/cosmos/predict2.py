"""The Cosmos-Predict2 engine: it denoises the future of the first frame or frames.

Given the same draws, its result equals that of diffusers' `Cosmos2VideoToWorldPipeline`. It costs less: it takes a
batch of images, encodes only the observed frames, leaves out the last forward and what changes nothing in the others
(`forward.py`), holds no text encoder, and decodes nothing.

Axes:  B sample   C channel   T latent frame   H, W latent row, column   F video frame
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from ....pipeline.latents.recipe import Recipe, Solver
from ....pipeline.latents.tensors import standardise
from ..network.precision import full_float32
from ..text_embeddings import TextEmbeddings
from ..text_rows import stack_prompts_of
from ..wan.vae import load_part
from .forward import LeanTransformer
from .joint_diffusion import JointDiffusion
from .solvers import SIGMA_MAX, euler, sigma_schedule, two_step

SIGMA_CONDITIONING = 1e-4
"""Noise level of the observed frames as told to the network. Source: `Cosmos2VideoToWorldPipeline.__call__`."""


class CosmosWorld(JointDiffusion):
    """A `WorldModel` over a Wan 2.1 VAE and a Cosmos-Predict2 transformer."""

    def __init__(
        self, vae: AutoencoderKLWan, transformer: CosmosTransformer3DModel, *, text: TextEmbeddings | None = None
    ) -> None:
        """
        Args:
            vae: float32. transformer: float32 or bfloat16, on the same device.
            text: embeddings of the recipe's prompts; None rolls out with no text.
        """
        super().__init__(vae)
        self.transformer = LeanTransformer(transformer.eval().requires_grad_(False))
        self._text = text
        # the padding mask is all zeros here; as one more mask channel it needs no resize, thus no torchvision
        self._padding_channel = bool(transformer.config["concat_padding_mask"])
        self.dtype: torch.dtype = transformer.dtype

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> CosmosWorld:
        """Load `vae/` and `transformer/` of a folder in the stock layout; nothing else is opened.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """
        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        dtype = getattr(torch, compute_dtype)
        transformer = load_part(CosmosTransformer3DModel, folder, "transformer", device=device, dtype=dtype)
        return cls(vae, transformer, text=text)

    @property
    def _network(self) -> LeanTransformer:
        return self.transformer

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
            solver=recipe.solver,
            guidance=recipe.guidance,
            text=text,
            negative_text=negative,
            fps=recipe.fps,
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
        fps: float | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """What `Cosmos2VideoToWorldPipeline(..., output_type="latent")` returns, for comparison with it.

        Here the observed frames are a *sample* of the posterior and keep sigma_min of noise. Each generator is drawn
        from in the pipeline's order: posterior noise of the full clip's shape, then the clip's noise.
        """
        frames = 1 + rollout_steps
        video = pixels if pixels.ndim == 5 else pixels.unsqueeze(2)
        posterior = self._posterior(video)
        shape = (posterior.mean.shape[1], frames, *posterior.mean.shape[3:])
        draws = [(torch.randn(shape, generator=g), torch.randn(shape, generator=g)) for g in generators]
        posterior_noise, noise = (torch.stack(parts).to(self.device) for parts in zip(*draws, strict=True))
        observed_frames = posterior.mean.shape[2]
        observed = standardise(posterior.mean + posterior.std * posterior_noise[:, :, :observed_frames], self._spec)
        return self.denoise(
            observed,
            noise,
            denoise_steps=denoise_steps,
            guidance=guidance,
            text=text,
            negative_text=negative_text,
            fps=fps,
        )

    @torch.inference_mode()
    @full_float32()
    def denoise(
        self,
        observed: Float[Tensor, "B C K H W"],
        noise: Float[Tensor, "B C T H W"],
        *,
        denoise_steps: int,
        solver: Solver = "euler",
        guidance: float = 1.0,
        text: Float[Tensor, "texts L D"] | None = None,
        negative_text: Float[Tensor, "negatives L D"] | None = None,
        fps: float | None = None,
        first_sigma: float | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """From pure noise to a clip that begins with the latents in `observed`; float32.

        Args:
            observed: standardised latents of the observed frames. noise: unit normal.
            denoise_steps: noise levels N. solver: euler, N - 1 forwards; 2ab, N. Twice as many with guidance.
            guidance: x0 = cond + guidance * (cond - uncond) above 1.0.
            text, negative_text: prompt embeddings, one for all or one for each sample, padded to 512 as the pipeline
                pads them; None is no text: embeddings of zeros in the pipeline, whatever their number.
            first_sigma: noise level of the first forward, for its hidden states; None is the schedule's.

        Source: `Cosmos2VideoToWorldPipeline.__call__`.
        """
        batch, _, frames, height, width = noise.shape
        observed_frames = observed.shape[2]
        is_observed = noise.new_zeros(1, 1, frames, 1, 1)
        is_observed[:, :, :observed_frames] = 1.0
        clean = torch.zeros_like(noise)
        clean[:, :, :observed_frames] = observed
        mask = is_observed.expand(batch, 1, frames, height, width).to(self.dtype)
        if self._padding_channel:
            mask = torch.cat([mask, torch.zeros_like(mask)], dim=1)
        t_observed = SIGMA_CONDITIONING / (SIGMA_CONDITIONING + 1)
        contexts = [self._context(text, batch)]
        if guidance > 1.0:
            contexts.append(self._context(negative_text, batch))

        def estimate(latents: Tensor, sigma: Tensor) -> Tensor:
            """x0: the clean clip that the network sees behind noisy latents."""
            t = sigma / (sigma + 1)
            timestep = (is_observed * t_observed + (1 - is_observed) * t).expand(batch, -1, -1, -1, -1).to(self.dtype)
            hidden = (is_observed * clean + (1 - is_observed) * (latents * (1 - t))).to(self.dtype)
            estimates: list[Tensor] = []
            for context in contexts:
                output: Tensor = self.transformer(hidden, timestep, context, mask=mask, fps=fps)
                # the pipeline rounds x0 to the network's dtype before guidance; so do we
                x0 = ((1 - t) * latents - t * output.float()).to(self.dtype)
                estimates.append(is_observed * clean + (1 - is_observed) * x0)
            x0 = estimates[0]
            return x0 + guidance * (x0 - estimates[1]) if guidance > 1.0 else x0

        sigmas = sigma_schedule(denoise_steps)[:-1].to(self.device)
        if first_sigma is not None:
            sigmas[0] = first_sigma
        return {"euler": euler, "2ab": two_step}[solver](estimate, noise * (first_sigma or SIGMA_MAX), sigmas)

    def _context(self, text: Tensor | None, batch: int) -> Tensor | None:
        return None if text is None else text.to(self.device, self.dtype).expand(batch, -1, -1)
