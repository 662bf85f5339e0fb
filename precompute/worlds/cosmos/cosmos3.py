"""The Cosmos 3 engine: it denoises the future of the first frame or frames.

Given the same draws, its result equals that of diffusers' `Cosmos3OmniPipeline`. It costs less: it takes a batch of
images and a prompt for each, where the pipeline takes one sample a call; it encodes only the observed frames; it holds
one of the transformer's two towers (`cosmos3_forward.py`), since the other ran once, before (`cosmos3_text.py`); and it
decodes nothing. No sound is made, and what would make it is not loaded.

Axes:  B sample   C channel   T latent frame   H, W latent row, column   F video frame
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer, UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor, nn

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.latents.recipe import Recipe
from ..family import INDEX, read_config
from ..network.precision import full_float32
from ..text_embeddings import TextEmbeddings
from ..wan.vae import load_part
from .cosmos3_clip import fps_of
from .cosmos3_forward import GenerationTower, PromptKeys
from .cosmos3_text import keys_of, load_towers
from .joint_diffusion import JointDiffusion


class Cosmos3World(JointDiffusion):
    """A `WorldModel` over Wan 2.2's VAE and the generation tower of a Cosmos 3 transformer."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: Cosmos3OmniTransformer,
        scheduler: UniPCMultistepScheduler,
        *,
        use_native_flow_schedule: bool = False,
        text: TextEmbeddings | None = None,
    ) -> None:
        """
        Args:
            vae: float32, on the device that all is to run on.
            transformer: float32 or bfloat16, anywhere: only its generation tower is kept and put on the device.
            scheduler: its config states the noise levels; each rollout uses a copy of it.
            use_native_flow_schedule: as the folder's `model_index.json` says.
            text: the recipe's prompts, the empty one included; with None it can encode, not roll out.
        """
        super().__init__(vae)
        tower = GenerationTower(transformer.eval().requires_grad_(False), temporal_stride=self._spec.temporal_stride)
        self.tower = tower.to(self.device)
        self.scheduler = scheduler
        self._native_flow = use_native_flow_schedule
        self._text = text
        self.dtype: torch.dtype = self.tower.dtype

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> Cosmos3World:
        """Load `vae/`, `scheduler/` and the generation tower of `transformer/` of a folder in the stock layout.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """
        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        scheduler = load_pretrained(
            UniPCMultistepScheduler, folder, "scheduler", error=WorldModelError, what="world model's scheduler"
        )
        index = folder / f"{INDEX}.json"
        native_flow = bool(read_config(index).get("use_native_flow_schedule")) if index.is_file() else False
        towers = load_towers(folder, compute_dtype)
        return cls(vae, towers, scheduler, use_native_flow_schedule=native_flow, text=text)

    @property
    def _network(self) -> GenerationTower:
        return self.tower

    def _block(self, number: int) -> nn.Module:
        return self.tower.layers[number - 1]

    def _begin(self, observed: Tensor, noise: Tensor, recipe: Recipe) -> Tensor:
        """`denoise` with what the recipe says."""
        if self._text is None or not self._text.prompts:
            raise ConfigError("Cosmos 3 was loaded without its prompt, of which it needs keys and values even if empty")
        return self.denoise(
            observed,
            noise,
            denoise_steps=recipe.denoise_steps,
            prompts=[keys_of(text) for text in self._text.prompts],
            negative=None if self._text.negative is None else keys_of(self._text.negative),
            guidance=recipe.guidance,
            fps=fps_of(recipe),
            first_sigma=recipe.hidden_sigma,
        )

    @torch.inference_mode()
    @full_float32()
    def denoise(
        self,
        observed: Float[Tensor, "B C K H W"],
        noise: Float[Tensor, "B C T H W"],
        *,
        denoise_steps: int,
        prompts: Sequence[PromptKeys],
        negative: PromptKeys | None = None,
        guidance: float = 1.0,
        fps: float = 24.0,
        first_sigma: float | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """From pure noise to a clip that begins with the latents in `observed`; float32.

        Args:
            observed: standardised latents of the observed frames. noise: unit normal.
            denoise_steps: forwards, twice as many with guidance.
            prompts: one for all, or one for each sample. negative: what guidance steers away from.
            guidance: velocity = uncond + guidance * (cond - uncond) above 1.0.
            fps: video frames per second of the clip.
            first_sigma: noise level of the first forward, up to 1, for its hidden states; None is the schedule's.
        Raises:
            ConfigError: guidance without `negative`.

        Source: `Cosmos3OmniPipeline.__call__`.
        """
        if guidance > 1.0 and negative is None:
            raise ConfigError("guidance steers away from a text, and the keys and values of none were given")
        batch, _, frames, height, width = noise.shape
        observed_frames = observed.shape[2]
        branches = [list(prompts), *([[negative]] if guidance > 1.0 and negative is not None else [])]
        besides = [
            self.tower.beside(texts, (frames, height, width), batch=batch, fps=fps, device=self.device)
            for texts in branches
        ]
        scheduler = set_levels(self.scheduler, denoise_steps, use_native_flow_schedule=self._native_flow)
        if first_sigma is not None:
            noise = noise * first_sigma
            scheduler.timesteps[0] = first_sigma * scheduler.config.num_train_timesteps
        latents = torch.cat([observed, noise[:, :, observed_frames:]], dim=2)
        still = torch.zeros_like(observed)  # the velocity of what is seen
        for t in scheduler.timesteps:
            moves = [self.tower(latents, float(t), observed_frames, beside).float() for beside in besides]
            move = moves[0] if len(moves) == 1 else moves[1] + guidance * (moves[0] - moves[1])
            latents = scheduler.step(torch.cat([still, move], dim=2), t, latents, return_dict=False)[0]
        return latents


def set_levels(scheduler: UniPCMultistepScheduler, denoise_steps: int, *, use_native_flow_schedule: bool) -> Any:
    """A new scheduler of the same config, with the noise levels of so many steps; a multistep solver keeps state.

    Args:
        use_native_flow_schedule: levels evenly apart, before the config's shift. Where the config says Karras, its
            levels come out the same either way.

    Source: `Cosmos3OmniPipeline.__call__`, its step 6.
    """
    fresh: Any = type(scheduler).from_config(scheduler.config)
    if use_native_flow_schedule:
        highest = 1.0 - 1.0 / fresh.config.num_train_timesteps
        fresh.set_timesteps(denoise_steps, sigmas=np.linspace(highest, 0.0, denoise_steps + 1)[:-1])
    else:
        fresh.set_timesteps(denoise_steps)
    return fresh
