"""The chunks of AnyFlow FAR's clips, and the operations they cost. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from ....pipeline.files.limits import MAX_LAYERS
from ..arithmetic import TEXT_TOKENS

CHUNK_FRAMES = 3
"""Latent frames of a chunk, after the first, which is one frame. Source: `chunk_partition` of
`AnyFlowFARTransformer3DModel`, whose clips of 21 frames end with a chunk of two."""


def chunk_sizes(frames: int) -> list[int]:
    """Latent frames of each chunk of a clip, which is made of whole ones."""
    return [1] + [CHUNK_FRAMES] * -(-(frames - 1) // CHUNK_FRAMES)


def chunks_flops(
    config: Mapping[str, Any], observed_frames: int, frames: int, height: int, width: int, denoise_steps: int
) -> float:
    """Predicting the chunks of a clip beyond its known frames (forward.py); a multiply and an add are two.

    Args:
        config: of the transformer. known, frames, height, width: of the latent.
    """
    if config["num_layers"] > MAX_LAYERS:
        raise ValueError("more layers than a transformer has")
    side, far_side = config["patch_size"][1], config["compressed_patch_size"][1]
    full, far = ((height // each) * (width // each) for each in (side, far_side))
    d = config["num_attention_heads"] * config["attention_head_dim"]

    def layers(tokens: int, pairs: int) -> float:
        """Of tokens that see others in so many pairs, and the text."""
        text = 4 * tokens * d**2 + 4 * tokens * TEXT_TOKENS * d
        return config["num_layers"] * (8 * tokens * d**2 + 4 * pairs * d + text + 4 * tokens * d * config["ffn_dim"])

    def patches(tokens: int, cells: int) -> float:
        """Into the network, or out of it."""
        return 2 * tokens * d * cells * config["in_channels"]

    sizes, recent = chunk_sizes(frames), config["full_chunk_limit"] - 1
    total, far_before = 0.0, 0
    for number in range(len(chunk_sizes(observed_frames)), len(sizes)):
        far_now = max(0, number - recent)
        became_far = [size * far for size in sizes[far_before:far_now]]
        again = [size * full for size in sizes[far_now:number]]
        parts, kept = became_far + again, sum(sizes[:far_before]) * far
        past = kept + sum(parts)
        pairs = sum(part * (kept + end) for part, end in zip(parts, accumulate(parts), strict=True))
        total += layers(sum(parts), pairs) + patches(sum(became_far), far_side**2) + patches(sum(again), side**2)
        chunk = sizes[number] * full
        total += denoise_steps * (layers(chunk, chunk * (past + chunk)) + 2 * patches(chunk, side**2))
        far_before = far_now
    text = 2 * TEXT_TOKENS * (config["text_dim"] * d + d**2) + config["num_layers"] * 4 * TEXT_TOKENS * d**2
    return total + text
