"""The latent space of Wan's autoencoders, read from their configs: of Wan 2.1 and of Wan 2.2, which takes patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ....pipeline.errors import WorldModelError
from ....pipeline.latents.spec import LatentSpec

_MAX_STAGES, _MAX_PATCH = 8, 16
"""Halvings of an autoencoder, of which the models we know have three, and pixels of a side that enter it as one."""


def _finite(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{str(number)[:80]} is no finite number")
    return number


def latent_spec_of(config: Mapping[str, Any]) -> LatentSpec:
    """The latent space of an `AutoencoderKLWan` with this config.

    A latent row stands for two to the power of the stages pixels, and where patches of pixels enter the autoencoder as
    one (Wan 2.2: `patch_size` 2), for as many times more.

    Raises:
        WorldModelError: the config does not describe one.
    """
    try:
        channels, stages = config["z_dim"], config["temperal_downsample"]  # diffusers' spelling
        patch = config.get("patch_size") or 1
        mean, std = (tuple(map(_finite, config[name])) for name in ("latents_mean", "latents_std"))
        if type(channels) is not int or not isinstance(stages, list) or len(stages) > _MAX_STAGES:
            raise ValueError("z_dim is no whole number, or temperal_downsample no list of a few stages")
        if type(patch) is not int or not 1 <= patch <= _MAX_PATCH:
            raise ValueError("patch_size is no small whole number")
        if not all(stage in (False, True) for stage in stages) or min(std, default=1.0) <= 0:  # of more, 2 ** sum hangs
            raise ValueError("temperal_downsample holds more than true and false, or latents_std a number not above 0")
        return LatentSpec(
            channels=channels,
            spatial_stride=patch * 2 ** len(stages),
            temporal_stride=2 ** sum(stages),
            mean=mean,
            std=std,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorldModelError(f"the VAE's config describes no latent space: {error!r}") from error
