"""A batch is encoded in slices that fit, and nobody can tell from the latents."""

from __future__ import annotations

import pytest
import torch

from tests.miniatures.world_model import mini_vae
from theworld.precompute.worlds.network import encode_slices as module
from theworld.precompute.worlds.network.encode_slices import encode_slices
from theworld.precompute.worlds.wan.vae import WanLatents


@pytest.mark.parametrize(
    ("batch", "frames", "height", "width", "slices"),
    [
        (16, 1, 224, 224, [16]),
        (4, 33, 224, 224, [4]),  # four frames of each at once
        (32, 1, 224, 224, [20, 20]),
        (8, 1, 432, 768, [3, 3, 3]),
        (2, 1, 704, 1280, [2]),  # two have the bits of any number, one alone has not
        (1, 93, 704, 1280, [1]),
        (3, 1, 1408, 2560, [2, 2]),
    ],
)
def test_slices_hold_a_fixed_number_of_pixels_and_are_all_of_one_size(
    batch: int, frames: int, height: int, width: int, slices: list[int]
) -> None:
    cut = encode_slices(batch, frames, height, width)
    assert [end - start for start, end in cut] == slices
    assert sorted({sample for start, end in cut for sample in range(start, end)}) == list(range(batch))


@pytest.mark.parametrize("frames", [1, 5])
def test_slices_of_any_size_give_the_bits_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    world = WanLatents(mini_vae())
    videos = torch.rand(7, 3, frames, 32, 48, generator=torch.Generator().manual_seed(4)) * 2 - 1
    whole = world.encode_video(videos)
    for size in (1, 2, 3, 4, 5):
        monkeypatch.setattr(module, "ENCODE_PIXELS", size * min(frames, 4) * 32 * 48)
        assert encode_slices(7, frames, 32, 48)[0] == (0, max(2, size))
        assert torch.equal(world.encode_video(videos), whole)
        if frames == 1:
            posterior = world.posterior(videos[:, :, 0])
            assert torch.equal(posterior[:, :, :1], whole)
