"""Several texts in one row: where their tokens stand, and what each may see.

Axes:  B sample   S token, world tokens included
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from .context_budget import WINDOWED_THROUGHOUT


def segment_positions(segments: Int[Tensor, "B S"], mask: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Where each token would stand if its segment followed the shared tokens (segment 0) alone."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts_segment = nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    start = torch.where(starts_segment, index, 0).cummax(-1).values
    shared = ((segments == 0) & (mask == 1)).sum(-1, keepdim=True)
    return torch.where(segments > 0, shared + index - start, index)


def layer_masks(
    config: Any,
    segments: Int[Tensor, "B S"],
    mask: Int[Tensor, "B S"],
    positions: Int[Tensor, "B S"],
    *,
    dtype: torch.dtype,
    is_image: Bool[Tensor, "B S"] | None = None,
) -> Any:
    """`segment_masks`, or `segment_blocks`, as the text configuration of a language model needs them: by kind of layer,
    or of all layers where they are of one kind."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None and config.model_type not in WINDOWED_THROUGHOUT:
        window = None
    if config._attn_implementation == "flex_attention":
        made: dict[str, Any] = segment_blocks(segments, mask, positions, window=window, is_image=is_image)
    else:
        made = segment_masks(segments, mask, positions, window=window, dtype=dtype, is_image=is_image)
    if kinds is not None:
        return made
    return made["full_attention" if window is None else "sliding_attention"]


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
    batch, length = segments.shape
    row = torch.arange(batch, device=mask.device)[:, None, None]
    index = torch.arange(length, device=mask.device)
    lowest = torch.finfo(dtype).min
    made: dict[str, Tensor] = {}
    for name, sees in _kinds(segments, mask, positions, window, is_image).items():
        allowed = sees(row, None, index[None, :, None], index[None, None, :])
        blank = torch.zeros(allowed.shape, dtype=dtype, device=mask.device)
        made[name] = blank.masked_fill(~allowed, lowest)[:, None]
    return made


def segment_blocks(
    segments: Int[Tensor, "B S"],
    mask: Int[Tensor, "B S"],
    positions: Int[Tensor, "B S"],
    *,
    window: int | None,
    is_image: Bool[Tensor, "B S"] | None = None,
) -> dict[str, BlockMask]:
    """The same as `segment_masks` for flex_attention, which skips blocks that see nothing: no mask is kept whole."""
    batch, length = segments.shape
    return {
        name: create_block_mask(sees, batch, None, length, length, device=str(mask.device))
        for name, sees in _kinds(segments, mask, positions, window, is_image).items()
    }


_Sees = Callable[[Any, Any, Any, Any], Tensor]
"""Of row, head, and places of two tokens: whether the first sees the second."""


def _kinds(
    segments: Tensor, mask: Tensor, positions: Tensor, window: int | None, is_image: Tensor | None
) -> dict[str, _Sees]:
    """What a token sees, by kind of layer."""

    def sees(row: Any, head: Any, token: Any, other: Any) -> Tensor:  # noqa: ARG001 - flex_attention names a head
        of_text = (segments[row, other] == 0) | (segments[row, other] == segments[row, token])
        visible = of_text & (mask[row, other] == 1) & (token >= other)
        return visible if is_image is None else visible | (is_image[row, token] & is_image[row, other])

    def sees_near(row: Any, head: Any, token: Any, other: Any) -> Tensor:
        assert window is not None
        return sees(row, head, token, other) & (positions[row, other] > positions[row, token] - window)

    return {"full_attention": sees} if window is None else {"full_attention": sees, "sliding_attention": sees_near}
