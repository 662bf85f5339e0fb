"""Rollouts beyond a world model's window: decode a chunk, encode its last frames again, and roll out from them.

Chunks hand over pixels, since a latent from the middle of a clip cannot begin one: it encodes four video frames given
the past, and no training clip begins with such a latent. Blur adds up from chunk to chunk (NVIDIA/cosmos#54), and each
chunk costs a decode and an encode; within the window one rollout is cheaper and better.

Source: the `video2world_lvg` example of nvidia-cosmos/cosmos-predict2, which also hands over 1 or 5 frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.world_model import Autoencoder, WorldModel


def roll_out_in_chunks(
    world: WorldModel, pixels: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
) -> Float[Tensor, "B C T H W"]:
    """Standardised float32 latents of the observed frames and their predicted future, made chunk by chunk.

    The first chunk equals the rollout of `chunk_frames` frames, bit for bit. Every chunk is made whole and cut where
    the clip ends, so a longer recipe begins with the latents of a shorter one. Key and chunk number fix the noise of a
    later chunk; its frames that repeat the end of the chunk before are dropped.

    Args:
        pixels: float32 in [-1, 1], images or the first frames of videos. keys: one per input.
    """
    assert isinstance(world, Autoencoder)  # the kind's check refused a family that cannot decode
    frames = 1 + recipe.rollout_steps * recipe.stride
    chunk = recipe.model_copy(
        update={"rollout_steps": recipe.chunk_frames - 1, "stride": 1, "chunk_frames": 0, "chunk_context": 0}
    )
    repeated = 1 + (recipe.chunk_context - 1) // world.spec.temporal_stride
    latents = world.rollout(pixels, keys, chunk)
    parts, latent_count = [latents], recipe.chunk_frames
    while latent_count < frames:
        # decode the whole chunk: its last latent alone would decode to one frame, not four
        end = world.decode(latents)[:, :, -recipe.chunk_context :]
        latents = world.rollout(end, [f"{key} chunk {len(parts)}" for key in keys], chunk)
        parts.append(latents[:, :, repeated:])
        latent_count += recipe.chunk_frames - repeated
    return torch.cat(parts, dim=2)[:, :, : frames : recipe.stride].contiguous()
