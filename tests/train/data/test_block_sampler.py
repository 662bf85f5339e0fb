"""Shuffled in blocks: every sample once an epoch, near in time near on disk, and a rank may stop anywhere and go on."""

import hashlib
import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from theworld.pipeline.errors import ConfigError
from theworld.train.data.sampler import BlockSampler, block_permutation

SHARD_ROWS = st.lists(st.integers(0, 6), max_size=20)
ROWS = [4, 4, 1, 4, 4, 2, 4, 4, 4, 3]


def shards_of(rows: NDArray[np.int64] | list[int], shard_rows: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(shard_rows)), shard_rows)[rows]


@given(shard_rows=SHARD_ROWS, seed=st.integers(0, 2**40), window=st.integers(1, 9), groups=st.integers(1, 5))
def test_each_row_comes_once_an_epoch_and_a_group_meets_its_part_of_the_blocks(
    shard_rows: list[int], seed: int, window: int, groups: int
) -> None:
    order = block_permutation(shard_rows, seed, 3, window=window, groups=groups)
    assert sorted(order.tolist()) == list(range(sum(shard_rows)))
    whole = block_permutation(shard_rows, seed, 3, window=window)
    assert np.concatenate([order[group::groups] for group in range(groups)]).tolist() == whole.tolist()


@given(shard_rows=SHARD_ROWS, seed=st.integers(0, 2**40), window=st.integers(1, 9))
def test_a_shard_is_read_within_its_block_and_never_again(shard_rows: list[int], seed: int, window: int) -> None:
    order = shards_of(block_permutation(shard_rows, seed, 0, window=window), shard_rows)
    blocks = split_into_blocks(order.tolist(), shard_rows)
    assert all(len(set(block)) <= window for block in blocks)
    assert sum(len(set(block)) for block in blocks) == sum(rows > 0 for rows in shard_rows)


def split_into_blocks(order: list[int], shard_rows: list[int]) -> list[list[int]]:
    """The shards of an order, cut where every shard met so far has been read to its end."""
    left: list[int] = list(shard_rows)
    blocks: list[list[int]] = []
    block: list[int] = []
    for shard in order:
        left[shard] -= 1
        block.append(shard)
        if not any(left[member] for member in block):
            blocks.append(block)
            block = []
    return blocks


def test_rows_are_shuffled_within_a_block_and_blocks_and_their_shards_change_from_epoch_to_epoch() -> None:
    orders = [block_permutation([64] * 8, 1, epoch, window=2) for epoch in range(2)]
    first_blocks = [set((order[:128] // 64).tolist()) for order in orders]
    assert all(len(shards) == 2 for shards in first_blocks)
    assert first_blocks[0] != first_blocks[1]
    changes = np.count_nonzero(np.diff(orders[0][:128] // 64))
    assert changes > 40  # as two shards shuffled into each other, 64 times on average


def test_a_window_of_all_shards_is_a_full_shuffle() -> None:
    order = block_permutation([100] * 10, 0, 0, window=10)
    assert np.abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_the_order_in_blocks_never_changes() -> None:  # a checkpoint of an older version would go on in another one
    assert block_permutation([3, 3, 3, 1], 0, 0, window=2).tolist() == SMALL
    order = block_permutation([256] * 400, 7, 3, window=8, groups=4)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() == LARGE


SMALL = [5, 4, 9, 3, 1, 8, 7, 0, 6, 2]
LARGE = "295de7c6f0b796eb7ac6f554631a0eed35294dfcd0df56fc0c42a3a9cf079c16"


@pytest.mark.parametrize("groups", [1, 2])
def test_a_batch_of_all_ranks_together_is_the_same_on_any_number_of_them(groups: int) -> None:
    def together(world_size: int) -> list[list[int]]:
        ranks = [
            BlockSampler(ROWS, batch_size=8 // world_size, window=3, groups=groups, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        batches = [np.stack([batch.indices for batch in islice(rank, 9)]) for rank in ranks]
        return np.sort(np.concatenate(batches, axis=1)).tolist()

    assert together(2) == together(4) == together(8)


def test_neighbouring_ranks_of_a_group_read_their_own_part_of_the_store() -> None:
    shard_rows = [8] * 16
    read = []
    for rank in range(4):
        sampler = BlockSampler(shard_rows, batch_size=4, window=2, groups=2, rank=rank, world_size=4, epochs=1)
        indices = np.concatenate([batch.indices for batch in sampler])
        read.append(set(shards_of(indices, shard_rows).tolist()))
    assert len(read[0] | read[1]) == len(read[2] | read[3]) == 8
    assert not (read[0] | read[1]) & (read[2] | read[3])


def test_restored_at_any_position_the_rest_is_the_same() -> None:
    def sampler() -> BlockSampler:
        return BlockSampler(ROWS, batch_size=3, window=2, groups=2, rank=1, world_size=2, epochs=3)

    whole = [batch.indices.tolist() for batch in sampler()]
    for position in range(len(whole) + 1):
        left, again = sampler(), sampler()
        list(islice(left, position))
        again.load_state_dict(json.loads(json.dumps(left.state_dict())))
        assert [batch.indices.tolist() for batch in again] == whole[position:]


@pytest.mark.parametrize("changed", [{"window": 3}, {"groups": 1}, {"shard_rows": ROWS[::-1]}])
def test_a_position_of_other_blocks_is_refused_by_name(changed: dict[str, object]) -> None:
    settings: dict[str, object] = {"shard_rows": ROWS, "batch_size": 3, "window": 2, "groups": 2, "world_size": 2}
    state = BlockSampler(**settings).state_dict()  # type: ignore[arg-type]
    name = next(iter(changed)).removesuffix("_rows").replace("shard", "shards")
    with pytest.raises(ConfigError, match=f"with {name} "):
        BlockSampler(**{**settings, **changed}).load_state_dict(state)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"groups": 0}, {"groups": 2, "world_size": 3}])
def test_blocks_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="groups that divide the ranks"):
        BlockSampler(ROWS, batch_size=1, **wrong)
