"""Which key is where: the catalog against a dictionary, and a snapshot that can only cost time."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.store.keys.index import Index, Shard, Stamp, pack_keys

from ....miniatures.store import key

SHARD_SIZE = 4
# keys that begin alike, that end in zero bytes, and that are shared by several shards
KEYS = [f"{number:032x}" for number in range(6)] + [f"{number:x}".ljust(32, "0") for number in range(1, 6)]
shards = st.dictionaries(
    st.integers(0, 9), st.lists(st.sampled_from(KEYS), min_size=1, max_size=SHARD_SIZE, unique=True), max_size=5
)


def make_shard(number: int, keys: Iterable[str]) -> Shard:
    packed = pack_keys(list(keys))
    return Shard(number, 100 + number, packed, np.arange(len(packed), dtype=np.uint32)[:, None], Stamp(1000, number))


def model(content: dict[int, list[str]]) -> dict[str, int]:
    """Key -> row; the lowest shard counts."""
    rows: dict[str, int] = {}
    for number in sorted(content, reverse=True):
        rows.update({k: number * SHARD_SIZE + place for place, k in enumerate(content[number])})
    return rows


def agree(found: Index, content: dict[int, list[str]]) -> None:
    rows = model(content)
    assert len(found) == len(rows)
    assert found.keys == tuple(sorted(rows, key=rows.__getitem__))
    assert found.find(KEYS).tolist() == [rows.get(k, -1) for k in KEYS]
    assert list(found.shards) == sorted(content)
    last = max(content, default=None)
    assert found.array_rows == (0 if last is None else last * SHARD_SIZE + len(content[last]))


@given(content=shards, more=shards, gone=st.sets(st.integers(0, 9)))
def test_a_catalog_is_a_dictionary_whatever_comes_and_goes(
    content: dict[int, list[str]], more: dict[int, list[str]], gone: set[int]
) -> None:
    more = {number: keys for number, keys in more.items() if number not in content}
    found = Index.from_shards([make_shard(*item) for item in content.items()], SHARD_SIZE)
    agree(found, content)
    grown = found.with_shards([make_shard(*item) for item in more.items()])
    agree(grown, content | more)
    agree(grown.without(gone), {n: keys for n, keys in (content | more).items() if n not in gone})
    again = {number: content[number] for number in gone & content.keys()}  # a number may be another shard's later
    taken_again = grown.without(gone).with_shards([make_shard(*item) for item in again.items()])
    agree(taken_again, content | {number: keys for number, keys in more.items() if number not in gone})
    agree(found, content)  # a catalog never changes


@pytest.mark.parametrize("wrong", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "../../evil", "é" * 32])
def test_what_is_no_key_is_not_found(wrong: str) -> None:
    found = Index.from_shards([make_shard(0, [key(0)])], SHARD_SIZE)
    assert found.find([wrong, key(0), wrong]).tolist() == [-1, 0, -1]
