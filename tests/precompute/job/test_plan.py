"""How a job is cut into shards."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from theworld.precompute.job.plan import LARGEST_SHARD, SMALLEST_SHARD, Plan, choose_shard_size


@pytest.mark.parametrize(
    ("todo", "workers", "size"),
    [
        (1, 1, SMALLEST_SHARD),
        (127, 1, 16),
        (128, 1, 32),  # four shards for a worker
        (1023, 1, 128),
        (1024, 1, LARGEST_SHARD),
        (10**6, 1, LARGEST_SHARD),
        (1024, 2, 128),
        (1024, 8, 32),
        (1024, 64, SMALLEST_SHARD),
    ],
)
def test_every_worker_gets_about_four_shards(todo: int, workers: int, size: int) -> None:
    assert choose_shard_size(todo, workers) == size


def test_a_plan_stays_what_was_announced() -> None:
    plan = Plan(
        inputs=1, duplicates=0, others={}, left_out={}, done=1, failed_before=(), refused=(), todo=(), sample_bytes=8
    )
    with pytest.raises(FrozenInstanceError):
        plan.done = 2  # type: ignore[misc]
