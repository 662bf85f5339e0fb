"""Several texts in one row: where their tokens stand, and what each may see.

Axes:  B sample   S token, world tokens included
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def segment_positions(segments: Int[Tensor, "B S"], mask: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Where each token would stand if its segment followed the shared tokens (segment 0) alone."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts_segment = nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    start = torch.where(starts_segment, index, 0).cummax(-1).values
    shared = ((segments == 0) & (mask == 1)).sum(-1, keepdim=True)
    return torch.where(segments > 0, shared + index - start, index)


def segment_masks(
    segments: Int[Tensor, "B S"],
    mask: Int[Tensor, "B S"],
    positions: Int[Tensor, "B S"],
    *,
    window: int | None,
    dtype: torch.dtype,
    is_image: Bool[Tensor, "B S"] | None = None,
) -> dict[str, Float[Tensor, "B 1 S S"]]:
    """What is added to attention scores, by kind of layer as in transformers' Gemma: 0 to see, else the dtype's least.

    A token sees the shared tokens and its own segment, up to itself; in layers with a sliding window, only those fewer
    than `window` positions back. Tokens of an image (`is_image`), one image a row, see each other both ways.
    """
    same_text = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    visible = (same_text & (mask[:, None, :] == 1)).tril()
    if is_image is not None:
        visible = visible | (is_image[:, None, :] & is_image[:, :, None])
    kinds = {"full_attention": visible}
    if window is not None:
        kinds["sliding_attention"] = visible & (positions[:, None, :] > positions[:, :, None] - window)
    lowest = torch.finfo(dtype).min
    return {
        name: torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(~allowed, lowest)[:, None]
        for name, allowed in kinds.items()
    }
