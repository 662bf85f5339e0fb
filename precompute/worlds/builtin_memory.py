"""How much memory the built-in families take: Cosmos-Predict2 and Wan 2.1. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec, video_frames
from .encode_slices import encode_slices
from .family import Configs
from .memory import Memory, frames_of_forward
from .transformer_memory import (
    Forward,
    clip_parameters,
    cosmos_forward_memory,
    cosmos_parameters,
    wan_forward_memory,
    wan_parameters,
)
from .wan_space import latent_spec_of
from .wan_vae_memory import decoder_memory, encoder_memory

_F = 4  # bytes of a float32, in which the VAE computes
_NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


def cosmos_memory(configs: Configs, recipe: Recipe, batch: int) -> Memory:
    """Of `CosmosWorld`: the observed frames are encoded, then all is predicted."""
    transformer = configs["transformer"]
    weights = cosmos_parameters(transformer) * _NUMBER_BYTES[recipe.compute_dtype] + _vae_weights(configs["vae"])
    seen = recipe.traits.first_predicted_frame(recipe) or 1
    return _memory(configs, recipe, batch, weights, seen, lambda forward: cosmos_forward_memory(transformer, forward))


def wan_memory(configs: Configs, recipe: Recipe, batch: int) -> Memory:
    """Of `WanWorld`: a clip that is the image and then grey is encoded, as long as what is predicted."""
    transformer = configs["transformer"]
    weights = wan_parameters(transformer) * _NUMBER_BYTES[recipe.compute_dtype] + _vae_weights(configs["vae"])
    weights += _F * clip_parameters(configs["image_encoder"])
    stride = latent_spec_of(configs["vae"]).temporal_stride
    seen = video_frames(frames_of_forward(recipe) - 1, temporal_stride=stride)
    return _memory(configs, recipe, batch, weights, seen, lambda forward: wan_forward_memory(transformer, forward))


def wan_vae_decoding(configs: Configs, frames: int, height: int, width: int) -> Memory:
    """Of Wan's VAE alone, decoding a clip."""
    decoded = _F * decoder_memory(configs["vae"], frames, height, width).peak
    return Memory(weights=_vae_weights(configs["vae"]), computed=decoded, during="decoding")


def _memory(
    configs: Configs, recipe: Recipe, batch: int, weights: int, seen: int, forward_memory: Callable[[Forward], int]
) -> Memory:
    """
    Args:
        seen: video frames that are encoded before a prediction.
    """
    vae, size = configs["vae"], (recipe.height, recipe.width)
    spec = latent_spec_of(vae)
    predicts = recipe.traits.predicts and recipe.rollout_steps > 0
    if recipe.traits.is_real_video:
        seen = video_frames(recipe.rollout_steps, stride=recipe.stride, temporal_stride=spec.temporal_stride)
    stages = {"encoding": _encoding(vae, batch, seen if predicts or recipe.traits.is_real_video else 1, *size)}
    if predicts:
        stages["the forward"] = forward_memory(_forward(recipe, spec, batch))
    if recipe.chunk_frames:
        stages["decoding"] = _F * batch * decoder_memory(vae, recipe.chunk_frames, *size).peak
    return Memory.at_most(weights, stages)


def _encoding(vae: Mapping[str, Any], batch: int, frames: int, height: int, width: int) -> int:
    start, end = encode_slices(batch, frames, height, width)[0]
    return _F * (end - start) * encoder_memory(vae, frames, height, width).peak


def _forward(recipe: Recipe, spec: LatentSpec, batch: int) -> Forward:
    _, _, height, width = spec.sample_shape(recipe.height, recipe.width, 0)
    prompts = batch if recipe.prompts == "sample" else int(recipe.prompt is not None)
    return Forward(
        batch=batch,
        frames=frames_of_forward(recipe),
        height=height,
        width=width,
        number_bytes=_NUMBER_BYTES[recipe.compute_dtype],
        guided=recipe.guidance > 1.0,
        texts=prompts + (recipe.negative_prompt is not None),
        second_order=recipe.solver == "2ab",
    )


def _vae_weights(vae: Mapping[str, Any]) -> int:
    return _F * (encoder_memory(vae, 1, 8, 8).parameters + decoder_memory(vae, 1, 8, 8).parameters)
