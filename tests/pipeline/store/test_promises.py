"""A store copied in part says what is not here: any part of records and payloads, and folders that were left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.store import latent_store
from theworld.pipeline.store.folder import LatentStore, find_store, load_store, open_store
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.promises import promised_and_gone
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.verify import verify

from ...miniatures.store import TINY, create, expected, fill, key, write
from ...permissions import listing, record_file


@pytest.fixture(params=["zarr", "webdataset"])
def store(request: pytest.FixtureRequest, cache: Path, monkeypatch: pytest.MonkeyPatch) -> LatentStore:
    """Twenty samples in shards of 4, with a snapshot, sources and a failure."""
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 2)
    store = create(cache / "whole", format=request.param)
    fill(store, 20)
    store.record_sources([(f"{n}.png", key(n)) for n in range(20)] + [("bad.png", key(99))])
    store.record_failure(Failure(source="bad.png", key=key(99), reason="decode", message="no image", attempts=1))
    return store


def lose_record(store: LatentStore, number: int) -> None:
    record_file(store, number).unlink()


def lose_payload(store: LatentStore, number: int) -> None:
    store.payload_path(number).unlink()


def lose_both(store: LatentStore, number: int) -> None:
    lose_record(store, number)
    lose_payload(store, number)


def cut_short(store: LatentStore, number: int) -> None:
    payload = store.payload_path(number)
    payload.write_bytes(payload.read_bytes()[:-100])


LOSSES = [lose_record, lose_payload, lose_both, cut_short]


@pytest.mark.parametrize("numbers", [[0], [2], [4], [1, 3], [2, 3, 4]])
@pytest.mark.parametrize("lose", LOSSES)
def test_a_copy_that_lacks_something_is_damage_wherever_it_is_and_heals(
    store: LatentStore, lose: Callable[[LatentStore, int], None], numbers: list[int]
) -> None:
    copy = load_store(Path(shutil.copytree(store.path, store.path.parent.parent / "copy" / store.path.name)))
    for number in numbers:
        lose(copy, number)
    found = verify(copy.path)
    assert found.damage
    text = "\n".join(finding.message for finding in found.damage)
    assert all(str(number) in text for number in numbers)
    before = listing(copy.path)
    planned = repair(copy.path, apply=False)
    assert listing(copy.path) == before
    repaired = repair(copy.path, apply=True)
    assert repaired.moved == planned.moved
    assert verify(copy.path).damage == ()
    again = create(copy.path.parent, format=store.format)
    missing = [n for n in range(20) if key(n) not in again]
    assert len(missing) == 4 * len(numbers)
    for start in range(0, len(missing), 4):
        write(again, missing[start : start + 4])
    again.publish()
    np.testing.assert_array_equal(open_store(again.path).read([key(n) for n in range(20)]), expected(store, range(20)))
    assert verify(again.path, level="deep").damage == ()


@pytest.mark.parametrize("lose", [lose_record, lose_both])
def test_what_a_repair_forgets_stands_in_lost_and_found_key_by_key(
    store: LatentStore, lose: Callable[[LatentStore, int], None]
) -> None:
    lose(store, 1)
    report = repair(store.path, apply=True).report
    assert report is not None
    head, *rows = map(json.loads, report.read_text().splitlines())
    assert head["recipe_id"] == TINY.id
    assert rows == [{"key": key(n), "shard": 1, "sources": [f"{n}.png"]} for n in range(4, 8)]
    assert repair(store.path, apply=True).report is None
    kept = [path.name for path in (store.path / "lost+found").iterdir()]
    assert len(kept) == (2 if lose is lose_record else 1), "a payload without its record is kept too"


def test_a_job_that_opens_such_a_copy_keeps_the_trace_before_it_publishes(store: LatentStore) -> None:
    lose_both(store, 1)
    opened = create(store.path.parent, format=store.format)
    assert any("missing" in damage for damage in opened.damage)
    opened.publish()
    (report,) = (store.path / "lost+found").iterdir()
    assert len(report.read_text().splitlines()) == 5
    create(store.path.parent, format=store.format)
    assert len(list((store.path / "lost+found").iterdir())) == 1


def test_the_array_promises_rows_where_there_is_no_snapshot(cache: Path) -> None:
    store = create(cache)
    fill(store, 20)
    store.record_sources([(f"{n}.png", key(n)) for n in range(20)])
    lose_both(store, 3)
    lose_both(store, 4)
    (finding,) = verify(store.path).damage
    assert "20 rows" in finding.message
    assert "row 12" in finding.message
    report = repair(store.path, apply=True).report
    assert report is not None
    assert [json.loads(line)["sources"] for line in report.read_text().splitlines()[1:]] == [
        [f"{n}.png"] for n in range(12, 20)
    ]
    assert verify(store.path).damage == ()


def test_inputs_that_no_job_has_come_to_are_a_note_and_failed_ones_are_not(store: LatentStore) -> None:
    store.record_sources([("later.png", key(50))])
    (finding,) = verify(store.path).findings
    assert (finding.what, finding.damage) == ("unmade", False)
    assert "1 inputs" in finding.message
    assert "later.png" in finding.message


def test_gc_never_deletes_a_payload_whose_record_was_not_copied(store: LatentStore) -> None:
    lose_record(store, 1)
    sweep = gc(store.path, apply=True, grace_s=-10.0)
    assert (sweep.files, sweep.promised) == ((), 1)
    assert store.payload_path(1).exists()


@pytest.mark.parametrize("folder", ["tmp", "lost+found", "failed", "sources"])
def test_a_copy_without_its_empty_folders_is_whole(store: LatentStore, folder: str) -> None:
    shutil.rmtree(store.path / folder)
    assert verify(store.path).damage == ()
    assert not promised_and_gone(load_store(store.path))


def test_rows_that_others_hold_or_that_were_made_again_are_not_gone(store: LatentStore) -> None:
    lose_both(store, 1)
    write(load_store(store.path), [4, 5, 6, 7])
    assert not promised_and_gone(load_store(store.path)).keys


@pytest.mark.parametrize("lose", [lose_payload, cut_short])
def test_sizes_are_looked_at_before_work_begins(store: LatentStore, lose: Callable[[LatentStore, int], None]) -> None:
    for number in (1, 2, 3, 4):
        lose(store, number)
    open_store(store.path)  # to ask or to look costs no look at each payload
    with pytest.raises(DamagedShardError, match="4 of 5 payloads, with 16 latents") as caught:
        open_store(store.path, check_sizes=True)
    assert str(store.payload_path(1)) in str(caught.value)
    assert "and 1 more" in str(caught.value)
    assert "cache repair" in str(caught.value)
    opened = find_store(store.path.parent, TINY)
    assert opened is not None
    assert opened.keys == tuple(key(n) for n in range(4))
    (damage,) = opened.damage
    assert damage == str(caught.value)
    opened.refresh()
    assert len(opened) == 4
    again = create(store.path.parent, format=store.format)
    write(again, [4, 5, 6, 7])
    assert len(again) == 8
