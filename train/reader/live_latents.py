"""Latents of images that are rolled forward live, as a store of the same recipe would hold them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...pipeline.errors import ConfigError
from ...pipeline.latents.recipe import Recipe, recipe_of_draw
from ...pipeline.latents.tensors import as_stored
from ...pipeline.latents.world_model import HasHiddenStates, WorldModel

_log = logging.getLogger(__name__)


def roll_out_images(
    world: WorldModel, recipe: Recipe, images: Tensor, keys: Sequence[str] | None, steps: int
) -> Tensor:
    """(B, C, T, H, W), T >= 1 + steps, rounded to the recipe's dtype.

    Args:
        images: RGB in [-1, 1], (B, 3, height, width).
        keys: the content keys of the images, which decide the noise; without rollout steps they may be None.
    Raises:
        ConfigError: a recipe that cannot be rolled out live; images or keys that do not fit.
    """
    if not (recipe.traits.is_image_rollout or recipe.traits.has_draws) or recipe.chunk_frames:
        raise ConfigError(
            f"images are rolled out live in one chunk each; latents of kind {recipe.kind}"
            f"{' in chunks' if recipe.chunk_frames else ''} have to be precomputed"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConfigError(f"images are RGB, (B, 3, height, width), got {tuple(images.shape)}")
    if keys is not None and len(keys) != len(images):
        raise ConfigError(f"{len(images)} images have {len(keys)} keys: pass one for each")
    if not images.is_floating_point() or not float(images.abs().max()) <= 1.001:
        raise ConfigError(
            f"images are RGB in [-1, 1] of a float dtype, got {images.dtype} from {float(images.min()):g} to "
            f"{float(images.max()):g}. Of 8-bit pixels: images.float() / 127.5 - 1"
        )
    if float(images.min()) >= 0:
        _log.warning("no pixel of these images is darker than mid-grey: if they are in [0, 1], pass 2 * images - 1")
    if steps == 0 and (recipe.traits.begins_with_encoding or recipe.traits.has_draws):
        return as_stored(world.encode(images), recipe.dtype, keys)
    if keys is None:
        raise ConfigError("rolling out images needs their keys: the noise of a rollout belongs to its key")
    if recipe.traits.has_draws:
        return as_stored(_several_futures(world, recipe, images, keys, steps), recipe.dtype, keys)
    # All steps of a rollout are denoised together, so a shorter one is not the prefix of a longer one.
    longer = recipe.model_copy(update={"rollout_steps": max(recipe.rollout_steps, steps)})
    if not longer.traits.is_hidden:
        return as_stored(world.rollout(images, keys, longer), recipe.dtype, keys)
    if not isinstance(world, HasHiddenStates):
        raise ConfigError("latents of this recipe are hidden states, and this world model gives none")
    return as_stored(world.hidden(images, keys, longer), recipe.dtype, keys)


def _several_futures(world: WorldModel, recipe: Recipe, images: Tensor, keys: Sequence[str], steps: int) -> Tensor:
    """The encoding and as many futures, one after the other, as hold so many steps, of kind samples."""
    if steps > recipe.rollout_steps:
        raise ConfigError(
            f"latents of kind samples hold {recipe.draws} futures, {recipe.rollout_steps} steps in all, and {steps} "
            "are asked for. Ask for fewer"
        )
    needed = math.ceil(steps / recipe.steps_of_a_draw)
    futures = [world.rollout(images, keys, recipe_of_draw(recipe, number)) for number in range(needed)]
    return torch.cat([futures[0][:, :, :1], *(future[:, :, 1:] for future in futures)], dim=2)
