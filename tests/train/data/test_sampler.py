"""Every rank sees every sample when the seed says so, and may stop anywhere and go on."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError
from theworld.train.data.sampler import Batch, BatchSampler, permutation

COUNT = 23
"""Fills no batch of several ranks; of the store in test_loader.py, five shards and one of three."""


def order(rank: int = 0, **settings: Any) -> BatchSampler:
    return BatchSampler(COUNT, **({"batch_size": 4, "seed": 7} | settings), rank=rank)


def plain(batches: Iterator[Batch] | BatchSampler, count: int | None = None) -> list[tuple[int, int, list[int]]]:
    return [(batch.epoch, batch.number, batch.indices.tolist()) for batch in islice(batches, count)]


@given(
    length=st.integers(1, 200),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 7),
    seed=st.integers(0, 2**40),
    drop_last=st.booleans(),
)
def test_ranks_have_equally_many_batches_and_share_each_sample_out_once(
    length: int, batch_size: int, world_size: int, seed: int, drop_last: bool
) -> None:
    def of_rank(rank: int) -> BatchSampler:
        return BatchSampler(
            length,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            epochs=2,
        )

    if drop_last and length < batch_size * world_size:
        with pytest.raises(ConfigError, match="do not fill one batch"):
            of_rank(0)
        return
    ranks = [plain(of_rank(rank)) for rank in range(world_size)]
    sizes = [[(epoch, number, len(indices)) for epoch, number, indices in batches] for batches in ranks]
    assert all(each == sizes[0] for each in sizes)
    for epoch in range(2):
        seen = [index for batches in ranks for at, _, indices in batches if at == epoch for index in indices]
        if drop_last:
            assert len(set(seen)) == len(seen) > length - batch_size * world_size
            assert {size for _, _, size in sizes[0]} == {batch_size}
        else:
            assert set(seen) == set(range(length))
            assert len(seen) < length + world_size


def test_a_batch_of_all_ranks_together_is_the_same_on_any_number_of_them() -> None:
    def together(world_size: int) -> list[list[int]]:
        ranks = [order(rank, batch_size=8 // world_size, world_size=world_size) for rank in range(world_size)]
        batches = [np.stack([batch.indices for batch in islice(rank, 4)]) for rank in ranks]
        return np.sort(np.concatenate(batches, axis=1)).tolist()

    assert together(1) == together(2) == together(8)


def test_the_order_is_a_function_of_its_arguments() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = plain(order(), 12)
    np.random.seed(2)
    torch.manual_seed(2)
    assert plain(order(), 12) == first
    assert plain(order(seed=8), 12) != first
    assert [indices for epoch, _, indices in first if epoch == 0] != [indices for e, _, indices in first if e == 1]


def test_the_order_never_changes() -> None:  # a checkpoint of an older version would go on in another one
    assert permutation(10, 0, 0).tolist() == [4, 0, 3, 1, 5, 2, 7, 8, 6, 9]
    large = hashlib.sha256(permutation(100_000, 7, 3).astype("<i8")).hexdigest()
    assert large == "06409a7c1a8be0356390f9b0b60ce02f3e30ae5842dfd7b1afc515f27cf3167c"


def test_a_bounded_order_ends() -> None:
    bounded = order(epochs=2)
    assert [(epoch, number) for epoch, number, _ in plain(bounded)] == [(e, n) for e in range(2) for n in range(5)]
    assert plain(bounded) == []


@pytest.mark.parametrize("drop_last", [True, False])
def test_restored_at_any_position_the_rest_is_the_same(drop_last: bool) -> None:
    whole = plain(order(epochs=3, drop_last=drop_last))
    for position in range(len(whole) + 1):
        left = order(epochs=3, drop_last=drop_last)
        plain(left, position)
        again = order(epochs=3, drop_last=drop_last)
        again.load_state_dict(json.loads(json.dumps(left.state_dict())))
        assert plain(again) == whole[position:]


def test_a_position_serves_all_ranks() -> None:
    first, second = order(0, world_size=2), order(1, world_size=2)
    plain(first, 3)
    plain(second, 3)
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize(
    ("field", "there", "here"),
    [
        ("world_size", 2, 1),
        ("batch_size", 3, 4),
        ("seed", 8, 7),
        ("length", 24, 23),
        ("drop_last", 0, 1),
    ],
)
def test_a_position_of_another_order_is_refused_by_name(field: str, there: int, here: int) -> None:
    state = order().state_dict() | {field: there}
    untouched = order()
    with pytest.raises(ConfigError, match=rf"{field} {there}, this one has {field} {here}"):
        untouched.load_state_dict(state)
    assert untouched.state_dict() == order().state_dict()


@pytest.mark.parametrize("place", [{"batch": 5}, {"batch": -1}, {"epoch": -1}, {"epoch": None}, {"batch": 1.5}])
def test_a_position_that_cannot_be_is_refused(place: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is none of an order with 5 batches"):
        order().load_state_dict(order().state_dict() | place)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"seed": -1}, {"rank": -1}])
def test_an_order_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"an order needs .* got length 23"):
        order(**wrong)
