"""A resampler: a fixed number of learned queries attend to all cells of a rollout and become its world tokens.

Source: the Perceiver Resampler of Flamingo (Alayrac et al., 2022); here queries do not attend to each other.

Axes:  B sample   M query, world token   N patch of cells   D numbers of a patch   F width inside   E the LM's width
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LAYERS = 2
_HEAD = 64  # numbers of one attention head


class CrossAttentionLayer(nn.Module):
    """One layer: queries attend to the cells, then pass through an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // _HEAD)
        # these names are in the weights of saved runs
        self.ask, self.seen = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.back = nn.Linear(width, width, bias=False)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Float[Tensor, "B M F"], cells: Float[Tensor, "B N F"]) -> Float[Tensor, "B M F"]:
        """The queries, each with what it attended to added."""
        normed = self.seen(cells)
        projections = self.query(self.ask(queries)), self.key(normed), self.value(normed)
        q, k, v = (projection.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in projections)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.back(attended)
        return queries + self.think(queries)


class Resampler(nn.Module):
    """A fixed number of vectors from any number of cells."""

    def __init__(self, queries: int, width: int) -> None:
        """
        Args:
            queries: number of world tokens. width: of cells and queries; a multiple of 64, or less than 64.
        """
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.layers = nn.ModuleList(CrossAttentionLayer(width) for _ in range(_LAYERS))

    def forward(self, cells: Float[Tensor, "B N F"]) -> Float[Tensor, "B M F"]:
        """World tokens of cells that carry their positions."""
        queries = self.queries.expand(len(cells), -1, -1)
        for layer in self.layers:
            queries = layer(queries, cells)
        return queries
