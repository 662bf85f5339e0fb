"""Views of a picture: which crops, in which order, with which pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from theworld.precompute.media.images import fit_image, to_tensor
from theworld.precompute.media.views import boxes, load_views


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_a_pyramid_is_the_whole_and_then_tiles_that_cover_it_level_by_level() -> None:
    found = boxes("pyramid", 14)
    assert found[0] == (0, 0, 1, 1)
    assert found[1:5] == [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]
    for level, tiles in ((2, found[1:5]), (3, found[5:14])):
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in tiles]
        assert areas == pytest.approx([1 / level**2] * level**2)
        assert len(set(tiles)) == level**2


def test_a_zoom_keeps_the_centre_and_halves_the_area_each_time() -> None:
    for number, (left, top, right, bottom) in enumerate(boxes("zoom", 5)):
        assert (right - left) * (bottom - top) == pytest.approx(0.5**number)
        assert (left + right, top + bottom) == pytest.approx((1, 1))


def test_a_tile_shows_the_pixels_the_whole_was_too_small_for() -> None:
    picture = noise(96, 64)
    views = load_views(picture, "pyramid", 5, 32, 48, "cover")
    assert views.shape == (3, 5, 32, 48)
    assert torch.equal(views[:, 0], to_tensor(fit_image(picture, 32, 48, "cover")))
    assert torch.equal(views[:, 4], to_tensor(picture.crop((48, 32, 96, 64))))


@pytest.mark.parametrize("fit", ["cover", "pad", "stretch"])
def test_views_divide_what_the_fitted_picture_shows(fit: str) -> None:
    # a horizontal ramp: its left tiles are darker than its right ones, and together they have its mean
    ramp = np.tile(np.linspace(0, 255, 120, dtype=np.uint8)[None, :, None], (40, 1, 3))
    views = load_views(Image.fromarray(ramp), "pyramid", 5, 32, 32, fit)  # type: ignore[arg-type]
    means = views.mean(dim=(0, 2, 3))
    assert means[1] < means[2]
    assert means[1:].mean().item() == pytest.approx(means[0].item(), abs=0.03)
