"""Which key is where: the catalog against a dictionary, and a snapshot that can only cost time."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.store import index as catalog
from theworld.pipeline.store import latent_store
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.index import SNAPSHOT, Index, Shard, Stamp, pack_keys, read_snapshot, write_snapshot
from theworld.pipeline.store.latent_store import LatentStore

from ...miniatures.store import create, expected, fill, flip, key, write

SHARD_SIZE = 4
# keys that begin alike, that end in zero bytes, and that are shared by several shards
KEYS = [f"{number:032x}" for number in range(6)] + [f"{number:x}".ljust(32, "0") for number in range(1, 6)]
shards = st.dictionaries(
    st.integers(0, 9), st.lists(st.sampled_from(KEYS), min_size=1, max_size=SHARD_SIZE, unique=True), max_size=5
)


def make_shard(number: int, keys: Iterable[str]) -> Shard:
    packed = pack_keys(list(keys))
    return Shard(number, 100 + number, packed, np.arange(len(packed), dtype=np.uint32), Stamp(1000, number))


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
    agree(found, content)  # a catalog never changes


@pytest.mark.parametrize("wrong", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "../../evil", "é" * 32])
def test_what_is_no_key_is_not_found(wrong: str) -> None:
    found = Index.from_shards([make_shard(0, [key(0)])], SHARD_SIZE)
    assert found.find([wrong, key(0), wrong]).tolist() == [-1, 0, -1]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentStore:
    """A store that is taken for a large one."""
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 3)
    store = create(tmp_path)
    fill(store, 18)
    assert (store.path / SNAPSHOT).is_file()
    return store


def records_read(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[int]:
    """Open a store, and say which records that took; what it holds must be right."""
    opened: list[int] = []
    real = latent_store.read_record

    def read_record(store: Path, number: int, recipe_id: str) -> object:
        opened.append(number)
        return real(store, number, recipe_id)

    with monkeypatch.context() as patch:
        patch.setattr(latent_store, "read_record", read_record)
        store = open_store(path)
    np.testing.assert_array_equal(store.read(store.keys), expected(store, [int(k, 16) for k in store.keys]))
    return opened


def test_a_large_store_opens_from_its_snapshot_and_reads_only_newer_records(
    large: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert records_read(monkeypatch, large.path) == []
    write(large, [18])
    assert records_read(monkeypatch, large.path) == [5]
    large.publish()
    assert records_read(monkeypatch, large.path) == []


def test_a_record_that_was_moved_away_or_replaced_is_not_read_from_the_snapshot(
    large: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (large.path / "commits" / "1.json").rename(large.path / "lost+found" / "1.json")
    os.utime(large.path / "commits" / "2.json", ns=(1, 1))
    assert records_read(monkeypatch, large.path) == [2]
    assert open_store(large.path).keys == tuple(key(n) for n in (*range(4), *range(8, 18)))


def test_a_copy_of_a_store_goes_by_its_records(large: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in (large.path / "commits").iterdir():
        os.utime(record, ns=(1, 1))  # as `cp -r` does
    assert records_read(monkeypatch, large.path) == [0, 1, 2, 3, 4]


def test_no_flipped_byte_of_a_snapshot_changes_what_is_read(
    large: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = large.path / SNAPSHOT
    intact = file.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(intact), 60).tolist():
        flip(file, position)
        assert records_read(monkeypatch, large.path) in ([], [0, 1, 2, 3, 4])
        file.write_bytes(intact)
    for content in (b"", intact[:-1], intact + b"\0", b"\xff" * 100):
        file.write_bytes(content)
        assert records_read(monkeypatch, large.path) == [0, 1, 2, 3, 4]


def test_a_snapshot_of_another_recipe_or_shard_size_is_of_no_use(large: LatentStore) -> None:
    stamps = {number: shard.stamp for number, shard in large.shards.items()}
    recipe_id = large.recipe.id
    assert read_snapshot(large.path, recipe_id, 4, stamps) is not None
    assert read_snapshot(large.path, "0" * 64, 4, stamps) is None
    assert read_snapshot(large.path, recipe_id, 3, stamps) is None


def test_snapshots_of_hostile_tensors_are_refused(tmp_path: Path) -> None:
    stamps = {0: Stamp(10_000, 0)}
    good = make_shard(0, [key(0), key(1)])
    for wrong in (
        Shard(0, 100, good.keys, good.frames_crc32c[:1], Stamp(10_000, 0)),
        Shard(0, 100, good.keys[:0], good.frames_crc32c[:0], Stamp(10_000, 0)),
        Shard(0, 100, pack_keys([key(n) for n in range(9)]), np.zeros(9, np.uint32), Stamp(10_000, 0)),
    ):
        (tmp_path / SNAPSHOT).write_bytes(write_snapshot(Index({0: wrong}, SHARD_SIZE), "0" * 64))
        assert read_snapshot(tmp_path, "0" * 64, SHARD_SIZE, stamps) is None


def test_a_snapshot_larger_than_its_records_could_need_is_not_read(
    large: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(large.path / SNAPSHOT, 2**40)  # sparse
    assert records_read(monkeypatch, large.path) == [0, 1, 2, 3, 4]


def test_small_stores_have_no_snapshot(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 18)
    assert catalog.SNAPSHOT_FROM_SHARDS > 5
    assert not (store.path / SNAPSHOT).exists()


@pytest.mark.parametrize("name", ["shards", "keys", "frames_crc32c"])
def test_a_snapshot_with_a_single_number_for_a_table_is_of_no_use(large: LatentStore, name: str) -> None:
    """Its seal is right: whoever wrote it can make one."""
    file, stamps = large.path / SNAPSHOT, {number: shard.stamp for number, shard in large.shards.items()}
    tensors = dict(safetensors.numpy.load(file.read_bytes()))
    del tensors["seal"]
    tensors[name] = np.array(1, tensors[name].dtype)
    seal = catalog._seal(tensors, large.recipe.id)
    file.write_bytes(safetensors.numpy.save({**tensors, "seal": seal}))
    assert read_snapshot(large.path, large.recipe.id, 4, stamps) is None
