"""A resampler: a fixed number of learned queries look at all cells of a rollout and become its world tokens.

Elsewhere: cutting cells, time (tokens.py), when to use it (docs/tokens.md).

Source: the Perceiver Resampler of Flamingo (Alayrac et al., 2022); here queries do not look at each other.

Axes:  B sample   M query, world token   N patch of cells   D numbers of a patch   F width inside   E the LM's width
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LAYERS = 2
_HEAD = 64  # numbers of one attention head


class CrossAttentionLayer(nn.Module):
    """One layer: queries look at the cells, then think."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // _HEAD)
        self.ask, self.seen = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.back = nn.Linear(width, width, bias=False)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Float[Tensor, "B M F"], cells: Float[Tensor, "B N F"]) -> Float[Tensor, "B M F"]:
        """The queries, richer by what they found."""
        seen = self.seen(cells)
        parts = self.query(self.ask(queries)), self.key(seen), self.value(seen)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.back(found)
        return queries + self.think(queries)


class Resampler(nn.Module):
    """Cells with their positions in, `queries` vectors out."""

    def __init__(self, queries: int, width: int) -> None:
        """
        Args:
            queries: world tokens there will be. width: of cells and queries; a multiple of 64, or below it.
        """
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.layers = nn.ModuleList(CrossAttentionLayer(width) for _ in range(_LAYERS))

    def forward(self, cells: Float[Tensor, "B N F"]) -> Float[Tensor, "B M F"]:
        """What the queries found in the cells."""
        found = self.queries.expand(len(cells), -1, -1)
        for layer in self.layers:
            found = layer(found, cells)
        return found
