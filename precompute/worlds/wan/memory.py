"""How much memory the built-in families take, in Wan's latents all of them. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import LatentSpec, video_frames
from ..family import Configs
from ..memory import Memory, frames_of_forward
from ..network.encode_slices import encode_slices
from ..network.offloading import BLOCKS_ON_GPU
from ..network.transformer_memory import (
    Forward,
    clip_parameters,
    cosmos_forward_memory,
    cosmos_parameters,
    wan_forward_memory,
    wan_parameters,
)
from .space import latent_spec_of
from .vae_memory import decoder_memory, encoder_memory

_F = 4  # bytes of a float32, in which the VAE computes
NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


def cosmos_memory(configs: Configs, recipe: Recipe, batch: int, *, kept: int = 0) -> Memory:
    """Of the Cosmos-Predict engines: the observed frames are encoded, then all is predicted.

    Args:
        kept: as of `Forward`.
    """
    transformer = configs["transformer"]
    network = Network.of(cosmos_parameters, transformer, recipe)

    def forward_memory(forward: Forward) -> int:
        return cosmos_forward_memory(transformer, forward)

    return memory_of_engine(configs, recipe, batch, network, forward_memory, kept=kept)


def wan_memory(configs: Configs, recipe: Recipe, batch: int) -> Memory:
    """Of Wan's image-to-video models whose network sees a clip that is the image and then grey, as long as what is
    predicted. Of two networks the larger is counted: they take turns."""
    parts = [part for part in ("transformer", "transformer_2") if part in configs]
    networks = [Network.of(wan_parameters, configs[part], recipe) for part in parts]
    largest = max(networks, key=lambda network: network.weights)
    stride = latent_spec_of(configs["vae"]).temporal_stride
    need = memory_of_engine(
        configs,
        recipe,
        batch,
        largest,
        lambda forward: max(wan_forward_memory(configs[part], forward) for part in parts),
        others=_F * clip_parameters(configs["image_encoder"]) if "image_encoder" in configs else 0,
        observed_frames=video_frames(frames_of_forward(recipe) - 1, temporal_stride=stride),
    )
    return replace(need, taking_turns=tuple(network.weights for network in networks) if len(networks) > 1 else ())


def wan_ti2v_memory(configs: Configs, recipe: Recipe, batch: int) -> Memory:
    """Of `WanTI2VWorld`: the image alone is encoded."""
    transformer = configs["transformer"]
    network = Network.of(wan_parameters, transformer, recipe)

    def forward_memory(forward: Forward) -> int:
        return wan_forward_memory(transformer, forward, time_per_token=True)

    return memory_of_engine(configs, recipe, batch, network, forward_memory)


def wan_vae_decoding(configs: Configs, frames: int, height: int, width: int) -> Memory:
    """Of Wan's VAE alone, decoding a clip."""
    decoded = _F * decoder_memory(configs["vae"], frames, height, width).peak
    return Memory(weights=_vae_weights(configs["vae"]), computed=decoded, during="decoding")


@dataclass(frozen=True, slots=True)
class Network:
    """What denoises, in bytes."""

    weights: int
    offloadable: int
    """As of `Memory`."""

    @classmethod
    def of(
        cls,
        parameters: Callable[[Mapping[str, Any]], int],
        config: Mapping[str, Any],
        recipe: Recipe,
        *,
        layers: str = "num_layers",
    ) -> Network:
        """
        Args:
            parameters: of a config. layers: its key of the number of blocks.
        """
        width, blocks, whole = NUMBER_BYTES[recipe.compute_dtype], config[layers], parameters(config)
        block = whole - parameters({**config, layers: blocks - 1})
        return cls(width * whole, width * block * max(0, blocks - BLOCKS_ON_GPU))


def memory_of_engine(
    configs: Configs,
    recipe: Recipe,
    batch: int,
    network: Network,
    forward_memory: Callable[[Forward], int],
    *,
    observed_frames: int | None = None,
    kept: int = 0,
    others: int = 0,
) -> Memory:
    """
    Args:
        observed_frames: video frames that are encoded before a prediction; None is those that the recipe shows.
        kept: as of `Forward`. others: bytes of parts beside network and VAE.
    """
    vae, size = configs["vae"], (recipe.height, recipe.width)
    spec = latent_spec_of(vae)
    predicts = recipe.traits.predicts and recipe.rollout_steps > 0
    if observed_frames is None:
        observed_frames = recipe.traits.first_predicted_frame(recipe) or 1
    if recipe.traits.is_real_video:
        observed_frames = video_frames(recipe.rollout_steps, stride=recipe.stride, temporal_stride=spec.temporal_stride)
    stages = {
        "encoding": _encoding(vae, batch, observed_frames if predicts or recipe.traits.is_real_video else 1, *size)
    }
    if predicts:
        stages["the forward"] = forward_memory(_forward(recipe, spec, batch, kept))
    if recipe.chunk_frames:
        stages["decoding"] = _F * batch * decoder_memory(vae, recipe.chunk_frames, *size).peak
    weights = network.weights + _vae_weights(vae) + others
    return Memory.at_most(weights, stages, offloadable=network.offloadable)


def _encoding(vae: Mapping[str, Any], batch: int, frames: int, height: int, width: int) -> int:
    start, end = encode_slices(batch, frames, height, width)[0]
    return _F * (end - start) * encoder_memory(vae, frames, height, width).peak


def _forward(recipe: Recipe, spec: LatentSpec, batch: int, kept: int) -> Forward:
    _, _, height, width = spec.sample_shape(recipe.height, recipe.width, 0)
    prompts = batch if recipe.prompts == "sample" else int(recipe.prompt is not None)
    return Forward(
        batch=batch,
        frames=frames_of_forward(recipe),
        height=height,
        width=width,
        number_bytes=NUMBER_BYTES[recipe.compute_dtype],
        guided=recipe.guidance > 1.0,
        texts=prompts + (recipe.negative_prompt is not None),
        kept=2 if recipe.solver == "2ab" else kept,
    )


def _vae_weights(vae: Mapping[str, Any]) -> int:
    return _F * (encoder_memory(vae, 1, 8, 8).parameters + decoder_memory(vae, 1, 8, 8).parameters)
