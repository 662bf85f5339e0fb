"""Batches are chosen by tokens, and what fills them up is counted."""

from __future__ import annotations

import pytest

from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.precompute.rollout.batch_size import batch_of_run, computed_rows, default_batch

WAN = LatentSpec(channels=1, spatial_stride=8, temporal_stride=4, mean=(0.0,), std=(1.0,))


def recipe(height: int, width: int, steps: int, **changes: object) -> Recipe:
    return Recipe(world="sha256:x", height=height, width=width, rollout_steps=steps, **changes)


@pytest.mark.parametrize(
    ("of", "on_cpu", "on_gpu"),
    [
        (recipe(64, 64, 8), 8, 16),
        (recipe(224, 224, 8), 8, 16),
        (recipe(432, 768, 8), 2, 2),
        (recipe(432, 768, 23), 1, 1),
        (recipe(704, 1280, 8), 1, 1),
        (recipe(432, 768, 4, stride=2), 2, 2),
        (recipe(432, 768, 8, kind="samples", draws=2), 4, 4),
        (recipe(432, 768, 40, chunk_frames=9, chunk_context=5), 2, 2),
        (recipe(432, 768, 0), 8, 16),
        (recipe(704, 1280, 1, kind="posterior"), 8, 32),
        (recipe(704, 1280, 8, kind="frames"), 4, 4),
    ],
)
def test_a_batch_holds_about_as_many_tokens_at_every_size(of: Recipe, on_cpu: int, on_gpu: int) -> None:
    assert default_batch(of, WAN, on_gpu=False) == on_cpu
    assert default_batch(of, WAN, on_gpu=True) == on_gpu


def test_a_run_s_only_batch_is_as_small_as_the_run_and_what_the_user_asks_for_is_not_raised() -> None:
    small = recipe(224, 224, 8)
    assert batch_of_run(None, small, WAN, 3, on_gpu=True) == 3
    assert batch_of_run(None, small, WAN, 100, on_gpu=True) == 16
    assert batch_of_run(40, small, WAN, 100, on_gpu=True) == 40
    assert batch_of_run(8, small, WAN, 3, on_gpu=True) == 8, "the same size gives the same bits, however few inputs"
    assert batch_of_run(2, small, WAN, 100, on_gpu=True) == 2


@pytest.mark.parametrize(
    ("inputs", "batch", "a_task", "rows"),
    [(3, 3, None, 3), (17, 16, None, 32), (10, 4, 5, 16), (11, 4, 5, 20), (512, 16, 256, 512), (0, 16, None, 0)],
)
def test_the_last_batch_of_each_task_is_counted_whole(inputs: int, batch: int, a_task: int | None, rows: int) -> None:
    assert computed_rows(inputs, batch, a_task) == rows
