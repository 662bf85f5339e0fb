"""The image-to-video engine of Wan 2.1 and 2.2: it denoises the future of a first frame.

Given the same draws, its results equal those of diffusers' `WanImageToVideoPipeline`, for a batch of images and without
decoding. `WanWorld` holds the rollout and the loop; each model says how the network gets the image and the time, and
which network runs at a noise level (wan21.py, wan22.py). By default the image stands beside the noise, as the VAE's
encoding of a clip that is the image and then grey, with a mask that is one at the first latent frame.

Axes:  B sample   C channel   T latent frame   H, W latent row, column   F video frame
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from jaxtyping import Float
from torch import Tensor

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.latents.hidden import hidden_latents
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import video_frames
from ....pipeline.latents.tensors import draw_noise
from ..blocks import tokens_behind
from ..family import read_config
from ..network.offloading import offload_blocks
from ..network.precision import full_float32
from ..text_embeddings import FollowsPrompts, TextEmbeddings
from ..text_rows import stack_prompts
from .vae import WanLatents, load_part

Scheduler = UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler
_SCHEDULERS: dict[str, type[Scheduler]] = {
    cls.__name__: cls for cls in (UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler)
}


class WanWorld(FollowsPrompts, WanLatents):
    """Base of Wan's image-to-video world models; a `WorldModel`."""

    title: ClassVar[str]
    """In messages."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: WanTransformer3DModel,
        scheduler: Scheduler,
        *,
        text: TextEmbeddings | None = None,
    ) -> None:
        """
        Args:
            vae: float32. transformer: float32 or bfloat16, on the same device.
            scheduler: its config states the noise levels and the solver; each rollout uses a copy of it.
            text: embeddings of the recipe's prompts, the empty one included; with None it can encode, not roll out.
        """
        super().__init__(vae)
        self.transformer = transformer.eval().requires_grad_(False)
        self.scheduler = scheduler
        self._text = text
        self.dtype: torch.dtype = transformer.dtype

    def compile_blocks(self) -> None:
        """As `Compilable` has it."""
        self.transformer.compile_repeated_blocks(dynamic=False)

    def offload(self, device: str, *, pinned: bool) -> None:
        """As `Offloadable` has it."""
        self.move_autoencoder(device)
        offload_blocks(self.transformer, device, pinned=pinned)

    @torch.inference_mode()
    def rollout(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B C T H W"]:
        """Standardised float32 latents of each image and its predicted future; frame 0 equals `encode`.

        Args:
            seen: images or videos of one frame, float32 in [-1, 1], of the recipe's size. keys: one per image; with
                the recipe's seed and draw it fixes the sample's noise, so batch and order do not matter.
        Raises:
            ConfigError: this world was loaded without the embeddings of the recipe's prompts (the empty one too), or
                its latents are not those of one joint diffusion, or more than one frame is shown.
        """
        images = self._image_of(seen, recipe)
        if recipe.rollout_steps == 0:
            return self.encode(images)
        condition = self.condition(images, recipe.rollout_steps * recipe.stride)
        latents = self._begin(images, condition, keys, recipe)
        # the loop may give its own rendering of the observed frame
        latents[:, :, :1] = self._observed_of(condition)
        return latents[:, :, :: recipe.stride].contiguous()

    @torch.inference_mode()
    def hidden(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B D T rows columns"]:
        """As `HasHiddenStates` has it; raises as `rollout`."""
        images = self._image_of(seen, recipe)
        condition = self.condition(images, recipe.rollout_steps * recipe.stride)
        blocks = [network.blocks[recipe.hidden_block - 1] for network in self.networks()]
        tokens = tokens_behind(blocks, lambda: self._begin(images, condition, keys, recipe))
        return hidden_latents(self._observed_of(condition), tokens, recipe)

    def _image_of(self, pixels: Tensor, recipe: Recipe) -> Float[Tensor, "B 3 height width"]:
        if not recipe.traits.is_one_diffusion or recipe.chunk_frames:
            raise ConfigError(f"a recipe of kind {recipe.kind} is not one joint diffusion")
        if pixels.ndim == 5 and pixels.shape[2] != 1:
            raise ConfigError(f"{self.title} takes one frame, not {pixels.shape[2]}")
        return pixels[:, :, 0] if pixels.ndim == 5 else pixels

    def _observed_of(self, condition: Tensor) -> Float[Tensor, "B C 1 H W"]:
        """The encoding of the image alone."""
        return condition[:, -self._spec.channels :, :1]

    def _begin(self, images: Tensor, condition: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        """`denoise` with what the recipe says."""
        text, negative = stack_prompts(self._text)
        if text is None:
            raise ConfigError(
                f"{self.title} was loaded without the embeddings of its prompt, which it needs even if empty"
            )
        noise = draw_noise(recipe, keys, self._noise_shape(condition, recipe.rollout_steps * recipe.stride))
        return self.denoise(
            images,
            condition,
            noise.to(self.device),
            denoise_steps=recipe.denoise_steps,
            guidance=recipe.guidance,
            text=text,
            negative_text=negative,
            first_sigma=recipe.hidden_sigma,
        )

    @torch.inference_mode()
    def stock_rollout(
        self,
        images: Float[Tensor, "B 3 height width"],
        generators: Sequence[torch.Generator],
        *,
        rollout_steps: int,
        denoise_steps: int,
        text: Float[Tensor, "texts L D"],
        negative_text: Float[Tensor, "negatives L D"] | None = None,
        guidance: float = 1.0,
    ) -> Float[Tensor, "B C T H W"]:
        """What `WanImageToVideoPipeline(..., output_type="latent")` returns, for comparison with it: frame 0 is what
        the loop makes of it, and each generator is drawn from once, as there."""
        condition = self.condition(images, rollout_steps)
        shape = self._noise_shape(condition, rollout_steps)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return self.denoise(
            images,
            condition,
            noise.to(self.device),
            denoise_steps=denoise_steps,
            guidance=guidance,
            text=text,
            negative_text=negative_text,
        )

    def _noise_shape(self, condition: Tensor, rollout_steps: int) -> tuple[int, int, int, int]:
        """(C, T, H, W) of one sample."""
        height, width = condition.shape[-2:]
        return (self._spec.channels, 1 + rollout_steps, height, width)

    @torch.inference_mode()
    def condition(
        self, images: Float[Tensor, "B 3 height width"], rollout_steps: int
    ) -> Float[Tensor, "B mask_and_C T H W"]:
        """What the network is shown of the image at every step; its last channels, at frame 0, equal `encode`.

        Here the input beside the noise: a mask of the observed frame, of `temporal_stride` channels, and the encoding
        of the image and grey, whose first frame is that of the image alone, since the VAE is causal.

        Source: `WanImageToVideoPipeline.prepare_latents`.
        """
        stride = self._spec.temporal_stride
        batch, colors, height, width = images.shape
        clip = images.new_zeros(batch, colors, video_frames(rollout_steps, temporal_stride=stride), height, width)
        clip[:, :, 0] = images
        encoded = self.encode_video(clip)
        mask = encoded.new_zeros(encoded.shape[0], stride, *encoded.shape[2:])
        mask[:, :, 0] = 1.0
        return torch.cat([mask, encoded], dim=1)

    @torch.inference_mode()
    @full_float32()
    def denoise(
        self,
        images: Float[Tensor, "B 3 height width"],
        condition: Float[Tensor, "B channels frames H W"],
        noise: Float[Tensor, "B C T H W"],
        *,
        denoise_steps: int,
        text: Float[Tensor, "texts L D"],
        negative_text: Float[Tensor, "negatives L D"] | None = None,
        guidance: float = 1.0,
        first_sigma: float | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """From pure noise to a clip, with the steps of the folder's scheduler; float32.

        Args:
            images: float32 in [-1, 1], for `image_tokens`. condition: of `condition`. noise: unit normal.
            denoise_steps: forwards, twice as many with guidance.
            text, negative_text: prompt embeddings, one for all or one for each sample, padded to 512 as the pipeline
                pads them; the second with guidance.
            guidance: flow = uncond + guidance * (cond - uncond) above 1.0, at every noise level.
            first_sigma: noise level of the first forward, up to 1, for its hidden states; None is the schedule's.
        Raises:
            ConfigError: guidance without `negative_text`.

        Source: `WanImageToVideoPipeline.__call__`.
        """
        contexts = [text]
        if guidance > 1.0:
            if negative_text is None:
                raise ConfigError("guidance steers away from a text, and no embeddings of one were given")
            contexts.append(negative_text)
        contexts = [context.to(self.device, self.dtype).expand(len(noise), -1, -1) for context in contexts]
        image_tokens = self.image_tokens(images)
        # a new scheduler each time: multistep solvers keep state
        scheduler: Any = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(denoise_steps, device=self.device)
        latents = noise
        if first_sigma is not None:
            latents = noise * first_sigma
            scheduler.timesteps[0] = first_sigma * scheduler.config.num_train_timesteps
        for t in scheduler.timesteps:
            network = self.network_at(t)
            hidden, times = self.network_input(latents, condition, t)
            flows = [
                network(
                    hidden_states=hidden.to(self.dtype),
                    timestep=times,
                    encoder_hidden_states=context,
                    encoder_hidden_states_image=image_tokens,
                    return_dict=False,
                )[0]
                for context in contexts
            ]
            flow = flows[0] if len(flows) == 1 else flows[1] + guidance * (flows[0] - flows[1])
            latents = scheduler.step(flow, t, latents, return_dict=False)[0]
        return self.finish(latents, condition)

    # What a model may have of its own:

    def networks(self) -> list[WanTransformer3DModel]:
        """Those that may run in a forward."""
        return [self.transformer]

    def image_tokens(self, images: Tensor) -> Tensor | None:
        """Tokens of each image, (B, L, D), beside the text's; None where the network takes none."""
        del images
        return None

    def network_at(self, t: Tensor) -> WanTransformer3DModel:
        """The network that runs at time `t` of the scheduler, on the device."""
        del t
        return self.transformer

    def network_input(self, latents: Tensor, condition: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees, and the time of each sample, or of each of its tokens."""
        return torch.cat([latents, condition], dim=1), t.expand(len(latents))

    def finish(self, latents: Tensor, condition: Tensor) -> Tensor:
        """The clip of the last step's latents."""
        del condition
        return latents


def load_transformer(
    folder: Path, *, device: str, compute_dtype: str, name: str = "transformer"
) -> WanTransformer3DModel:
    """A transformer of a folder in the stock layout.

    Raises:
        WorldModelError: it is missing or of another class.
    """
    return load_part(WanTransformer3DModel, folder, name, device=device, dtype=getattr(torch, compute_dtype))


def load_scheduler(folder: Path) -> Scheduler:
    """The scheduler that a folder in the stock layout names.

    Raises:
        WorldModelError: it is missing or of another class.
    """
    name = read_config(folder / "scheduler" / "scheduler_config.json").get("_class_name", "")
    if name not in _SCHEDULERS:
        raise WorldModelError(
            f"the world model in {folder} names the scheduler {name!r}; there are {', '.join(_SCHEDULERS)}"
        )
    kind: Any = _SCHEDULERS[name]
    return load_pretrained(kind, folder, "scheduler", error=WorldModelError, what="world model's scheduler")
