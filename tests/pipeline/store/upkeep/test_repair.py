"""What repair moves and gc deletes: only what is damaged, only what is nobody's, and never at the wrong moment."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theworld.pipeline.errors import DamagedShardError, StoreError, StoreLockedError
from theworld.pipeline.files import atomic
from theworld.pipeline.store import latent_store, payloads
from theworld.pipeline.store import writer as shard_writer
from theworld.pipeline.store.folder import LatentStore, StoreFormat, load_store, open_store
from theworld.pipeline.store.keys.index import SNAPSHOT
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.upkeep import garbage
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.verify import verify

from ....faults.harness import Cut, FaultyFileLayer, Holding, layer, start
from ....miniatures.store import create, expected, fill, flip, key, write
from ....permissions import as_another_user, become_a_folder, become_a_pipe, contents, listing, poison, record_file
from ...files.test_atomic import PatchedOs

HOUR_S = 3600.0
NOW = -10.0
"""A grace that makes everything old, whatever the clock's steps."""


@pytest.fixture(params=["zarr", "webdataset"])
def store(request: pytest.FixtureRequest, cache: Path) -> LatentStore:
    """Ten samples in shards of 4, 4 and 2, and a row in each log."""
    return filled(cache, request.param)


def filled(cache: Path, format: StoreFormat) -> LatentStore:
    store = create(cache, format=format)
    fill(store, 10)
    store.record_sources([("a.png", key(0))])
    store.record_failure(Failure(source="b.png", key=None, reason="decode", message="no image", attempts=1))
    return store


def heal(store: LatentStore) -> LatentStore:
    """What precompute does after a repair: write what is missing. Then all is as it was."""
    again = create(store.path.parent, format=store.format)
    missing = [number for number in range(10) if key(number) not in again]
    for begin in range(0, len(missing), 4):
        write(again, missing[begin : begin + 4])
    again.publish()
    healed = open_store(store.path)
    np.testing.assert_array_equal(healed.read([key(n) for n in range(10)]), expected(store, range(10)))
    assert verify(store.path, level="deep").findings == ()
    return healed


def spoil(path: Path) -> None:
    path.write_bytes(b"spoilt" * 100)


def flip_a_bit(path: Path) -> None:
    flip(path, 30)


def test_a_repair_without_apply_says_what_one_with_apply_does_and_changes_nothing(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    flip(record_file(store, 2), 40)
    before = listing(store.path)
    planned = repair(store.path, apply=False)
    assert listing(store.path) == before
    damaged = (*(record_file(store, 1), store.payload_path(1)), *(record_file(store, 2), store.payload_path(2)))
    assert planned.moved == damaged
    assert repair(store.path, apply=True).moved == damaged
    assert not any(path.exists() for path in damaged)


def test_a_repair_moves_record_and_payload_and_deletes_no_byte(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    flip(record_file(store, 2), 40)
    before = contents(store.path)
    wanted = [record_file(store, 1).read_bytes(), store.payload_path(1).read_bytes()]
    repair(store.path, apply=True)
    assert contents(store.path) == before
    kept = {path.read_bytes() for path in (store.path / "lost+found").iterdir()}
    assert kept >= set(wanted)
    after = open_store(store.path)
    assert after.keys == tuple(key(n) for n in range(4))
    np.testing.assert_array_equal(after.read(after.keys), expected(store, range(4)))


def test_a_repair_of_a_sound_store_moves_nothing(store: LatentStore) -> None:
    before = listing(store.path)
    assert repair(store.path, apply=True, level="deep").moved == ()
    after = listing(store.path)
    assert after.keys() == before.keys()
    assert [name for name in before if Path(name).suffix and after[name] != before[name]] == []


def test_a_repair_can_be_repeated(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    assert len(repair(store.path, apply=True).moved) == 2
    before = contents(store.path)
    again = repair(store.path, apply=True)
    assert (again.moved, again.verification.damage) == ((), ())
    assert contents(store.path) == before


@pytest.mark.parametrize("harm", [flip_a_bit, spoil, Path.unlink, become_a_pipe, become_a_folder])
@pytest.mark.parametrize("what", ["record", "payload"])
def test_a_repair_and_writing_what_is_missing_heal(store: LatentStore, what: str, harm: Callable[[Path], None]) -> None:
    harm(record_file(store, 2) if what == "record" else store.payload_path(2))
    before = contents(store.path)
    repair(store.path, apply=True)
    assert verify(store.path, level="deep").damage == ()
    assert contents(store.path) >= before
    open_store(store.path)
    heal(store) if (what, harm) != ("record", Path.unlink) else write(create(store.path.parent), [8, 9])


@pytest.mark.parametrize("harm", [flip_a_bit, spoil, become_a_pipe, become_a_folder])
@pytest.mark.parametrize("folder", ["failed", "sources"])
def test_a_damaged_row_of_a_log_is_set_aside(store: LatentStore, folder: str, harm: Callable[[Path], None]) -> None:
    (file,) = (store.path / folder).iterdir()
    harm(file)
    assert repair(store.path, apply=True).moved == (file,)
    after = open_store(store.path)
    assert (after.failures() if folder == "failed" else after.sources()) in ([], {})
    assert verify(store.path).damage == ()


@pytest.mark.parametrize("harm", [spoil, Path.unlink, become_a_pipe, become_a_folder])
@pytest.mark.parametrize("name", ["latents/zarr.json", "zarr.json"])
def test_array_metadata_is_made_again(cache: Path, name: str, harm: Callable[[Path], None]) -> None:
    store = filled(cache, "zarr")
    right = (store.path / name).read_bytes()
    harm(store.path / name)
    before = contents(store.path)
    repair(store.path, apply=True)
    assert (store.path / name).read_bytes() == right
    assert verify(store.path, level="deep").findings == ()
    assert before <= contents(store.path)
    assert len(open_store(store.path)) == 10


def test_array_metadata_of_another_array_is_kept_in_lost_and_found(cache: Path) -> None:
    store = filled(cache, "zarr")
    file = store.path / "latents" / "zarr.json"
    foreign = json.dumps({**json.loads(file.read_text()), "codecs": []}).encode()
    file.write_bytes(foreign)
    repair(store.path, apply=True)
    assert foreign in {path.read_bytes() for path in (store.path / "lost+found").iterdir()}


def test_what_only_deep_finds_is_repaired_deeply(store: LatentStore) -> None:
    poison(store, 5)
    assert repair(store.path, apply=True).moved == ()
    assert len(repair(store.path, apply=True, level="deep").moved) == 2
    heal(store)


def test_a_damaged_manifest_stays_where_it_is(store: LatentStore) -> None:
    flip(store.path / "theworld.json", 60)
    before = listing(store.path)
    planned = repair(store.path, apply=False)
    assert planned.moved == ()
    assert [finding.what for finding in planned.unhealed] == ["manifest"]
    with pytest.raises(DamagedShardError, match="copy of the store"):
        repair(store.path, apply=True)
    assert listing(store.path) == before


def test_names_taken_in_lost_and_found_are_left_alone(store: LatentStore) -> None:
    kept = []
    for round in range(3):
        flip(store.payload_path(1), 3 + round)
        kept += [record_file(store, 1).read_bytes(), store.payload_path(1).read_bytes()]
        repair(store.path, apply=True)
        with create(store.path.parent, format=store.format).new_shard(1) as shard:
            for number in range(4, 8):
                shard.add(key(number), expected(store, [number])[0])
            shard.commit({"round": round})
    found = [path.read_bytes() for path in (store.path / "lost+found").iterdir()]
    assert sorted(found) == sorted(kept)
    heal(store)


def test_a_repair_goes_without_the_snapshot_that_spoke_for_what_is_gone(
    store: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 2)
    store.publish()
    flip(store.payload_path(1), 3)
    repair(store.path, apply=True)
    numbers = (0, 1, 2, 3, 8, 9)
    assert open_store(store.path).keys == tuple(key(n) for n in numbers)
    for number in (0, 2):
        flip(record_file(store, number), 40)
    repair(store.path, apply=True)
    assert not (store.path / SNAPSHOT).exists()
    assert open_store(store.path).keys == ()
    heal(store)


def test_a_store_copied_without_its_empty_folders_is_repaired_and_swept(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    for name in ("tmp", "lost+found"):
        (store.path / name).rmdir()
    gc(store.path, apply=False)
    gc(store.path, apply=True)
    for name in ("tmp", "lost+found"):
        shutil.rmtree(store.path / name, ignore_errors=True)
    repair(store.path, apply=True)
    heal(store)


def test_a_file_where_a_shards_folder_belongs_stops_neither_repair_nor_writers(cache: Path) -> None:
    store = filled(cache, "zarr")
    shutil.rmtree(store.path / "latents" / "c" / "2")
    (store.path / "latents" / "c" / "2").write_bytes(b"somebody's")
    repair(store.path, apply=True)
    heal(store)
    assert b"somebody's" in contents(store.path)


def test_a_repair_does_not_reach_through_a_link_out_of_the_store(cache: Path) -> None:
    store = filled(cache, "zarr")
    outside = cache / "outside"
    shutil.move(store.path / "latents" / "c" / "1", outside)
    (store.path / "latents" / "c" / "1").symlink_to(outside)
    flip(outside / "0" / "0" / "0" / "0", 3)
    before = listing(outside)
    with suppress(StoreError):
        repair(store.path, apply=True)
    assert listing(outside) == before


def test_a_store_that_is_reached_by_a_link_is_repaired_where_it_is(store: LatentStore, cache: Path) -> None:
    (cache / "elsewhere").mkdir()
    link = cache / "elsewhere" / store.path.name
    link.symlink_to(store.path)
    flip(store.payload_path(1), 3)
    assert repair(link, apply=True).moved == (
        link / "commits" / "1.json", link / store.payload_path(1).relative_to(store.path),
    )  # fmt: skip
    gc(link, apply=True)
    assert link.is_symlink()
    heal(store)


def test_a_gc_does_not_reach_through_a_link_out_of_the_store(cache: Path) -> None:
    store = filled(cache, "zarr")
    outside = cache / "outside"
    (outside / "0" / "0" / "0").mkdir(parents=True)
    (outside / "0" / "0" / "0" / "0").write_bytes(b"somebody's")
    (store.path / "latents" / "c" / "7").symlink_to(outside)
    before = listing(outside)
    with suppress(StoreError):
        gc(store.path, apply=True, grace_s=NOW)
    assert listing(outside) == before


@pytest.mark.parametrize("command", [repair, gc])
def test_a_folder_that_is_a_link_stops_who_would_change_the_store(
    store: LatentStore, command: Callable[..., object], cache: Path
) -> None:
    shutil.move(store.path / "lost+found", cache / "elsewhere")
    (store.path / "lost+found").symlink_to(cache / "elsewhere")
    flip(store.payload_path(1), 3)
    before = listing(store.path)
    with pytest.raises(StoreError, match="symbolic link"):
        command(store.path, apply=True)
    assert listing(store.path) == before


@pytest.mark.parametrize("command", [repair, gc])
def test_a_store_one_may_not_write_to_is_refused_and_kept(store: LatentStore, command: Callable[..., object]) -> None:
    flip(store.payload_path(1), 3)
    before = listing(store.path)

    def attempt() -> None:
        with pytest.raises(StoreError, match="Permission denied"):
            command(store.path, apply=True)
        command(store.path, apply=False)

    as_another_user(attempt)
    assert listing(store.path) == before


def spoilt(cache: Path, format: StoreFormat) -> LatentStore:
    store = filled(cache, format)
    flip(store.payload_path(1), 3)
    flip(record_file(store, 2), 40)
    return store


@pytest.mark.parametrize(("format", "accident"), [("zarr", "cut"), ("webdataset", "cut"), ("webdataset", "disk error")])
def test_a_repair_that_stops_before_any_file_operation_can_be_run_again(
    cache: Path, format: StoreFormat, accident: str
) -> None:
    template = spoilt(cache / "template", format)

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    for at in range(1, 1000):
        here = cache / "here" / template.path.name
        shutil.copytree(template.path, here)
        before = contents(here)
        faulty = FaultyFileLayer(at, fail if accident == "disk error" else None)
        stopped = False
        with layer(faulty):
            try:
                repair(here, apply=True)
            except (StoreError, Cut):
                stopped = True
        assert stopped == (faulty.hit is not None), "an error was swallowed"
        if not stopped:
            break
        halfway = load_store(here)
        assert {key(n) for n in range(4)} <= set(halfway.keys), faulty.hit
        np.testing.assert_array_equal(halfway.read([key(n) for n in range(4)]), expected(template, range(4)))
        assert before <= contents(here), faulty.hit
        repair(here, apply=True)
        assert before <= contents(here), faulty.hit
        assert open_store(here).keys == tuple(key(n) for n in range(4)), faulty.hit
        assert verify(here, level="read").damage == (), faulty.hit
        shutil.rmtree(cache / "here")
    assert 20 < at < 999


def test_a_store_cut_within_a_repair_heals(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    with layer(FaultyFileLayer(6)), pytest.raises(Cut):
        repair(store.path, apply=True)
    repair(store.path, apply=True)
    gc(store.path, apply=True, grace_s=NOW)
    heal(store)


def plant(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left behind")
    return path


def test_gc_deletes_what_is_old_and_nobodys_and_nothing_else(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    repair(store.path, apply=True)
    old = [plant(store.path / "tmp" / "1-dead"), plant(store.payload_path(7)), plant(store.payload_path(0xFFFF))]
    young = [plant(store.path / "tmp" / "2-alive"), plant(store.payload_path(8))]
    strangers = [plant(store.path / "notes.txt"), plant(store.path / store.layout.payload_folder / "notes.txt")]
    for path in young:
        os.utime(path, (2**33, 2**33))
    before = listing(store.path)
    planned = gc(store.path, apply=False, grace_s=NOW)
    assert listing(store.path) == before
    done = gc(store.path, apply=True, grace_s=NOW)
    assert sorted(done.files) == sorted(planned.files) == sorted(old)
    assert done.bytes == planned.bytes == 3 * len(b"left behind")
    assert (done.young, planned.young) == (2, 2)
    gone = before.keys() - listing(store.path).keys()
    assert gone == {str(path.relative_to(store.path)) for path in old}
    assert all(path.exists() for path in strangers)
    aside = [path.stat().st_size for path in (store.path / "lost+found").iterdir()]
    assert done.set_aside == (len(aside), sum(aside)) == (2, sum(aside))
    for path in young:
        path.unlink()
    heal(store)


def test_gc_goes_by_when_a_name_was_given_too_not_only_by_when_bytes_were_written(store: LatentStore) -> None:
    for path in (plant(store.path / "tmp" / "1-copied"), plant(store.payload_path(7))):
        os.utime(path, (1, 1))  # as `cp --preserve` and rsync do
    assert gc(store.path, apply=True, grace_s=HOUR_S).files == ()


def test_gc_keeps_two_weeks_by_default(store: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(store.payload_path(7))
    later = store.payload_path(7).stat().st_mtime + 14 * 24 * HOUR_S
    monkeypatch.setattr(garbage.time, "time", lambda: later - 60)
    assert gc(store.path, apply=False).young == 1
    monkeypatch.setattr(garbage.time, "time", lambda: later + 60)
    assert gc(store.path, apply=False).files == (store.payload_path(7),)


def test_gc_asks_the_file_systems_clock_not_this_machines(store: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(store.payload_path(7))
    monkeypatch.setattr(garbage.time, "time", lambda: 2.0**33)
    assert gc(store.path, apply=True).files == ()


def test_gc_deletes_nothing_while_a_record_is_damaged(store: LatentStore) -> None:
    plant(store.payload_path(7))
    flip(record_file(store, 1), 40)
    before = contents(store.path)
    for apply in (False, True):
        with pytest.raises(DamagedShardError, match=r"commits/1\.json"):
            gc(store.path, apply=apply, grace_s=NOW)
    assert contents(store.path) == before
    repair(store.path, apply=True)
    assert gc(store.path, apply=True, grace_s=NOW).files == (store.payload_path(7),)


def test_gc_between_a_payload_and_its_record_leaves_the_payload(
    store: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, young = shard_writer.publish_record, []

    def publish(path: Path, record: Any) -> None:
        young.append(gc(path, apply=True, grace_s=HOUR_S).young)
        real(path, record)

    monkeypatch.setattr(shard_writer, "publish_record", publish)
    write(store, [10, 11])
    assert young == [2], "the payload and its temporary name"
    np.testing.assert_array_equal(open_store(store.path).read([key(11)]), expected(store, [11]))


def test_gc_leaves_a_payload_whose_record_appears_while_it_looks(
    store: LatentStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = payloads.record_tags

    def slow(path: Path) -> Any:
        stamps = real(path)
        if key(10) not in open_store(path):
            write(create(cache, format=store.format), [10, 11])
        return stamps

    monkeypatch.setattr(payloads, "record_tags", slow)
    assert gc(store.path, apply=True, grace_s=NOW).files == ()
    np.testing.assert_array_equal(open_store(store.path).read([key(11)]), expected(store, [11]))


def test_one_repair_or_gc_at_a_time_and_a_killed_one_holds_nothing_up(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    child, words = start(lambda tell: repair(store.path, apply=True, progress=Holding(tell)))
    try:
        with os.fdopen(words) as pipe:
            assert pipe.readline() == "at work\n"
            before = listing(store.path)
            for command in (repair, gc):
                with pytest.raises(StoreLockedError, match="another repair, gc, drop or compact"):
                    command(store.path, apply=True)
            assert len(repair(store.path, apply=False).moved) == 2
            gc(store.path, apply=False)
            assert listing(store.path) == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(repair(store.path, apply=True).moved) == 2
    gc(store.path, apply=True)


def test_writers_and_readers_go_on_while_a_repair_is_at_work(store: LatentStore) -> None:
    child, words = start(lambda tell: repair(store.path, apply=True, progress=Holding(tell)))
    try:
        with os.fdopen(words) as pipe:
            assert pipe.readline() == "at work\n"
            write(create(store.path.parent, format=store.format), [10])
            np.testing.assert_array_equal(open_store(store.path).read([key(10)]), expected(store, [10]))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_link_is_moved_as_a_link_also_where_hard_links_follow_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS links what a symbolic link leads to: a stranger's file would come into the store."""
    store = filled(cache, "zarr")
    outside = cache / "outside.json"
    outside.write_text("private")
    record = store.path / "commits" / "0.json"
    record.unlink()
    record.symlink_to(outside)

    def link(file: Path, target: Path) -> None:
        os.link(Path(file).resolve(), target)

    monkeypatch.setattr(atomic, "os", PatchedOs(link=link))
    repair(store.path, apply=True)
    assert not os.path.lexists(record)
    assert (store.path / "lost+found" / "commits-0.json").readlink() == outside
    assert outside.stat().st_nlink == 1
