"""The protocols of a world model: encode, roll out, decode.

Training uses them to roll out live without importing an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from .recipe import Recipe
from .spec import LatentSpec


@runtime_checkable
class Encoder(Protocol):
    """The part of a world model that makes latents of what is seen: all that some have. Images are float32 in [-1, 1],
    RGB."""

    @property
    def spec(self) -> LatentSpec:
        """The space its latents live in."""
        ...

    def encode(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C 1 H W"]:
        """Standardised latents of single frames: the posterior's mode, float32."""
        ...


@runtime_checkable
class Autoencoder(Encoder, Protocol):
    """One that also encodes videos and makes pictures of latents. A family says which of these its engines lack."""

    def encode_video(self, videos: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T H W"]:
        """Standardised float32 latents of real frames, float32 in [-1, 1]; T = 1 + (F - 1) / temporal_stride.

        Frame 0 equals `encode` of the videos' first frames.
        """
        ...

    def posterior(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C 2 H W"]:
        """Mean and log-variance of the encodings of single frames, standardised float32."""
        ...

    def decode(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B 3 F height width"]:
        """Video in [-1, 1] of standardised latents; F = 1 + temporal_stride * (T - 1)."""
        ...


@runtime_checkable
class WorldModel(Encoder, Protocol):
    """Rolls images forward in a latent space."""

    def rollout(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B C T H W"]:
        """Standardised float32 latents of what is seen and its predicted future, in one joint diffusion.

        What is seen is one image each (no frame axis) or the first frames of videos; its latents come first, as
        `encode` or `encode_video` gives them. Each sample's noise is seeded by the recipe and its key alone.

        Raises:
            ConfigError: this world model cannot be shown so many frames.
        """
        ...


@runtime_checkable
class HasHiddenStates(WorldModel, Protocol):
    """One whose network has blocks to look behind. A family says how many (`HasBlocks`)."""

    def hidden(
        self, seen: Float[Tensor, "B 3 height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B D T rows columns"]:
        """Hidden states of images and their future, float32: the tokens behind block `recipe.hidden_block`, in the
        first forward of a rollout, which ends there.

        Frame 0 holds the encoding of the image in place of its tokens. `recipe.hidden_width` is D, or the block's.

        Raises:
            ConfigError: this world was loaded without the recipe's prompts.
        """
        ...
