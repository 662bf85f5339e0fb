"""Old shards go only when others hold their rows, whatever happens on the way."""

from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.store.folder import LatentStore, StoreFormat, load_store, open_store
from theworld.pipeline.store.keys.dropped import add_dropped
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.maintenance import alone
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.retire import (
    Retired,
    finish_retirements,
    new_folder_aside,
    pending_retirements,
    retiring,
)
from theworld.pipeline.store.upkeep.verify import verify

from ....faults.harness import Cut, FaultyFileLayer, amount, layer
from ....miniatures.store import create, expected, fill, key, latent


@pytest.fixture(params=["zarr", "webdataset"])
def store(request: pytest.FixtureRequest, cache: Path) -> LatentStore:
    """Eight samples in shards of 2."""
    store = create(cache, format=request.param, shard_size=2)
    fill(store, 8)
    return store


def write_again(store: LatentStore, numbers: list[int]) -> None:
    with store.new_shard() as shard:
        for number in numbers:
            shard.add(key(number), latent(number, store.sample_shape))
        shard.commit({}, again=True)


def replace_two(path: Path, *, keep: bool) -> Retired:
    """Shards 1 and 2 hold 2, 3 and 4, 5: write them in another order, and take the old ones away."""
    with alone(path):
        store = load_store(path)
        finish_retirements(store)
        old = [number for number in (1, 2) if number in store.shards]
        aside = new_folder_aside(path, "dropped") if keep else None
        with retiring(store, old, why="compact", aside=aside) as outcome:
            if old:
                write_again(store, [5, 2])
                write_again(store, [4, 3])
        store.publish()
    return outcome[0] if outcome else Retired()


def assert_whole(path: Path) -> LatentStore:
    store = open_store(path)
    assert sorted(store.keys) == [key(number) for number in range(8)]
    np.testing.assert_array_equal(store.read([key(n) for n in range(8)]), expected(store, range(8)))
    return store


@pytest.mark.parametrize("keep", [True, False])
def test_old_shards_give_way_to_new_ones(store: LatentStore, keep: bool) -> None:
    retired = replace_two(store.path, keep=keep)
    assert (retired.shards, retired.kept) == ((1, 2), ())
    after = assert_whole(store.path)
    assert list(after.shards) == [0, 3, 4, 5]
    assert not any(store.payload_path(number).exists() for number in (1, 2))
    assert verify(store.path, level="deep").findings == ()
    kept = {file.name for folder in retired.folders for file in folder.iterdir()}
    assert len(kept) == (4 if keep else 0)
    assert pending_retirements(store.path) == {}


def test_the_empty_folders_of_zarr_shards_go_too(cache: Path) -> None:
    store = create(cache, shard_size=2)
    fill(store, 8)
    replace_two(store.path, keep=False)
    assert sorted(folder.name for folder in (store.path / "latents" / "c").iterdir()) == ["0", "3", "4", "5"]


def test_a_shard_whose_rows_nothing_else_holds_stays(store: LatentStore) -> None:
    with alone(store.path), retiring(store, [1, 2], why="compact") as outcome:
        write_again(store, [2, 3])
    assert (outcome[0].shards, outcome[0].kept) == ((1,), (2,))
    assert_whole(store.path)


def test_a_row_whose_payload_is_not_there_counts_for_nothing(store: LatentStore) -> None:
    with alone(store.path), retiring(store, [1], why="compact") as outcome:
        write_again(store, [2, 3])
        store.payload_path(4).write_bytes(b"short")
    assert (outcome[0].shards, outcome[0].kept) == ((), (1,))


def test_dropped_rows_need_no_other_shard(store: LatentStore) -> None:
    add_dropped(store.place, [key(2), key(3)])
    with alone(store.path), retiring(store, [1], why="drop") as outcome:
        pass
    assert outcome[0].shards == (1,)
    assert key(2) not in open_store(store.path)


@pytest.mark.parametrize("finish", [repair, gc])
def test_what_a_crash_left_is_finished_by_the_next_repair_or_gc(store: LatentStore, finish: object) -> None:
    with suppress(ZeroDivisionError), alone(store.path), retiring(store, [1, 2], why="compact"):
        write_again(store, [2, 3])
        raise ZeroDivisionError
    assert_whole(store.path)
    assert len(pending_retirements(store.path)) == 1
    finish(store.path, apply=True)  # type: ignore[operator]
    assert list(assert_whole(store.path).shards) == [0, 2, 3, 4]
    assert pending_retirements(store.path) == {}


@pytest.mark.parametrize(("format", "keep"), [("zarr", False), ("webdataset", True)])
def test_a_cut_before_any_file_operation_loses_no_row_and_the_next_call_finishes(
    cache: Path, format: StoreFormat, keep: bool
) -> None:
    for number in count(1, 1 if amount("ERRORS", 1) > 1 else 3):
        store = create(cache / str(number), format=format, shard_size=2)
        fill(store, 8)
        faulty = FaultyFileLayer(number)
        with layer(faulty), suppress(Cut):
            replace_two(store.path, keep=keep)
        if faulty.hit is None:
            break
        assert_whole(store.path)
        repair(store.path, apply=True)
        assert_whole(store.path)
        replace_two(store.path, keep=keep)
        assert len(assert_whole(store.path).shards) in (4, 5)
        gc(store.path, grace_s=-10.0, apply=True)
        assert {finding.what for finding in verify(store.path, level="read").findings} <= {"twice"}
        assert pending_retirements(store.path) == {}
    assert number > 40


def test_a_number_that_another_writer_took_meanwhile_is_left_alone(store: LatentStore) -> None:
    """The record of shard 3 went, its payload went, then the command died; a writer took the number."""
    with suppress(ZeroDivisionError), alone(store.path), retiring(store, [3], why="compact"):
        write_again(store, [6, 7])
        raise ZeroDivisionError
    (store.path / "commits" / "3.json").unlink()
    payload = store.payload_path(3)
    payload.write_bytes(b"of a writer at work")
    repair(store.path, apply=True)
    assert payload.read_bytes() == b"of a writer at work"
    assert_whole(store.path)
