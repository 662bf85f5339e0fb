"""Dropped latents are gone for every reader, at once and for good, and nothing else is."""

import json
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import webdataset
import zarr

from theworld.pipeline.errors import DamagedShardError, MissingLatentError
from theworld.pipeline.store.folder import LatentStore, StoreFormat, load_store, open_store
from theworld.pipeline.store.keys.dropped import add_dropped, check_dropped
from theworld.pipeline.store.keys.index import unpack_keys
from theworld.pipeline.store.upkeep.drop import drop, dropped_rows, undo_drop
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.retire import pending_retirements
from theworld.pipeline.store.upkeep.transfer import copy, export, merge
from theworld.pipeline.store.upkeep.verify import verify

from ....faults.harness import Cut, FaultyFileLayer, amount, layer
from ....miniatures.store import create, expected, fill, flip, key, write
from ....permissions import listing

BAD = [1, 2, 4, 9]
GOOD = [0, 3, 5, 6, 7, 8]


@pytest.fixture(params=["zarr", "webdataset"])
def store(request: pytest.FixtureRequest, cache: Path) -> LatentStore:
    """Ten samples in shards of 2; shard 4 holds 8, 9."""
    return filled(cache, request.param)


def filled(cache: Path, format: StoreFormat) -> LatentStore:
    store = create(cache, format=format, shard_size=2)
    fill(store, 10)
    store.record_sources([(f"{'bad' if n in BAD else 'good'}/{n}.png", key(n)) for n in range(10)])
    return store


def keys(numbers: list[int]) -> list[str]:
    return [key(number) for number in numbers]


def assert_only_good_are_visible(path: Path) -> LatentStore:
    store = open_store(path, check_sizes=True)
    assert sorted(store.keys) == keys(GOOD)
    assert len(store) == len(GOOD)
    assert not store.holds(keys(BAD)).any()
    np.testing.assert_array_equal(store.read(keys(GOOD)), expected(store, GOOD))
    return store


def test_a_drop_without_apply_says_what_one_with_apply_does_and_changes_nothing(store: LatentStore) -> None:
    before = listing(store.path)
    planned = drop(store.path, keys(BAD), apply=False)
    assert listing(store.path) == before
    assert (planned.present, planned.shards) == (tuple(keys(BAD)), (0, 1, 2, 4))
    done = drop(store.path, keys(BAD), apply=True)
    assert (done.keys, done.present, done.shards, done.bytes) == (
        planned.keys,
        planned.present,
        planned.shards,
        planned.bytes,
    )
    assert_only_good_are_visible(store.path)


def test_no_payload_holds_what_was_dropped_and_the_old_ones_are_kept_with_a_report(
    store: LatentStore,
) -> None:
    plane = store.read(keys([9]))[0, 0, 0].tobytes()
    done = drop(store.path, keys(BAD), apply=True)
    after = assert_only_good_are_visible(store.path)
    assert verify(store.path, level="deep").findings == ()
    assert dropped_rows(after) == {}
    payloads = [after.payload_path(number).read_bytes() for number in after.shards]
    assert not any(plane in payload for payload in payloads)
    (folder,) = done.folders
    assert len([path for path in folder.iterdir() if plane in path.read_bytes()]) == 1
    report = json.loads((folder / "report.json").read_text())
    assert report["dropped"] == [{"key": key(n), "sources": [f"bad/{n}.png"]} for n in BAD]
    assert sorted(path.name.startswith("commits-") for path in folder.iterdir()) == [False] * 5 + [True] * 4


def test_other_programs_do_not_see_them_either(cache: Path) -> None:
    for format in ("zarr", "webdataset"):
        store = filled(cache / format, format)
        dropped = store.read(keys(BAD))
        drop(store.path, keys(BAD), apply=True)
        if format == "zarr":
            seen = np.asarray(zarr.open_group(store.path, mode="r")["latents"])
            samples = [row for row in seen if not np.isnan(row).all()]
        else:
            tars = sorted(map(str, (store.path / "shards").glob("*.tar")))
            read = webdataset.WebDataset(tars, shardshuffle=False).decode()
            samples = [sample["npy"] for sample in read]
        assert len(samples) == len(GOOD)
        assert not any(np.array_equal(row, gone) for row in samples for gone in dropped)


def test_a_shard_of_dropped_rows_alone_leaves_no_shard_behind(store: LatentStore) -> None:
    drop(store.path, keys([8, 9]), apply=True)
    assert list(open_store(store.path).shards) == [0, 1, 2, 3]
    assert verify(store.path).findings == ()


def test_a_key_that_two_shards_hold_is_dropped_from_both(store: LatentStore) -> None:
    with store.new_shard() as shard:
        for number in (9, 0):
            shard.add(key(number), expected(store, [number])[0])
        shard.commit({}, again=True)
    drop(store.path, keys(BAD), apply=True)
    assert_only_good_are_visible(store.path)
    assert verify(store.path, level="deep").damage == ()


def test_dropped_keys_do_not_come_back_by_merge_or_export_and_undo_lets_them(cache: Path) -> None:
    store, other = filled(cache / "a", "zarr"), filled(cache / "b", "webdataset")
    drop(store.path, keys(BAD), apply=True)
    (merged,) = merge(store.path, [other])
    assert (merged.copied, merged.present, merged.dropped) == (0, len(GOOD), len(BAD))
    exported, _ = export(open_store(store.path), cache / "c")
    assert copy(other, exported).dropped == len(BAD)
    assert sorted(exported.keys) == keys(GOOD)
    assert merge(other.path, [open_store(store.path)])[0].copied == 0
    assert len(open_store(other.path)) == 10, "what another store holds by itself stays"
    assert undo_drop(store.path, keys([1]), apply=False).keys == (key(1),)
    undo_drop(store.path, keys([1]), apply=True)
    assert merge(store.path, [other])[0].copied == 1
    undo_drop(store.path, None, apply=True)
    assert merge(store.path, [other])[0].copied == 3
    assert len(open_store(store.path)) == 10


def test_what_a_job_at_work_commits_of_them_is_invisible_and_the_next_drop_takes_it(store: LatentStore) -> None:
    job = load_store(store.path)
    drop(store.path, keys(BAD), apply=True)
    write(job, [11])
    with job.new_shard() as shard:
        shard.add(key(9), expected(job, [9])[0])
        shard.commit({}, again=True)
    assert not open_store(store.path).holds(keys(BAD)).any()
    (finding,) = [finding for finding in verify(store.path).findings if finding.what != "index"]
    assert (finding.what, finding.damage) == ("dropped", False)
    assert "cache drop" in finding.message
    drop(store.path, [], apply=True)
    assert verify(store.path).findings == ()


def test_a_damaged_shard_stops_a_drop_which_still_hides_them_and_goes_on_after_a_repair(store: LatentStore) -> None:
    flip(store.payload_path(1), store.layout.row_bytes + (10 if store.format == "zarr" else 700))  # in the row of 3
    with pytest.raises(DamagedShardError, match="cache repair"):
        drop(store.path, keys(BAD), apply=True)
    assert not open_store(store.path).holds(keys(BAD)).any()
    repair(store.path, apply=True)
    drop(store.path, [], apply=True)
    after = open_store(store.path)
    assert sorted(after.keys) == keys([n for n in GOOD if n != 3])
    assert dropped_rows(after) == {}


def test_a_damaged_list_of_dropped_keys_is_damage_and_repair_keeps_what_can_be_read(store: LatentStore) -> None:
    drop(store.path, keys(BAD), apply=True)
    (file,) = (store.path / "dropped").iterdir()
    flip(file, 40)
    with pytest.raises(DamagedShardError, match="dropped"):
        open_store(store.path)
    assert list(check_dropped(store.place)) == [file.relative_to(store.path).as_posix()]
    (finding,) = verify(store.path).damage
    assert finding.what == "dropped"
    repair(store.path, apply=True)
    assert {key(1), key(4), key(9)} <= set(unpack_keys(open_store(store.path).dropped))
    assert verify(store.path).damage == ()
    assert not file.exists()


def test_reading_a_dropped_key_is_as_reading_one_that_is_not_there(store: LatentStore) -> None:
    add_dropped(store.place, [key(1)])
    with pytest.raises(MissingLatentError):
        open_store(store.path).read([key(1)])


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_drop_cut_before_any_file_operation_never_brings_a_key_back_and_the_next_one_finishes(
    cache: Path, format: StoreFormat
) -> None:
    bad = [1, 9]
    good = [n for n in range(10) if n not in bad]
    for number in count(2, 1 if amount("ERRORS", 1) > 1 else 9):
        store = filled(cache / str(number), format)
        faulty = FaultyFileLayer(number)
        with layer(faulty), suppress(Cut):
            drop(store.path, keys(bad), apply=True)
        if faulty.hit is None:
            break
        after = open_store(store.path, check_sizes=True)
        visible = set(after.keys)
        assert visible >= set(keys(good))
        assert not len(after.dropped) or visible == set(keys(good)), "half of a drop is visible"
        np.testing.assert_array_equal(after.read(keys(good)), expected(after, good))
        (gc if number % 2 else repair)(store.path, apply=True)
        assert set(open_store(store.path).keys) == visible
        drop(store.path, keys(bad), apply=True)
        assert set(open_store(store.path, check_sizes=True).keys) == set(keys(good))
        assert dropped_rows(open_store(store.path)) == {}
        assert pending_retirements(store.path) == {}
        gc(store.path, grace_s=-10.0, apply=True)
        assert verify(store.path, level="deep").findings == ()
    assert number > 60
