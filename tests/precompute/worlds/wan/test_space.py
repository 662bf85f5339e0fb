"""The latent space of Wan's autoencoders, as their configs state it, against what the real class makes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from tests.miniatures.world_model import mini_vae, mini_vae22
from theworld.pipeline.errors import WorldModelError
from theworld.pipeline.latents.spec import video_frames
from theworld.precompute.worlds.wan.space import latent_spec_of
from theworld.precompute.worlds.wan.vae import WanLatents


@pytest.mark.parametrize(("vae", "channels", "side"), [(mini_vae(), 16, 8), (mini_vae22(), 48, 16)])
def test_a_latent_has_the_shape_that_the_config_states(vae: AutoencoderKLWan, channels: int, side: int) -> None:
    spec = latent_spec_of(vae.config)
    assert (spec.channels, spec.spatial_stride, spec.temporal_stride) == (channels, side, 4)
    frames = video_frames(2, temporal_stride=spec.temporal_stride)
    video = torch.rand(1, 3, frames, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    world = WanLatents(vae)
    latents = world.encode_video(video)
    assert latents.shape == (1, *spec.sample_shape(64, 96, 2))
    assert torch.equal(world.encode(video[:, :, 0]), latents[:, :, :1])
    assert world.decode(latents).shape == video.shape


@pytest.mark.parametrize("patch", [0.5, "two", -1, 10**9, [2]])
def test_a_patch_that_is_no_small_number_is_refused(patch: object) -> None:
    with pytest.raises(WorldModelError, match="patch_size"):
        latent_spec_of({**mini_vae().config, "patch_size": patch})
