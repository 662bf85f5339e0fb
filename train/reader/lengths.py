"""The few lengths that rows get for flex attention, whose kernels are compiled by length. No torch."""

from __future__ import annotations

BLOCK = 128
"""Tokens by tokens of which flex attention skips those that see nothing: torch's default, and each length divides."""
_STEPS = 16  # of one block each, before they get longer: then padding stays below an eighth


def padded_length(tokens: int) -> int:
    """The next length that rows may have: every 128 tokens up to 2,048, then eight lengths until the double.

    So there are 16 lengths up to 2,048 tokens and 32 up to 8,192, and all of them are whole blocks.
    """
    step = BLOCK
    while tokens > _STEPS * step:
        step *= 2
    return -(-tokens // step) * step
