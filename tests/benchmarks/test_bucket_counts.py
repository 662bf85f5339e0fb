"""What reading from a bucket asks for: requests and bytes, as the server of benchmarks/bucket.py counts them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from benchmarks.bucket_reading import read_in_blocks
from benchmarks.bucket_server import BUCKET, ServerProcess, server_of
from theworld.pipeline import LatentSpec, Recipe, open_store
from theworld.pipeline.store.folder import LatentStore
from theworld.pipeline.store.reading.shard_cache import ShardCache

from ..miniatures.store import create, expected, fill

COUNT, SHARD = 24, 4
SPEC = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
REAL = Recipe(world="sha256:" + "0" * 64, height=112, width=112, rollout_steps=8)
"""Latents of shape (16, 9, 14, 14): 56 KB."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LatentStore, ServerProcess]]:
    """A store on disk, and a server that has its files."""
    folder = tmp_path_factory.mktemp("bucket")
    store = create(folder / "cache", recipe=REAL, spec=SPEC, shard_size=SHARD)
    fill(store, COUNT)
    with pytest.MonkeyPatch.context() as patch, server_of(folder) as server:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("of-this-machine")))
        yield store, server


def opened() -> LatentStore:
    return open_store(f"s3://{BUCKET}/cache")


@pytest.mark.parametrize("steps", [8, 2, 0])
def test_ranges_ask_once_a_sample_and_for_little_more_than_its_frames(
    bucket: tuple[LatentStore, ServerProcess], steps: int
) -> None:
    on_disk, server = bucket
    store, numbers = opened(), [17, 3, 3, 23, 0]
    buffer = store.buffer(len(numbers), rollout_steps=steps)
    server.counts()
    read = store.read_rows(store.rows[numbers], buffer)
    counts = server.counts()
    assert_array_equal(read, expected(on_disk, numbers)[:, :, : 1 + steps])
    assert counts.requests == len(numbers)
    assert read.nbytes <= counts.payload_bytes <= 1.02 * read.nbytes


@pytest.mark.parametrize("window", [1, 2, 6])
def test_the_local_cache_fetches_each_shard_once_and_a_second_epoch_asks_for_nothing(
    bucket: tuple[LatentStore, ServerProcess], tmp_path: Path, window: int
) -> None:
    on_disk, server = bucket
    store = opened()
    store.use_local_cache(ShardCache(tmp_path / "shards"), window=window)
    server.counts()
    for epoch in range(2):
        seen = []
        for batch, latents in read_in_blocks(store, batch_size=4, window=window, seed=epoch):
            assert_array_equal(latents, expected(on_disk, np.asarray(batch).tolist()))
            seen += np.asarray(batch).tolist()
        assert sorted(seen) == list(range(COUNT))
        counts, sizes = server.counts(), [shard.bytes for shard in on_disk.shards.values()]
        if epoch == 0:
            assert counts.payload_bytes == sum(sizes)
            # a shard: its range, a look before and after it, and one of each reader that came before it was begun
            assert 3 * len(sizes) <= counts.requests <= 5 * len(sizes)
        else:
            assert counts.requests == 0


def test_a_small_cache_fetches_no_more_than_a_window_beyond_an_epoch(
    bucket: tuple[LatentStore, ServerProcess], tmp_path: Path
) -> None:
    on_disk, server = bucket
    sizes, window = [shard.bytes for shard in on_disk.shards.values()], 2
    store = opened()
    store.use_local_cache(ShardCache(tmp_path / "shards", (window + 2) * max(sizes)), window=window)
    server.counts()
    assert sum(len(batch) for batch, _ in read_in_blocks(store, batch_size=4, window=window, seed=0)) == COUNT
    assert server.counts().payload_bytes <= sum(sizes) * (1 + window / len(sizes))
