"""Full and large shards are copied as they are, between folders and buckets: each byte once, and none unproven."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.errors import StoreError
from theworld.pipeline.files.places import bucket as bucket_module
from theworld.pipeline.files.places import bucket_clients
from theworld.pipeline.store.folder import LatentStore, StoreFormat, create_store, open_store
from theworld.pipeline.store.records import origins_of
from theworld.pipeline.store.upkeep import whole_shards
from theworld.pipeline.store.upkeep.transfer import export, merge
from theworld.pipeline.store.upkeep.verify import verify

from ....miniatures.store import SPEC, TINY, create, expected, fill, flip, key, write
from ....permissions import fit, poison
from ....s3_server import BUCKET, Faults, S3Server, s3_server

WAYS = ["there", "back", "across", "here"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of-this-machine"))
    with s3_server() as server, server.environment():
        yield server


def places(way: str, folder: Path) -> tuple[str, str]:
    """From, to: of an upload, a download, a copy from bucket to bucket, and one on disk."""
    url = f"s3://{BUCKET}"
    return {
        "there": (str(folder / "a"), f"{url}/b"),
        "back": (f"{url}/a", str(folder / "b")),
        "across": (f"{url}/a", f"{url}/b"),
        "here": (str(folder / "a"), str(folder / "b")),
    }[way]


def make(cache: str, format: StoreFormat = "zarr", samples: int = 10) -> LatentStore:
    """Shards of 4; the last one is not full."""
    store = create_store(cache, TINY, SPEC, label="tiny", shard_size=4, format=format)
    fill(store, samples)
    return store


def payload(store: LatentStore, number: int) -> bytes:
    return store.place.read(store.layout.payload_name(number), 2**20)


def payload_requests(asked: list[str], method: str, prefix: str) -> list[str]:
    asked = [line for line in asked if line.startswith(f"{method} {prefix}")]
    return [line for line in asked if "/latents/c/" in line or "/shards/" in line]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
@pytest.mark.parametrize("way", WAYS)
def test_full_shards_are_copied_as_they_are_and_the_rest_by_samples(
    way: str, format: StoreFormat, tmp_path: Path, server: S3Server
) -> None:
    here, there = places(way, tmp_path)
    source = make(here, format)
    server.asked.clear()
    target, copied = export(open_store(here), there)
    asked = list(server.asked)
    assert (copied.copied, copied.present, copied.damaged) == (10, 0, ())
    assert target.keys == source.keys
    assert {payload(target, n) for n in range(3)} == {payload(source, n) for n in range(3)}
    np.testing.assert_array_equal(target.read(target.keys), expected(target, range(10)))
    assert verify(open_store(there).place, level="deep").findings == ()
    for record, made in zip(target.records(), source.records(), strict=True):
        assert [origin.facts for origin in origins_of(record)] == [{"host": "here"}]
        assert (record.rows, record.bytes) == (made.rows, made.bytes)
    if way in ("back", "across"):
        gets = payload_requests(asked, "GET", "a/")
        assert len([line for line in gets if "bytes=" not in line]) == 2, "two payloads, each in one request"
    if way in ("there", "across"):
        assert len(payload_requests(asked, "PUT", "b/")) == 3


def test_what_is_partly_there_dropped_or_wanted_goes_by_samples(tmp_path: Path) -> None:
    source = make(str(tmp_path / "a"))
    target = create(tmp_path / "b")
    write(target, [2])
    assert list(whole_shards.whole_shards(source, target, [key(n) for n in (0, 1, 3, 4, 5, 6, 7, 8, 9)])) == [1]
    assert whole_shards.whole_shards(source, target, [key(n) for n in (5, 4, 6, 7)]) == {}, "in their order"
    for other in (create(tmp_path / "c", shard_size=8), create(tmp_path / "d", format="webdataset")):
        assert whole_shards.whole_shards(source, other, [key(n) for n in range(10)]) == {}
    merge(target.path, [source])
    assert sorted(open_store(target.path).keys) == sorted(source.keys)
    assert verify(target.path, level="deep").findings == ()


def test_a_large_shard_that_is_not_full_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(str(tmp_path / "a"))
    keys = [key(n) for n in range(10)]
    assert list(whole_shards.whole_shards(source, create(tmp_path / "b"), keys)) == [0, 1]
    monkeypatch.setattr(whole_shards, "LARGE_BYTES", 100)
    assert list(whole_shards.whole_shards(source, create(tmp_path / "b"), keys)) == [0, 1, 2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("server")
def test_of_a_damaged_shard_the_sound_samples_are_copied_and_the_others_named(way: str, tmp_path: Path) -> None:
    here, there = places(way, tmp_path)
    source = make(here)
    name = source.layout.payload_name(1)
    content = bytearray(payload(source, 1))
    content[source.layout.row_bytes + 8] ^= 1
    if source.place.is_local:
        flip(source.payload_path(1), source.layout.row_bytes + 8)
    else:
        source.place.replace(name, bytes(content))
    target, copied = export(open_store(here), there)
    assert (copied.copied, len(copied.damaged)) == (9, 1)
    assert "row 1" in copied.damaged[0]
    assert sorted(target.keys) == sorted(key(n) for n in range(10) if n != 5)
    assert verify(open_store(there).place, level="deep").damage == ()


def test_what_a_stranger_sealed_is_not_copied_as_it_is(tmp_path: Path) -> None:
    tars = make(str(tmp_path / "a"), "webdataset", 8)
    content = bytearray(tars.payload_path(0).read_bytes())
    content[156] = ord("2")  # the first member of the tar is a link
    tars.payload_path(0).write_bytes(content)
    fit(tars, 0)
    poison(tars, 5)
    target, copied = export(open_store(tars.path), tmp_path / "b")
    assert (copied.copied, len(copied.damaged)) == (7, 1)
    assert key(5) in copied.damaged[0]
    assert verify(target.path, level="deep").findings == (), "tars as this version writes them"


def test_an_upload_that_was_cut_goes_on_where_it_stopped(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "TRIES", 1)
    monkeypatch.setattr(bucket_clients, "RETRIES", dict.fromkeys(("many", "few", "one"), (0, 1.0)))
    source = make(str(tmp_path / "a"), samples=64)
    there = f"s3://{BUCKET}/b"
    server.faults = Faults(dies_at=60)
    with pytest.raises(StoreError, match="whatever was committed so far stays"):
        merge(there, [source])
    server.faults = Faults()
    left = 16 - len([name for name in server.objects if "/commits/" in name])
    assert 0 < left < 16
    server.asked.clear()
    [copied] = merge(there, [source])
    assert (copied.copied, copied.present) == (4 * left, 64 - 4 * left)
    assert len(payload_requests(server.asked, "PUT", "b/")) == left, "what is there is not sent again"
    target = open_store(there)
    assert sorted(target.keys) == sorted(source.keys)
    assert {finding.what for finding in verify(target.place, level="deep").findings} <= {"orphan"}


def test_two_uploads_at_once_end_in_each_latent_once(tmp_path: Path, server: S3Server) -> None:
    source = make(str(tmp_path / "a"), samples=16)
    target = create_store(f"s3://{BUCKET}/b", TINY, SPEC, label="tiny", shard_size=4)
    server.faults.conflicts = server.faults.lost = 0.1
    with target.new_shard(1) as shard:  # another job has the number 1, and some of the samples
        for number in range(4, 8):
            shard.add(key(number), expected(target, [number])[0])
        shard.commit({})
    [copied] = merge(target.place, [source])
    assert (copied.copied, copied.present) == (12, 4)
    assert sorted(open_store(target.place).keys) == sorted(source.keys)
    assert verify(target.place, level="deep").damage == ()
