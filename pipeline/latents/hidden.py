"""Latents of hidden states: tokens behind a block of a network, normed and projected, behind the encoded image.

A token's values are normed over its width: some channels of a residual stream are hundreds of times larger than others
and may go beyond float16. A norm needs no statistics, so a latent depends on its recipe and key alone. The projection
is an orthonormal matrix, drawn by the recipe's seed and never trained.

Axes:  B sample   C channel of the encoding   T latent frame   H, W latent row, column   N token, T * h * w
       h, w row, column of tokens, H / patch   W_in width of the network   D channel of a stored token
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm, pad

from .recipe import Recipe


def hidden_latents(
    observed: Float[Tensor, "B C 1 H W"], tokens: Float[Tensor, "B N W_in"], recipe: Recipe
) -> Float[Tensor, "B D T h w"]:
    """What a store of kind hidden holds, float32.

    Args:
        observed: standardised encoding of the images. tokens: behind the block, of all frames of the clip, the observed
            one first. They are those of frames `recipe.stride` apart that are kept.
    """
    frames = 1 + recipe.rollout_steps * recipe.stride
    height, width = observed.shape[3:]
    patch = math.isqrt(frames * height * width // tokens.shape[1])
    normed = layer_norm(tokens.float(), tokens.shape[2:])
    if recipe.hidden_width:
        normed = normed @ projection(tokens.shape[2], recipe.hidden_width, recipe.hidden_projection).to(normed.device)
    states: Tensor = normed.reshape(len(normed), frames, height // patch, width // patch, -1).permute(0, 4, 1, 2, 3)
    first = patches_of(observed.float(), patch, states.shape[1], seed=recipe.hidden_projection)
    return torch.cat([first, states[:, :, recipe.stride :: recipe.stride]], dim=2).contiguous()


def patches_of(
    observed: Float[Tensor, "B C 1 H W"], patch: int, channels: int, *, seed: int
) -> Float[Tensor, "B channels 1 h w"]:
    """The encoded image with the tokens' rows and columns, as many of its numbers as there are channels.

    A token's patch is turned by a cosine transform, its means first and its finest detail last. What fits is kept, and
    zeros fill the rest; of an encoding that is wider even than that, the means are projected.
    """
    rows, columns = observed.shape[3] // patch, observed.shape[4] // patch
    cells = observed.reshape(*observed.shape[:3], rows, patch, columns, patch)
    turned = torch.einsum("bcthpwq,kpq->bkcthw", cells, _cosines(patch).to(cells.device)).flatten(1, 2)
    count = observed.shape[1]
    if count > channels:
        means, matrix = turned[:, :count], projection(count, channels, seed).to(turned.device)
        return torch.einsum("bcthw,cd->bdthw", means, matrix)
    kept = turned[:, :channels]
    return pad(kept, (0, 0) * 3 + (0, channels - kept.shape[1]))


@lru_cache(maxsize=8)
def projection(width: int, channels: int, seed: int) -> Float[Tensor, "width channels"]:
    """A matrix of orthonormal columns, uniformly drawn; float32. The same seed gives the same on every machine, but for
    a last bit."""
    normal = torch.randn(width, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix, triangle = cast(tuple[Tensor, Tensor], torch.linalg.qr(normal))  # pyright: ignore[reportUnknownMemberType]
    return (matrix * torch.sign(torch.diagonal(triangle))).float()  # libraries choose other signs


@lru_cache(maxsize=8)
def _cosines(patch: int) -> Float[Tensor, "patch_squared patch patch"]:
    """The orthonormal basis of a cosine transform of a patch, the mean first, then by growing frequency."""
    place = torch.arange(patch, dtype=torch.float64)
    waves = torch.cos(math.pi * place[:, None] * (place + 0.5) / patch) * math.sqrt(2 / patch)
    waves[0] = 1 / math.sqrt(patch)
    order = sorted(((u, v) for u in range(patch) for v in range(patch)), key=lambda uv: (sum(uv), uv))
    return torch.stack([torch.outer(waves[u], waves[v]) for u, v in order]).float()
