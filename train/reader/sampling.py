"""Generate a text token by token: each is the likeliest, or drawn.

Axes:  B row   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def draw_token(
    logits: Float[Tensor, "B V"], *, temperature: float, top_p: float, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """A token of each row: the likeliest, or one drawn from the smallest set of likeliest ones that has `top_p`.

    Source: A. Holtzman et al., ICLR 2020, nucleus sampling. It is drawn on the CPU, so that a seed means the same on
    every device.
    """
    if not temperature:
        return logits.argmax(-1)
    shares, ids = (logits.float().cpu() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= top_p, 0.0)  # the likeliest always stays
    return ids.gather(-1, torch.multinomial(shares, 1, generator=generator))[:, 0].to(logits.device)


def continue_text(
    lm: Any,
    inputs: dict[str, Tensor],
    mask: Tensor,
    ends: Sequence[int],
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """New ids (B, M) behind rows that are padded on the left; M <= max_new_tokens.

    It does what transformers' own `generate` does not: vectors for a multimodal model, draws with a seed.

    Args:
        lm: a causal language model of transformers.
        inputs: ids or vectors of the rows, and what else `lm` takes for them. mask: (B, S), 1 on text.
        ends: ids that end a text; a row that has ended is filled up with the first of them.
        choose: logits (B, V) -> the next id of each row.
    """
    cache, id_columns, ending = None, list[Tensor](), torch.tensor(ends, device=mask.device)
    is_done = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    while len(id_columns) < max_new_tokens and not bool(is_done.all()):
        length = mask.shape[1] if cache is None else 1
        out = lm(
            **inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -length:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        new_ids = choose(out.logits[:, -1]).masked_fill(is_done, ends[0])
        id_columns.append(new_ids)
        is_done = is_done | torch.isin(new_ids, ending)
        inputs, mask = {"input_ids": new_ids[:, None]}, nn.functional.pad(mask, (0, 1), value=1)
    return torch.stack(id_columns, 1)
