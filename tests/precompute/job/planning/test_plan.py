"""How a job is cut into parts, tasks and shards."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError

import pytest

from theworld.precompute.inputs.listing.inputs import Sample
from theworld.precompute.inputs.locations import File
from theworld.precompute.job.planning.plan import (
    LARGEST_SHARD,
    Plan,
    cut_tasks,
    is_in_part,
    samples_per_task,
    shard_capacity,
)

MIB = 2**20


def samples(count: int) -> list[Sample]:
    return [Sample(f"{number}.png", File(f"{number}.png"), f"{number:032x}") for number in range(count)]


@pytest.mark.parametrize(
    ("sample_bytes", "rows"), [(18_000, LARGEST_SHARD), (MIB, 64), (5 * MIB, 12), (40 * MIB, 1), (100 * MIB, 1)]
)
def test_a_new_store_has_room_for_64_mib_in_a_shard_whatever_the_first_run_is(sample_bytes: int, rows: int) -> None:
    assert shard_capacity(sample_bytes) == rows


@pytest.mark.parametrize(
    ("seconds", "batch", "expected"),
    [(1.75, 16, 80), (12.0, 8, 8), (60.0, 2, 2), (600.0, 16, 16), (0.01, 8, 15_000)],
)
def test_a_task_is_two_to_three_minutes_of_work_in_whole_batches(seconds: float, batch: int, expected: int) -> None:
    assert samples_per_task(seconds, batch) == expected


@pytest.mark.parametrize(
    ("todo", "most", "workers", "batch", "sizes"),
    [
        (0, 256, 2, 8, []),
        (900, 256, 1, 8, [256, 256, 256, 132]),
        (900, 256, 2, 8, [232, 232, 232, 204]),
        (32, 256, 8, 16, [16, 16]),  # half a batch costs as much as a whole one
        (100, 12, 2, 16, [12] * 8 + [4]),
    ],
)
def test_every_worker_gets_two_tasks_and_none_is_smaller_than_a_batch_for_that(
    todo: int, most: int, workers: int, batch: int, sizes: list[int]
) -> None:
    work = samples(todo)
    parts = cut_tasks(work, most, workers, batch)
    assert [len(part) for part in parts] == sizes
    assert [sample for part in parts for sample in part] == work


def test_each_key_is_in_one_part_and_stays_there() -> None:
    draw = random.Random(0)
    keys = [f"{draw.getrandbits(128):032x}" for _ in range(4000)]
    parts = [{key for key in keys if is_in_part(key, (number, 7))} for number in range(1, 8)]
    assert sorted(key for part in parts for key in part) == sorted(keys)
    assert max(map(len, parts)) < 1.2 * min(map(len, parts))
    assert all(is_in_part(key, (1, 1)) for key in keys)


def test_a_plan_stays_what_was_announced() -> None:
    plan = Plan(
        inputs=1, duplicates=0, others={}, left_out={}, done=1, failed_before=(), refused=(), todo=(), sample_bytes=8
    )
    with pytest.raises(FrozenInstanceError):
        plan.done = 2  # type: ignore[misc]
