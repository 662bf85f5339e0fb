"""The space of latents of hidden states. Needs no torch."""

from __future__ import annotations

from .recipe import Recipe
from .spec import LatentSpec


def hidden_spec(world: LatentSpec, recipe: Recipe, *, width: int, patch: int) -> LatentSpec:
    """The space of a recipe's hidden states.

    Args:
        world: the space of the world model's own latents. width: of a block's tokens. patch: latent rows, and columns,
            that one token covers.
    """
    channels = recipe.hidden_width or width
    return LatentSpec(
        channels=channels,
        spatial_stride=world.spatial_stride * patch,
        temporal_stride=world.temporal_stride,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
