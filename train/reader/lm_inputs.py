"""How a language model of transformers is called with vectors in place of ids, and with several texts in a row.

Axes:  B sample   S token, world tokens included   E the language model's width
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .segments import FLEX, arguments_in_blocks, layer_masks, segment_positions


def without_lora(lm: Any) -> Any:
    """A language model of transformers, that around which peft put its LoRA."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def has_inputs_by_layer(lm: Any) -> bool:
    """Whether each layer takes an embedding of its own beside the hidden state, as in small Gemma-4s."""
    return bool(getattr(lm.config.get_text_config(), "hidden_size_per_layer_input", 0))


def vector_inputs(lm: Any, vectors: Float[Tensor, "B S E"], ids: Int[Tensor, "B S"]) -> dict[str, Tensor]:
    """What `lm` is called with, for vectors some of which stand for no id.

    Args:
        ids: of the text; anything where the vector is a world token's. There each layer's own embedding is that of
            padding, as for the image tokens of a multimodal Gemma-4 (`Gemma4Model.forward`).
    """
    if not has_inputs_by_layer(lm):
        return {"inputs_embeds": vectors}
    text_model = without_lora(lm).model
    with torch.no_grad():
        by_layer = text_model.get_per_layer_inputs(ids)
    return {"inputs_embeds": vectors, "per_layer_inputs": by_layer}


def run_rows(
    lm: Any,
    inputs: dict[str, Tensor],
    mask: Int[Tensor, "B S"],
    segments: Int[Tensor, "B S"] | None = None,
    *,
    is_image: Bool[Tensor, "B S"] | None = None,
    keep: Bool[Tensor, "B S"] | None = None,
) -> Any:
    """What `lm` computes of rows that are padded on the right.

    Args:
        mask: 1 on tokens, 0 on padding.
        segments: for several texts in one row: 0 on what they share, n on the n-th.
        is_image: tokens that a vision tower made, which see each other both ways.
        keep: where logits are wanted; None is everywhere.
    """
    length, config = mask.shape[1], lm.config.get_text_config()
    if config._attn_implementation == FLEX:
        output = lm(**arguments_in_blocks(config, inputs, mask, segments, is_image=is_image, keep=keep))
        if keep is None:
            output.logits = output.logits[:, :length]
        return output
    more: dict[str, Any] = {} if keep is None else {"logits_to_keep": keep}
    if segments is None:
        if is_image is not None:
            more["token_type_ids"] = is_image.long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return lm(**inputs, attention_mask=mask, position_ids=positions, use_cache=False, **more)
    positions = segment_positions(segments, mask)
    masks = layer_masks(config, segments, mask, positions, dtype=lm.dtype, is_image=is_image)
    return lm(**inputs, attention_mask=masks, position_ids=positions, use_cache=False, **more)
