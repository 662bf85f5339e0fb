"""Rollouts beyond a world model's window: decode a chunk, encode its last frames again, and roll on from them.

A latent from the middle of a clip cannot begin one: after the first, each encodes four video frames given the past, and
none of that kind was ever seen at a clip's beginning. So a chunk hands over pixels. Blur adds up from chunk to chunk
(NVIDIA/cosmos#54), and each costs a decode and an encode; within the window one chunk is cheaper and better.

Elsewhere: one chunk (the world model's `rollout`), what a recipe says of chunks (pipeline/latents/recipe.py).

Source: the `video2world_lvg` example of nvidia-cosmos/cosmos-predict2, which also hands over 1 or 5 frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.world_model import WorldModel


def roll_out_in_chunks(
    world: WorldModel, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
) -> Float[Tensor, "B C T H W"]:
    """Standardised float32 latents of what is seen and its predicted future, as many chunks as that takes.

    The first chunk is the rollout of `chunk_frames` frames, bit for bit, and every chunk is made whole and cut where
    the clip ends: so a longer recipe begins with the latents of a shorter one. A later chunk's noise belongs to the
    key and the chunk's number, and its frames that repeat the end of the one before are dropped.

    Args:
        seen: float32 in [-1, 1], images or the first frames of videos. keys: one per input.
    """
    frames = 1 + recipe.rollout_steps * recipe.stride
    chunk = recipe.model_copy(
        update={"rollout_steps": recipe.chunk_frames - 1, "stride": 1, "chunk_frames": 0, "chunk_context": 0}
    )
    repeated = 1 + (recipe.chunk_context - 1) // world.spec.temporal_stride
    latents = world.rollout(seen, keys, chunk)
    parts, made = [latents], recipe.chunk_frames
    while made < frames:
        # a chunk is decoded from its beginning: its last latent alone would be one frame and not four
        end = world.decode(latents)[:, :, -recipe.chunk_context :]
        latents = world.rollout(end, [f"{key} chunk {len(parts)}" for key in keys], chunk)
        parts.append(latents[:, :, repeated:])
        made += recipe.chunk_frames - repeated
    return torch.cat(parts, dim=2)[:, :, : frames : recipe.stride].contiguous()
