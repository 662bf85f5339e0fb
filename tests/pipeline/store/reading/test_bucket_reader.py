"""Rows of a store in a bucket: by requests of their own, or from whole shards in the local cache, and checked."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from theworld.pipeline.errors import DamagedShardError, StoreError
from theworld.pipeline.store.folder import LatentStore, StoreFormat
from theworld.pipeline.store.reading.bucket_reader import BucketRowReader, ReadingOrder
from theworld.pipeline.store.reading.shard_cache import ShardCache
from theworld.pipeline.store.reading.shard_fetch import CachedShards

from ....miniatures.sources import FolderSource
from ....miniatures.store import create, expected, fill, flip

COUNT = 22


@pytest.fixture(params=["zarr", "webdataset"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> LatentStore:
    format: StoreFormat = request.param
    store = create(tmp_path / "latents", format=format)
    fill(store, COUNT)
    return store


def reader(store: LatentStore, source: FolderSource, cache: ShardCache | None = None) -> BucketRowReader:
    recipe_id = store.recipe.id
    shards = None
    if cache is not None:
        shards = CachedShards(cache, source, url="s3://bucket/tiny", recipe_id=recipe_id)
    return BucketRowReader(source, store.layout, recipe_id, store._catalog, shards)


def rows(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_each_row_comes_by_a_request_of_its_own_and_with_its_bytes_alone(store: LatentStore, steps: int) -> None:
    source = FolderSource(store.path)
    buffer = store.buffer(6, rollout_steps=steps)
    read = reader(store, source).read(rows(3, 21, 0, 3, 8), buffer)
    assert_array_equal(read, expected(store, [3, 21, 0, 3, 8])[:, :, : 1 + steps])
    assert source.reads == 5 * len(buffer.pieces)
    assert source.bytes == 5 * sum(size for _, _, size in store.layout.reads(1 + steps).segments)


def test_many_requests_are_in_flight_at_once(store: LatentStore) -> None:
    source = FolderSource(store.path)
    source.before_read = lambda: time.sleep(0.05)
    began = time.monotonic()
    reader(store, source).read(rows(*range(COUNT)), store.buffer(COUNT))
    assert time.monotonic() - began < 0.05 * COUNT / 3


def test_with_a_cache_whole_shards_come_once_and_later_epochs_cost_nothing(store: LatentStore, tmp_path: Path) -> None:
    source = FolderSource(store.path)
    cached = reader(store, source, ShardCache(tmp_path / "cache"))
    for _ in range(3):
        read = cached.read(rows(*range(COUNT)), store.buffer(COUNT))
        assert_array_equal(read, expected(store, range(COUNT)))
    assert source.bytes == sum(shard.bytes for shard in store.shards.values())
    another = reader(store, source, ShardCache(tmp_path / "cache"))
    before = source.bytes
    assert_array_equal(another.read(rows(5), store.buffer(1)), expected(store, [5]))
    assert source.bytes == before


def test_single_rows_of_shards_that_are_not_there_come_by_requests(store: LatentStore, tmp_path: Path) -> None:
    source = FolderSource(store.path)
    cached = reader(store, source, ShardCache(tmp_path / "cache"))
    cached.read(rows(0), store.buffer(1))
    before = source.reads
    read = cached.read(rows(1, 9, 2, 17), store.buffer(4), whole_shards=False)
    assert_array_equal(read, expected(store, [1, 9, 2, 17]))
    assert source.reads - before == 2


def test_damage_in_the_bucket_is_named_and_never_read(store: LatentStore, tmp_path: Path) -> None:
    offset = store.layout.reads(1).segments[-1][0]
    flip(store.payload_path(1), store.layout.row_bytes + offset + 5)
    store.payload_path(2).unlink()
    source = FolderSource(store.path)
    for reads in (reader(store, source), reader(store, source, ShardCache(tmp_path / "cache"))):
        with pytest.raises(DamagedShardError, match=r"shard 1, .*does not match its checksums"):
            reads.read(rows(4, 5, 6, 7), store.buffer(4))
        with pytest.raises(DamagedShardError, match="shard 2, "):
            reads.read(rows(8), store.buffer(1))
        assert_array_equal(reads.read(rows(12, 0), store.buffer(2)), expected(store, [12, 0]))


def test_damage_of_the_local_copy_alone_is_healed_by_another_fetch(store: LatentStore, tmp_path: Path) -> None:
    source = FolderSource(store.path)
    reader(store, source, ShardCache(tmp_path / "cache")).read(rows(4), store.buffer(1))
    [copy] = (tmp_path / "cache").glob("*/shards/1-*")
    status = copy.stat()
    copy.write_bytes(bytes(status.st_size))
    cached = reader(store, source, ShardCache(tmp_path / "cache"))
    assert_array_equal(cached.read(rows(4, 5), store.buffer(2)), expected(store, [4, 5]))


def test_an_answer_that_is_cut_and_a_bucket_that_fails_are_told(store: LatentStore) -> None:
    source = FolderSource(store.path)
    reads = reader(store, source)

    def fail() -> None:
        raise StoreError("the bucket does not answer")

    source.before_read = fail
    with pytest.raises(StoreError, match="does not answer"):
        reads.read(rows(0, 1, 2), store.buffer(3))
    source.before_read = lambda: None
    os.truncate(store.payload_path(0), store.layout.row_bytes + 10)
    with pytest.raises(DamagedShardError, match="it ends within row 1"):
        reads.read(rows(1), store.buffer(1))


def test_an_evicted_shard_that_is_open_takes_no_disk_for_long(store: LatentStore, tmp_path: Path) -> None:
    size = max(shard.bytes for shard in store.shards.values())
    cached = reader(store, FolderSource(store.path), ShardCache(tmp_path / "cache", 2 * size))
    for row in range(0, COUNT, 4):
        cached.read(rows(row), store.buffer(1))
        assert cached._files.open_count <= 3


def test_the_shards_of_coming_batches_are_fetched_in_their_order_and_not_too_many(
    store: LatentStore, tmp_path: Path
) -> None:
    source = FolderSource(store.path)
    cached = reader(store, source, ShardCache(tmp_path / "cache"))
    fetched: list[int] = []
    cached.fetch_ahead = fetched.append  # type: ignore[method-assign]
    order = ReadingOrder(cached, [[0, 1], [0, 1], [1, 2], [2, 3], [3, 4], [0]], most_shards=3)
    assert fetched == [0, 1, 2]
    order.advance()
    order.advance()
    assert fetched == [0, 1, 2, 3]
    order.advance()
    assert fetched == [0, 1, 2, 3, 4]
    for _ in range(9):
        order.advance()
    assert fetched == [0, 1, 2, 3, 4, 0]


def test_what_is_fetched_ahead_is_there_when_it_is_read(store: LatentStore, tmp_path: Path) -> None:
    source = FolderSource(store.path)
    cached = reader(store, source, ShardCache(tmp_path / "cache"))
    ReadingOrder(cached, [[0], [1], [2]], most_shards=3)
    assert cached.shards is not None
    until = time.monotonic() + 20
    while cached.shards.stats.shards < 3 and time.monotonic() < until:
        time.sleep(0.01)
    threads, before = threading.active_count(), source.reads
    assert_array_equal(cached.read(rows(0, 4, 8), store.buffer(3)), expected(store, [0, 4, 8]))
    assert source.reads == before
    assert threading.active_count() <= threads


def test_a_shard_is_fetched_ahead_once_however_often_it_is_wanted(store: LatentStore, tmp_path: Path) -> None:
    source = FolderSource(store.path)
    source.before_read = lambda: time.sleep(0.05)
    cached = reader(store, source, ShardCache(tmp_path / "cache"))
    for _ in range(10):
        cached.fetch_ahead(1)
    assert_array_equal(cached.read(rows(4, 7), store.buffer(2)), expected(store, [4, 7]))
    assert (source.reads, source.looks) == (1, 2)


def test_what_goes_wrong_ahead_is_told_by_the_reader_and_the_next_one_tries_again(
    store: LatentStore, tmp_path: Path
) -> None:
    source = FolderSource(store.path)
    cached = reader(store, source, ShardCache(tmp_path / "cache"))

    def fail() -> None:
        raise StoreError("the bucket does not answer")

    source.before_read = fail
    cached.fetch_ahead(1)
    with pytest.raises(StoreError, match="does not answer"):
        cached.read(rows(4), store.buffer(1))
    source.before_read = lambda: None
    assert_array_equal(cached.read(rows(4), store.buffer(1)), expected(store, [4]))


def test_batches_are_read_further_ahead_by_requests_than_from_whole_shards(store: LatentStore, tmp_path: Path) -> None:
    single = reader(store, FolderSource(store.path))
    assert single.batches_ahead > store.reader.batches_ahead
    single.use_cache(ShardCache(tmp_path / "cache"), window=2)
    assert single.batches_ahead == store.reader.batches_ahead
