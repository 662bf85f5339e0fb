"""Upkeep of a store in a bucket, by the commands that a person types. Cuts are in tests/faults/test_bucket_cuts.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from theworld.pipeline.errors import StoreError
from theworld.pipeline.store import writer as shard_writer
from theworld.pipeline.store.folder import LatentStore, create_store, load_store, open_store, open_to_add
from theworld.pipeline.store.upkeep.maintenance import alone
from theworld.pipeline.store.upkeep.verify import verify

from .... import command_line
from ....command_line import Done
from ....miniatures.store import SPEC, TINY, create, expected, fill, key, write
from ....s3_server import BUCKET, S3Server, s3_server

URL = f"s3://{BUCKET}/latents"
DAY_S = 24 * 3600.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of-this-machine"))
    with s3_server() as server, server.environment():
        yield server


@pytest.fixture
def store(server: S3Server) -> LatentStore:  # noqa: ARG001
    """Ten samples in shards of 4, 4 and 2."""
    store = create_store(URL, TINY, SPEC, label="tiny", shard_size=4)
    fill(store, 10)
    store.record_sources((f"photos/{n}.png", key(n)) for n in range(10))
    return store


def theworld(*arguments: object) -> Done:
    return command_line.theworld("cache", *arguments)


def damage(store: LatentStore, shard: int) -> None:
    name = store.layout.payload_name(shard)
    content = bytearray(store.place.read(name, 2**20))
    content[5] ^= 1
    store.place.replace(name, bytes(content))


def test_repair_says_what_it_would_move_and_moves_it_when_told_to(store: LatentStore) -> None:
    damage(store, 1)
    said = theworld("repair", URL)
    assert said.code == 1
    assert f"would move {store.place}/commits/1.json to {store.place}/lost+found" in said.out
    assert len(open_store(URL)) == 10
    done = theworld("repair", URL, "--apply")
    assert done.code == 0
    assert f"moved {store.payload_location(1)}" in done.out
    assert sorted(store.place.names("lost+found")) == ["commits-1.json", "latents-c-1-0-0-0-0"]
    assert len(open_store(URL)) == 6
    assert theworld("verify", URL, "--read").code == 0
    again = create_store(URL, TINY, SPEC, label="tiny", shard_size=4)
    write(again, [4, 5, 6, 7])
    assert len(open_store(URL)) == 10


def test_gc_takes_old_payloads_of_killed_writers_and_no_young_one(server: S3Server, store: LatentStore) -> None:
    names = [store.layout.payload_name(number) for number in (7, 8)]
    for name in names:
        store.place.create(name, b"of a killed writer")
    top = str(store.place).removeprefix(f"s3://{BUCKET}/")
    old = server.objects[f"{top}/{names[0]}"]
    server.objects[f"{top}/{names[0]}"] = replace(old, modified=time.time() - 15 * DAY_S)
    assert f"would delete {store.place}/{names[0]}" in theworld("gc", URL).out
    done = theworld("gc", URL, "--apply")
    assert f"deleted {store.place}/{names[0]}" in done.out
    assert "1 younger than 14d kept" in done.out
    assert store.place.entry(names[0]) is None
    assert store.place.entry(names[1]) is not None
    assert len(open_store(URL)) == 10


def test_a_drop_is_done_undone_and_its_old_payloads_are_kept(store: LatentStore) -> None:
    done = theworld("drop", URL, "--match", r"photos/[15]\.png", "--apply")
    assert done.code == 0
    assert f"delete all objects below {store.place}/lost+found/dropped-1/" in done.out
    kept = open_store(URL)
    assert [key(n) in kept for n in (0, 1, 4, 5)] == [True, False, True, False]
    assert (kept.read([key(0), key(9)]) == expected(kept, [0, 9])).all()
    assert theworld("drop", URL, "--undo", "--apply").code == 0
    assert not len(open_store(URL).dropped)


def test_compact_makes_full_shards_of_small_ones(store: LatentStore) -> None:
    again = create_store(URL, TINY, SPEC, label="tiny", shard_size=4)
    for number in (10, 11):
        write(again, [number])
    done = theworld("compact", URL, "--apply")
    assert f"{store.place}: 5 shards became 3" in done.out
    compacted = open_store(URL)
    assert (compacted.read(compacted.keys) == expected(compacted, range(12))).all()
    assert {finding.what for finding in verify(store.place, level="deep").findings} <= {"unmade"}


def test_one_is_at_it_and_the_next_one_is_told_so(store: LatentStore, tmp_path: Path) -> None:
    with alone(store.place):
        for command in ("repair", "gc", "compact"):
            refused = theworld(command, URL, "--apply")
            assert refused.code == 11
            assert "has held the lock for" in refused.err
            assert "--break-lock" in refused.err
        assert "runs on this machine: end it first" in theworld("gc", URL, "--apply", "--break-lock").err
        assert theworld("verify", URL).code == 0
    assert theworld("gc", URL, "--apply").code == 0
    on_disk = create(tmp_path / "latents")
    assert "--break-lock is for stores in buckets" in theworld("gc", on_disk.path, "--apply", "--break-lock").err


def test_a_commit_asks_for_no_listing_with_a_plan_or_without(server: S3Server, store: LatentStore) -> None:
    other = create_store(URL, TINY, SPEC, label="tiny", shard_size=4)
    other.publish()  # others are told at times
    write(store, [20, 21])
    server.asked.clear()
    write(other, [30, 31])
    write(other, [32])
    assert not [line for line in server.asked if line.startswith("LIST")]
    assert key(20) in other, "the record that was in its way was read"
    server.asked.clear()
    with other.new_shard() as shard:  # what the other has
        for number in (20, 21):
            shard.add(key(number), expected(store, [number])[0])
        assert shard.commit({}) is None
    assert not [line for line in server.asked if line.startswith("LIST")]
    worker = open_to_add(store.place)
    for number in (6, 7):
        store.place.create(store.layout.payload_name(number), b"of a killed writer")
    server.asked.clear()
    with worker.new_shard(6) as shard:
        shard.add(key(40), expected(store, [40])[0])
        assert shard.commit({}) is not None
    with worker.new_shard(0) as shard:  # the same task again: it had committed before it was killed
        for number in range(4):
            shard.add(key(number), expected(store, [number])[0])
        assert shard.commit({}) is None
    assert not [line for line in server.asked if line.startswith("LIST")]
    assert len(load_store(store.place)) == 16


def test_a_shard_that_took_so_long_that_gc_may_have_it_is_not_committed(
    store: LatentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def later() -> float:
        nonlocal now
        now += 3000.0  # this machine slept
        return now

    monkeypatch.setattr(shard_writer, "running_seconds", later)
    with pytest.raises(StoreError, match="gc may take it away"):
        write(store, [50])
    assert key(50) not in open_store(URL)
