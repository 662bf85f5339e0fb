"""Several texts in one row: where their tokens stand, and what each may see.

Axes:  B sample   S token, world tokens included
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from .context_budget import WINDOWED_THROUGHOUT
from .lengths import BLOCK, padded_length
from .memory import PAIRS_AT_ONCE

FLEX = "flex_attention_blocks"
"""What transformers calls our flex attention (attention.py), which takes its masks as blocks."""


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
    """`segment_masks` as the text configuration of a language model needs them.

    They are by kind of layer, or those of all layers where they are of one kind.
    """
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None and config.model_type not in WINDOWED_THROUGHOUT:
        window = None
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
    than `window` positions back. Tokens of an image (`is_image`), one image a row, see each other both ways. Padding
    sees itself alone: it costs flex attention a block, and no token is without any.
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
    """The same as `segment_masks` for flex attention, which skips blocks that see nothing. No mask is made whole."""
    return {name: _blocks(sees, mask) for name, sees in _kinds(segments, mask, positions, window, is_image).items()}


def _blocks(sees: _Sees, mask: Tensor) -> BlockMask:
    """What torch's create_block_mask gives, which makes the whole mask to find the blocks; here some rows at a time."""
    (batch, length), device = mask.shape, mask.device
    count = -(-length // BLOCK)
    step = BLOCK * max(1, PAIRS_AT_ONCE // (batch * BLOCK * length))
    row, others = torch.arange(batch, device=device)[:, None, None], torch.arange(length, device=device)[None, None]
    pairs_by_block: list[Tensor] = []  # pairs that see each other, by block
    for start in range(0, length, step):
        tokens = torch.arange(start, min(start + step, length), device=device)[None, :, None]
        visible = sees(row, None, tokens, others).expand(batch, -1, -1)
        rest = (0, -visible.shape[2] % BLOCK, 0, -visible.shape[1] % BLOCK)
        by_block = nn.functional.pad(visible, rest).unflatten(2, (count, BLOCK)).unflatten(1, (-1, BLOCK))
        pairs_by_block.append(by_block.sum((2, 4)))
    pairs = torch.cat(pairs_by_block, 1)[:, None]
    is_full = pairs == BLOCK**2
    block_lists = [*_in_order((pairs > 0) & ~is_full), *_in_order(is_full)]
    return BlockMask.from_kv_blocks(*block_lists, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(length, length))


def _in_order(chosen: Bool[Tensor, "B 1 Q K"]) -> tuple[Int[Tensor, "B 1 Q"], Int[Tensor, "B 1 Q K"]]:
    """How many blocks are chosen in each row of blocks, and which: their numbers first, the others behind."""
    order = torch.argsort(chosen.byte(), stable=True, dim=-1, descending=True)
    return chosen.sum(-1).int(), order.int().contiguous()


def arguments_in_blocks(
    config: Any,
    inputs: dict[str, Tensor],
    mask: Int[Tensor, "B S"],
    segments: Int[Tensor, "B S"] | None,
    *,
    is_image: Bool[Tensor, "B S"] | None,
    keep: Bool[Tensor, "B S"] | None,
) -> dict[str, Any]:
    """What a language model with flex attention is called with: rows padded to one of a few lengths, and its blocks.

    Args:
        config: the text configuration.
        inputs: `input_ids` (B, S), or `inputs_embeds` (B, S, E).
        segments: None is one text a row.
        keep: where logits are wanted; None is everywhere, then those behind the row's own length are to be cut off.
    """
    more = padded_length(mask.shape[1]) - mask.shape[1]

    def padded(tensor: Tensor) -> Tensor:
        behind = (0, 0, 0, more) if tensor.ndim == 3 else (0, more)
        return nn.functional.pad(tensor, behind)

    positions = (mask.cumsum(-1) - 1).clamp(min=0) if segments is None else segment_positions(segments, mask)
    segments, mask, positions = (
        padded(torch.zeros_like(mask) if t is None else t) for t in (segments, mask, positions)
    )
    is_image = None if is_image is None else padded(is_image)
    blocks = segment_blocks(segments, mask, positions, window=config.sliding_window, is_image=is_image)
    kept = {} if keep is None else {"logits_to_keep": padded(keep)}
    rows = {name: padded(tensor) for name, tensor in inputs.items()}
    return {**rows, "attention_mask": blocks, "position_ids": positions, "use_cache": False, **kept}


_Sees = Callable[[Any, Any, Any, Any], Tensor]
"""Of row, head, and places of two tokens: whether the first sees the second."""


def _kinds(
    segments: Tensor, mask: Tensor, positions: Tensor, window: int | None, is_image: Tensor | None
) -> dict[str, _Sees]:
    """What a token sees, by kind of layer."""

    def sees(row: Any, head: Any, token: Any, other: Any) -> Tensor:  # noqa: ARG001 - flex_attention names a head
        of_text = (segments[row, other] == 0) | (segments[row, other] == segments[row, token])
        visible = of_text & (mask[row, token] == 1) & (mask[row, other] == 1) & (token >= other)
        visible = visible if is_image is None else visible | (is_image[row, token] & is_image[row, other])
        return visible | (token == other)

    def sees_near(row: Any, head: Any, token: Any, other: Any) -> Tensor:
        assert window is not None
        return sees(row, head, token, other) & (positions[row, other] > positions[row, token] - window)

    return {"full_attention": sees} if window is None else {"full_attention": sees, "sliding_attention": sees_near}
