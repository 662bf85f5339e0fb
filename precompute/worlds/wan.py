"""The Wan 2.1 image-to-video engine: it denoises the future of a first frame.

Given the same draws, its result equals that of diffusers' `WanImageToVideoPipeline`, for a batch of images and without
decoding. The network gets the image three times: the VAE's encoding of a clip that is the image and then grey, beside
the noise; four mask channels that are one at the first latent frame; CLIP's tokens of the image, beside the text's.

Axes:  B sample   C channel   T latent frame   H, W latent row, column   F video frame
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from ...pipeline.errors import ConfigError, WorldModelError
from ...pipeline.files.pretrained import load_pretrained
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import video_frames
from ...pipeline.latents.tensors import draw_noise
from ..media.images import to_image
from .family import read_config
from .precision import full_float32
from .text_embeddings import FollowsPrompts, TextEmbeddings
from .text_rows import stack_prompts
from .wan_vae import WanLatents, load_part

Scheduler = UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler
_SCHEDULERS: dict[str, type[Scheduler]] = {
    cls.__name__: cls for cls in (UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler)
}


class WanWorld(FollowsPrompts, WanLatents):
    """A `WorldModel` over the parts of a Wan 2.1 image-to-video pipeline."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: WanTransformer3DModel,
        scheduler: Scheduler,
        image_encoder: CLIPVisionModel,
        image_processor: CLIPImageProcessorPil,
        *,
        text: TextEmbeddings | None = None,
    ) -> None:
        """
        Args:
            vae, image_encoder: float32. transformer: float32 or bfloat16, all on one device.
            scheduler: its config states the noise levels and the solver; each rollout uses a copy of it.
            text: embeddings of the recipe's prompts, the empty one included; with None it can encode, not roll out.
        """
        super().__init__(vae)
        self.transformer = transformer.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.image_encoder = image_encoder.eval().requires_grad_(False)
        self.image_processor = image_processor
        self._text = text
        self.dtype: torch.dtype = transformer.dtype

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> WanWorld:
        """Load all but the text encoder of a folder in the stock layout.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """
        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        dtype = getattr(torch, compute_dtype)
        transformer = load_part(WanTransformer3DModel, folder, "transformer", device=device, dtype=dtype)

        def load(kind: Any, part: str, **options: Any) -> Any:
            what = f"world model's {part}"
            return load_pretrained(kind, folder, part, error=WorldModelError, what=what, **options)

        # float32 as its model card has it: it is one image
        image_encoder = load(CLIPVisionModel, "image_encoder", dtype=torch.float32, use_safetensors=True)
        # the one that runs on Pillow: the other rounds differently, and whether it is there depends on torchvision
        image_processor = load(CLIPImageProcessorPil, "image_processor")
        name = read_config(folder / "scheduler" / "scheduler_config.json").get("_class_name", "")
        if name not in _SCHEDULERS:
            raise WorldModelError(
                f"the world model in {folder} names the scheduler {name!r}; there are {', '.join(_SCHEDULERS)}"
            )
        scheduler = load(_SCHEDULERS[name], "scheduler")
        torch.nn.Module.to(image_encoder, torch.device(device))
        return cls(vae, transformer, scheduler, image_encoder, image_processor, text=text)

    def compile_blocks(self) -> None:
        """As `Compilable` has it."""
        self.transformer.compile_repeated_blocks(dynamic=False)

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
        if not recipe.traits.is_one_diffusion or recipe.chunk_frames:
            raise ConfigError(f"a recipe of kind {recipe.kind} is not one joint diffusion")
        if seen.ndim == 5 and seen.shape[2] != 1:
            raise ConfigError(f"Wan 2.1 image-to-video takes one frame, not {seen.shape[2]}")
        images = seen[:, :, 0] if seen.ndim == 5 else seen
        if recipe.rollout_steps == 0:
            return self.encode(images)
        text, negative = stack_prompts(self._text)
        if text is None:
            raise ConfigError("Wan 2.1 was loaded without the embeddings of its prompt, which it needs even if empty")
        condition = self.condition(images, recipe.rollout_steps * recipe.stride)
        channels, (frames, height, width) = self._spec.channels, condition.shape[2:]
        noise = draw_noise(recipe, keys, (channels, frames, height, width))
        latents = self.denoise(
            images,
            condition,
            noise.to(self.device),
            denoise_steps=recipe.denoise_steps,
            guidance=recipe.guidance,
            text=text,
            negative_text=negative,
        )
        latents[:, :, :1] = condition[:, -channels:, :1]  # the loop gives its own rendering of the observed frame
        return latents[:, :, :: recipe.stride].contiguous()

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
        shape = (self._spec.channels, *condition.shape[2:])
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

    @torch.inference_mode()
    def condition(
        self, images: Float[Tensor, "B 3 height width"], rollout_steps: int
    ) -> Float[Tensor, "B mask_and_C T H W"]:
        """The network's input beside the noise: a mask of the observed frame, and the encoding of the image and grey.

        The encoding's first frame equals `encode`, since the VAE is causal; the mask has `temporal_stride` channels.

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
        condition: Float[Tensor, "B mask_and_C T H W"],
        noise: Float[Tensor, "B C T H W"],
        *,
        denoise_steps: int,
        text: Float[Tensor, "texts L D"],
        negative_text: Float[Tensor, "negatives L D"] | None = None,
        guidance: float = 1.0,
    ) -> Float[Tensor, "B C T H W"]:
        """From pure noise to a clip, with the steps of the folder's scheduler; float32.

        Args:
            images: float32 in [-1, 1], for CLIP. condition: of `condition`. noise: unit normal.
            denoise_steps: forwards, twice as many with guidance.
            text, negative_text: prompt embeddings, one for all or one for each sample, padded to 512 as the pipeline
                pads them; the second with guidance.
            guidance: flow = uncond + guidance * (cond - uncond) above 1.0.
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
        image_tokens = self._image_tokens(images).to(self.dtype)
        # a new scheduler each time: multistep solvers keep state
        scheduler: Any = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(denoise_steps, device=self.device)
        latents = noise
        for t in scheduler.timesteps:
            hidden = torch.cat([latents, condition], dim=1).to(self.dtype)
            flows = [
                self.transformer(
                    hidden_states=hidden,
                    timestep=t.expand(len(noise)),
                    encoder_hidden_states=context,
                    encoder_hidden_states_image=image_tokens,
                    return_dict=False,
                )[0]
                for context in contexts
            ]
            flow = flows[0] if len(flows) == 1 else flows[1] + guidance * (flows[0] - flows[1])
            latents = scheduler.step(flow, t, latents, return_dict=False)[0]
        return latents

    def _image_tokens(self, images: Tensor) -> Tensor:
        """CLIP's tokens of each image, (B, L, D): its last layer but one."""
        pictures = [to_image(image) for image in images.cpu()]
        pixels = self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        hidden = self.image_encoder(pixels.to(self.device), output_hidden_states=True).hidden_states
        return hidden[-2]
