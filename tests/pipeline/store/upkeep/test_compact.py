"""Small shards become full ones, row by row what they were, whatever happens on the way."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.errors import DamagedShardError, StoreLockedError
from theworld.pipeline.store.folder import LatentStore, StoreFormat, load_store, open_store
from theworld.pipeline.store.keys.dropped import add_dropped
from theworld.pipeline.store.records import origins_of
from theworld.pipeline.store.upkeep.compact import compact
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.maintenance import alone
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.retire import pending_retirements
from theworld.pipeline.store.upkeep.verify import verify
from theworld.train.data.loader import LatentDataset

from ....faults.harness import Cut, FaultyFileLayer, amount, layer
from ....miniatures.store import create, expected, flip, key, latent, write


def daily(cache: Path, days: int, each: int = 3, *, shard_size: int = 8, format: StoreFormat = "zarr") -> LatentStore:
    store = create(cache, shard_size=shard_size, format=format)
    for day in range(days):
        write(store, range(day * each, (day + 1) * each))
    store.publish()
    return store


def assert_whole(path: Path, samples: int) -> LatentStore:
    store = open_store(path)
    assert sorted(store.keys) == [key(number) for number in range(samples)]
    np.testing.assert_array_equal(store.read([key(n) for n in range(samples)]), expected(store, range(samples)))
    return store


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_many_small_runs_become_full_shards_in_their_order(cache: Path, format: StoreFormat) -> None:
    store = daily(cache, 10, format=format)
    planned = compact(store.path, apply=False)
    assert (planned.samples, planned.shards, planned.copied) == (30, (10, 4), 30)
    assert list(load_store(store.path).shards) == list(range(10)), "a dry run changes nothing"
    assert compact(store.path, apply=True) == planned
    after = assert_whole(store.path, 30)
    assert after.keys == tuple(key(number) for number in range(30))
    assert [(number, shard.rows) for number, shard in after.shards.items()] == [(0, 8), (1, 8), (2, 8), (3, 6)]
    assert verify(store.path, level="deep").findings == ()
    assert pending_retirements(store.path) == {}
    assert "nothing to compact" in compact(store.path, apply=True).lines(applied=True)[0]


def test_the_zarr_array_has_no_empty_rows_afterwards(cache: Path) -> None:
    zarr = pytest.importorskip("zarr")
    store = daily(cache, 10)
    compact(store.path, apply=True)
    array = zarr.open(store.path, mode="r")["latents"]
    assert array.shape[0] == 30
    np.testing.assert_array_equal(array[:], expected(store, range(30)))
    assert json.loads((store.path / "latents" / "zarr.json").read_text())["shape"][0] == 30


def test_who_made_the_rows_stays_known(cache: Path) -> None:
    store = daily(cache, 5)
    made = {origin.sha256: origin.of_rows for record in store.records() for origin in origins_of(record)}
    compact(store.path, apply=True)
    rows: dict[str, float] = {}
    for record in open_store(store.path).records():
        for origin in origins_of(record):
            assert origin.facts == {"host": "here"}
            rows[origin.sha256] = rows.get(origin.sha256, 0) + origin.rows
    assert rows == pytest.approx(made)


def test_full_shards_in_their_place_are_not_copied(cache: Path) -> None:
    store = create(cache, shard_size=4)
    for numbers in (range(4), range(4, 8), range(8, 10), range(10, 14), range(14, 15)):
        write(store, numbers)
    before = {number: store.payload_path(number).stat().st_ino for number in (0, 1)}
    assert compact(store.path, apply=True).copied == 7
    after = assert_whole(store.path, 15)
    assert [shard.rows for shard in after.shards.values()] == [4, 4, 4, 3]
    assert {number: store.payload_path(number).stat().st_ino for number in (0, 1)} == before


def test_a_gap_is_filled_from_the_end(cache: Path) -> None:
    store = create(cache, shard_size=4)
    for number in (1, 2, 3):
        with store.new_shard(number) as shard:
            for sample in range(4 * number - 4, 4 * number):
                shard.add(key(sample), latent(sample))
            shard.commit({})
    assert compact(store.path, apply=True).copied == 4
    assert list(assert_whole(store.path, 12).shards) == [0, 1, 2]


def test_rows_that_are_there_twice_or_were_dropped_go(cache: Path) -> None:
    store = daily(cache, 3, 3, shard_size=4)
    write(store, [0, 1, 9])
    add_dropped(store.place, [key(9)])
    compact(store.path, apply=True)
    after = assert_whole(store.path, 9)
    assert [shard.rows for shard in after.shards.values()] == [4, 4, 1]


def test_a_damaged_shard_stops_it_and_nothing_is_lost(cache: Path) -> None:
    store = daily(cache, 4)
    flip(store.payload_path(2), 100)
    with pytest.raises(DamagedShardError, match="repair"):
        compact(store.path, apply=True)
    repair(store.path, apply=True)
    compact(store.path, apply=True)
    after = open_store(store.path)
    assert {key(number) for number in (*range(6), *range(9, 12))} <= set(after.keys)
    assert after.array_rows == len(after)


def test_other_maintenance_keeps_it_away(cache: Path) -> None:
    store = daily(cache, 4)
    with alone(store.path), pytest.raises(StoreLockedError, match="compact"):
        compact(store.path, apply=True)


def test_a_training_beside_it_reads_on_and_a_job_beside_it_writes_on(cache: Path) -> None:
    store = daily(cache, 10)
    reader, writer, opened = LatentDataset(open_store(store.path)), load_store(store.path), open_store(store.path)
    with writer.new_shard(10) as shard:
        shard.add(key(30), latent(30))
        compact(store.path, apply=True)
        shard.commit({})
    np.testing.assert_array_equal(reader.read(range(30)).numpy(), expected(store, range(30)))
    np.testing.assert_array_equal(opened.read([key(n) for n in range(30)]), expected(store, range(30)))
    assert_whole(store.path, 31)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_cut_before_any_file_operation_loses_no_row_and_the_next_call_finishes(
    cache: Path, format: StoreFormat
) -> None:
    for number in count(1, 1 if amount("ERRORS", 1) > 1 else 7):
        store = daily(cache / str(number), 4, 2, shard_size=4, format=format)
        faulty = FaultyFileLayer(number)
        with layer(faulty), suppress(Cut):
            compact(store.path, apply=True)
        if faulty.hit is None:
            break
        assert_whole(store.path, 8)
        compact(store.path, apply=True)
        after = assert_whole(store.path, 8)
        assert [shard.rows for shard in after.shards.values()][:2] == [4, 4]
        gc(store.path, grace_s=-10.0, apply=True)
        assert verify(store.path, level="read").findings == ()
        assert pending_retirements(store.path) == {}
    assert number > 80
