"""Which rows an update learns from: a function of seed and epoch, on any number of processes, in pieces of any size."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError
from theworld.train.data.batches import Example
from theworld.train.training.update_order import Blocks, UpdateOrder


def rows(count: int, seed: int = 0) -> list[tuple[Example, ...]]:
    """Of one to three questions of different lengths."""
    draw = np.random.default_rng(seed)
    return [
        tuple(
            Example(str(n), tuple(range(draw.integers(2, 40))), tuple(range(draw.integers(1, 5))))
            for _ in range(draw.integers(1, 4))
        )
        for n in range(count)
    ]


def learned(some: tuple[Example, ...]) -> int:
    return sum(len(example.answer) for example in some)


def length(some: tuple[Example, ...]) -> int:
    return sum(len(example.prompt) + len(example.answer) for example in some)


SHARD_OF_ROW = np.random.default_rng(1).integers(0, 9, 70)

_arguments = st.fixed_dictionaries(
    {
        "count": st.integers(1, 70),
        "batch_size": st.integers(1, 17),
        "world_size": st.integers(1, 5),
        "micro_batch": st.none() | st.integers(1, 6),
        "group_by_length": st.booleans(),
        "blocks": st.none() | st.builds(Blocks, st.just(SHARD_OF_ROW), st.integers(1, 4), st.integers(1, 3)),
    }
)


@given(_arguments, st.integers(0, 3))
def test_all_processes_and_pieces_together_are_the_update_of_one(arguments: dict[str, Any], epoch: int) -> None:
    count, world_size = arguments.pop("count"), arguments["world_size"]
    all_rows = rows(count)
    if (blocks := arguments["blocks"]) is not None:
        arguments["blocks"] = replace(blocks, shard_of_row=SHARD_OF_ROW[:count])
    one = UpdateOrder(
        all_rows,
        batch_size=arguments["batch_size"],
        seed=3,
        group_by_length=bool(arguments["group_by_length"]),
        blocks=arguments["blocks"],
    )
    orders = [UpdateOrder(all_rows, seed=3, rank=rank, **arguments) for rank in range(world_size)]  # type: ignore[arg-type]
    assert sorted(row for update in one.plan(epoch) for row in update) == list(range(count))
    for number, expected in enumerate(one.plan(epoch)):
        update = epoch * one.updates + number
        assert one.rows_of(update) == expected
        weights = dict.fromkeys(expected, 0.0)
        assert len({order.pieces_of(update) for order in orders}) == 1, "a process would wait for ever"
        for n in range(orders[0].pieces_of(update)):
            for order in orders:
                piece = order.piece(update, n)
                assert len(piece.rows) <= (arguments["micro_batch"] or count)
                of = sum(learned(all_rows[row]) for row in piece.rows)
                assert order.answer_tokens(update, n) == (of if piece.weight else 0)
                for row in piece.rows:
                    weights[row] += piece.weight / of / world_size  # DDP takes the mean over processes
        total = sum(learned(all_rows[row]) for row in expected)
        assert all(math.isclose(weight, 1 / total) for weight in weights.values())


def test_one_process_and_one_piece_weigh_exactly_one() -> None:
    order = UpdateOrder(rows(30), batch_size=7)
    assert {order.piece(update, 0).weight for update in range(12)} == {1.0}


def test_epochs_are_counted_by_updates() -> None:
    order = UpdateOrder(rows(10), batch_size=4)
    assert [order.epochs_until(update) for update in (0, 1, 3, 5)] == [0, pytest.approx(1 / 3), 1, pytest.approx(5 / 3)]


def test_epochs_differ_seeds_differ_and_each_is_there_again() -> None:
    order, again, other = (UpdateOrder(rows(100), batch_size=10, seed=seed) for seed in (7, 7, 8))
    assert order.plan(0) == again.plan(0)
    assert order.plan(0) != other.plan(0)
    later = order.plan(1)
    assert later != order.plan(0)
    assert again.plan(1) == later
    assert order.rows_of(13) == later[3]


def test_rows_of_similar_length_together_need_far_less_padding() -> None:
    all_rows = rows(500)

    def padded(order: UpdateOrder) -> int:
        tallest = [max(length(all_rows[row]) for row in update) * len(update) for update in order.plan(0)]
        return sum(tallest) - sum(map(length, all_rows))

    plain, grouped = (UpdateOrder(all_rows, batch_size=8, group_by_length=group) for group in (False, True))
    assert sorted(row for update in grouped.plan(0) for row in update) == list(range(500))
    assert padded(grouped) < padded(plain) / 5
    assert [len(update) for update in grouped.plan(0)] == [8] * 62 + [4]
    means = [np.mean([length(all_rows[row]) for row in update]) for update in grouped.plan(0)]
    assert abs(np.corrcoef(means[:-1], np.arange(62))[0, 1]) < 0.3, "short ones came first"


@pytest.mark.parametrize("group_by_length", [False, True])
def test_in_blocks_few_shards_are_read_at_a_time(group_by_length: bool) -> None:
    shard_of_row = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 64))
    order = UpdateOrder(
        rows(3200), batch_size=8, group_by_length=group_by_length, blocks=Blocks(shard_of_row, window=4)
    )
    for epoch in range(2):
        read = [set(shard_of_row[update].tolist()) for update in order.plan(epoch)]
        nearby = [len(set().union(*read[start : start + 16])) for start in range(0, 400, 16)]
        assert max(nearby) <= 12
        assert np.mean(nearby) < 7
    assert order.plan(0) != order.plan(1)


def test_the_processes_of_a_machine_read_their_own_part_of_the_blocks() -> None:
    shard_of_row = np.repeat(np.arange(32), 8)
    read: list[set[int]] = []
    for rank in range(4):
        order = UpdateOrder(rows(256), batch_size=8, rank=rank, world_size=4, blocks=Blocks(shard_of_row, 2, groups=2))
        own_rows = [row for update in range(order.updates) for row in order.piece(update, 0).rows]
        read.append(set(shard_of_row[own_rows].tolist()))
    assert len(read[0] | read[1]) == len(read[2] | read[3]) == 16
    assert not (read[0] | read[1]) & (read[2] | read[3])


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ConfigError, match="no row of questions"):
        UpdateOrder([], batch_size=2)
