"""Wan's VAE, which Wan 2.1, Cosmos-Predict2 and the worldlet share: frames to latents and back.

Axes:  B sample   C channel   T latent frame   H, W latent row, column   F video frame
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor

from ....pipeline.errors import ConfigError, LatentShapeError, WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import LatentSpec
from ....pipeline.latents.tensors import standardise, unstandardise
from ..network.encode_slices import encode_slices
from ..network.precision import full_float32
from .space import latent_spec_of

_Part = TypeVar("_Part", bound=torch.nn.Module)


class WanLatents:
    """An autoencoder over Wan's VAE; the engines derive from it."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        """
        Args:
            vae: float32: one frame is cheap to encode exactly, and a bfloat16 seed frame spoils the rollout
                (hao-ai-lab/FastVideo#1472).
        """
        self.vae = vae.eval().requires_grad_(False)
        self.device = next(vae.parameters()).device
        self._spec = latent_spec_of(vae.config)

    def move_autoencoder(self, device: str) -> None:
        """Put the autoencoder on another device; latents are then computed there."""
        torch.nn.Module.to(self.vae, torch.device(device))
        self.device = next(self.vae.parameters()).device

    @property
    def spec(self) -> LatentSpec:
        """The space of its latents."""
        return self._spec

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C 1 H W"]:
        """Standardised latents of single frames: the posterior's mode, float32.

        Encoding one frame gives the bits that encoding a whole clip gives for its first frame: the VAE is causal. (Of
        less than 12 cells, a CPU rounds its last convolution otherwise for one frame than for several, by 1e-7.)

        Args:
            images: float32 in [-1, 1].
        """
        return self.encode_video(images.unsqueeze(2))

    def encode_seen(self, pixels: Float[Tensor, "B 3 *frames height width"]) -> Float[Tensor, "B C K H W"]:
        """Standardised latents of images or of videos, as `encode` and `encode_video` have them."""
        return self.encode_video(pixels) if pixels.ndim == 5 else self.encode(pixels)

    def encode_observed(
        self, pixels: Float[Tensor, "B 3 *frames height width"], recipe: Recipe
    ) -> Float[Tensor, "B C K H W"]:
        """The same, for the observed frames of one joint diffusion.

        Raises:
            ConfigError: the recipe's latents are not those of one joint diffusion.
        """
        if not recipe.traits.is_one_diffusion or recipe.chunk_frames:
            chunks = " in chunks" if recipe.chunk_frames else ""
            raise ConfigError(f"a recipe of kind {recipe.kind}{chunks} is not one joint diffusion")
        return self.encode_seen(pixels)

    @torch.inference_mode()
    def encode_video(self, videos: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T H W"]:
        """Standardised latents of real frames: the posterior's mode, float32; T = 1 + (F - 1) / temporal_stride.

        Args:
            videos: float32 in [-1, 1].
        Raises:
            LatentShapeError: F - 1 is not a multiple of the temporal stride; the VAE would silently drop the rest.
        """
        frames, stride = videos.shape[2], self._spec.temporal_stride
        if (frames - 1) % stride:
            raise LatentShapeError(f"a clip has 1 + a multiple of {stride} video frames, got {frames}")
        return standardise(self._posterior(videos).mode(), self._spec)

    @torch.inference_mode()
    def posterior(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C 2 H W"]:
        """Mean and log-variance of the encodings of single frames, both in the standardised space; float32.

        Args:
            images: float32 in [-1, 1].
        """
        posterior = self._posterior(images.unsqueeze(2))
        scale = torch.tensor(self._spec.std, device=self.device).view(1, -1, 1, 1, 1)
        return torch.cat([standardise(posterior.mean, self._spec), posterior.logvar - 2 * torch.log(scale)], dim=2)

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B 3 F height width"]:
        """Video in [-1, 1] of standardised latents; F = 1 + temporal_stride * (T - 1)."""
        raw = unstandardise(latents.to(self.device, torch.float32), self._spec)
        return self.vae.decode(raw, return_dict=False)[0].clamp(-1.0, 1.0)

    @full_float32()
    def _posterior(self, videos: Tensor) -> DiagonalGaussianDistribution:
        parts: list[Tensor] = []
        done = 0
        batch, _, frames, height, width = videos.shape
        for start, end in encode_slices(batch, frames, height, width):
            pixels = videos[start:end].to(self.device, torch.float32)
            parts.append(self.vae.encode(pixels, return_dict=False)[0].parameters[done - start :])
            done = end
        return DiagonalGaussianDistribution(torch.cat(parts))


def load_part(kind: type[_Part], folder: Path, name: str, *, device: str, dtype: torch.dtype = torch.float32) -> _Part:
    """The part in subfolder `name` of a folder in the stock layout, on the device.

    Raises:
        WorldModelError: it is missing or of another class.
    """
    part: _Part = load_pretrained(
        kind, folder, name, error=WorldModelError, what=f"world model's {name}", torch_dtype=dtype, use_safetensors=True
    )
    return part.to(torch.device(device))


def load_autoencoder(folder: Path, *, device: str) -> WanLatents:
    """The VAE of a folder in the stock layout, in float32.

    Raises:
        WorldModelError: it is missing or of another class.
    """
    return WanLatents(load_part(AutoencoderKLWan, folder, "vae", device=device))
