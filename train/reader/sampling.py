"""The next token of a text that is generated: the likeliest, or one that is drawn.

Axes:  B row   V vocabulary
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
