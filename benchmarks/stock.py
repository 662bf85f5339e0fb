"""Diffusers' own side of a comparison: its pipeline, and one forward of its transformer beside our lean one.

Axes:  B sample   C channel   T latent frame   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, Cosmos2VideoToWorldPipeline, CosmosTransformer3DModel
from diffusers.models.transformers import transformer_cosmos
from torch import Tensor

from theworld.precompute.worlds.cosmos.forward import LeanTransformer

TEXT_TOKENS = 512
"""To which the pipeline pads a text; without one they are zeros."""


class _NothingToCheck:
    """The pipeline insists on a checker of text and frames, and here is neither."""

    def to(self, *_: object) -> None: ...


class _NearestResize:
    """Of torchvision, what the stock transformer does to its padding mask: a CPU has no wheel of it beside ours."""

    class InterpolationMode:
        NEAREST = "nearest"

    class functional:  # noqa: N801
        @staticmethod
        def resize(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
            return torch.nn.functional.interpolate(mask, size=size, mode=interpolation)


def stock_pipeline(
    transformer: CosmosTransformer3DModel, vae: AutoencoderKLWan, scheduler: Any
) -> Cosmos2VideoToWorldPipeline:
    """The pipeline without what only texts and frames need; quiet."""
    _stand_in_for_torchvision()
    pipeline = Cosmos2VideoToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
        safety_checker=_NothingToCheck(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(
    pipeline: Cosmos2VideoToWorldPipeline,
    images: Tensor,
    seeds: Sequence[int],
    *,
    rollout_steps: int,
    denoise_steps: int,
) -> Tensor:
    """Latents (B, C, T, H, W) of images (B, 3, height, width) in [-1, 1], as a user without a prompt makes them."""
    config, device, dtype = pipeline.transformer.config, pipeline.transformer.device, pipeline.transformer.dtype
    return pipeline(
        image=(images + 1) / 2,
        prompt_embeds=torch.zeros(len(images), TEXT_TOKENS, config.text_embed_dim, device=device, dtype=dtype),
        height=images.shape[2],
        width=images.shape[3],
        num_frames=1 + 4 * rollout_steps,
        num_inference_steps=denoise_steps,
        guidance_scale=1.0,
        fps=None,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).frames


def forward_inputs(
    stock: CosmosTransformer3DModel, batch: int, frames: int, height: int, width: int, *, observed: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, the noise level of each frame, and the mask of the observed frames; on the CPU.

    Args:
        frames, height, width: of the latent. observed: frames that are given.
    """
    generator = torch.Generator().manual_seed(3)
    channels = stock.config["out_channels"]
    hidden = torch.randn(batch, channels, frames, height, width, generator=generator)
    timestep, mask = torch.full((batch, 1, frames, 1, 1), 0.7), torch.zeros(batch, 1, frames, height, width)
    timestep[:, :, :observed], mask[:, :, :observed] = 1e-4, 1.0
    return hidden.to(stock.dtype), timestep.to(stock.dtype), mask.to(stock.dtype)


def both_forwards(
    stock: CosmosTransformer3DModel,
    hidden: Tensor,
    timestep: Tensor,
    mask: Tensor,
    *,
    text: Tensor | None = None,
    fps: float | None = None,
) -> list[Callable[[], Tensor]]:
    """One forward of a transformer, and of its lean form.

    Args:
        hidden, timestep, mask: of `forward_inputs`. text: (B, L, D); None is a token of zeros for the stock one.
    """
    lean, pads = LeanTransformer(stock), stock.config["concat_padding_mask"]
    if pads:
        _stand_in_for_torchvision()
    embedding = hidden.new_zeros(len(hidden), 1, stock.config["text_embed_dim"]) if text is None else text
    padding = {"padding_mask": hidden.new_zeros(1, 1, *hidden.shape[-2:])} if pads else {}
    channels = torch.cat([mask, torch.zeros_like(mask)], dim=1) if pads else mask

    @torch.inference_mode()
    def theirs() -> Tensor:
        return stock(
            hidden_states=hidden,
            timestep=timestep,
            encoder_hidden_states=embedding,
            condition_mask=mask,
            fps=fps,
            return_dict=False,
            **padding,
        )[0]

    @torch.inference_mode()
    def ours() -> Tensor:
        return lean(hidden, timestep, text, mask=channels, fps=fps)

    return [theirs, ours]


def _stand_in_for_torchvision() -> None:
    if not hasattr(transformer_cosmos, "transforms"):
        transformer_cosmos.transforms = _NearestResize
