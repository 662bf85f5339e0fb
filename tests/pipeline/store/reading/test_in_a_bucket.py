"""A store in a bucket: the same names and bytes as on disk, made, read, checked and copied by the same calls."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import obstore
import pytest
import webdataset
import zarr
from zarr.storage import ObjectStore

from theworld.pipeline.errors import ConfigError, DamagedShardError, StoreError
from theworld.pipeline.files.places.bucket import Bucket
from theworld.pipeline.store.folder import LatentStore, StoreFormat, create_store, open_store, open_to_add
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.upkeep.transfer import export, merge
from theworld.pipeline.store.upkeep.verify import LEVELS, verify

from ....miniatures.store import SPEC, TINY, create, expected, fill, key, write
from ....s3_server import BUCKET, SECRET, S3Server, s3_server

URL = f"s3://{BUCKET}/latents"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of-this-machine"))
    with s3_server() as server, server.environment():
        yield server


def make(format: StoreFormat = "zarr", samples: int = 10) -> LatentStore:
    store = create_store(URL, TINY, SPEC, label="tiny", shard_size=4, format=format)
    fill(store, samples)
    store.record_sources((f"{number}.jpg", key(number)) for number in range(samples))
    return store


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
@pytest.mark.usefixtures("server")
def test_a_store_is_made_opened_read_and_verified(format: StoreFormat) -> None:
    make(format)
    store = open_store(URL, check_sizes=True)
    assert str(store.place) == f"{URL}/tiny-{TINY.id[:12]}"
    assert len(store) == 10
    np.testing.assert_array_equal(store.read([key(9), key(0)]), expected(store, [9, 0]))
    assert store.sources()["3.jpg"] == (key(3),)
    for level in LEVELS:
        assert verify(store.place, level=level).findings == ()


@pytest.mark.usefixtures("server")
def test_the_files_are_those_of_the_same_store_on_disk(tmp_path: Path) -> None:
    store = make()
    local = create(tmp_path)
    fill(local, 10)
    local.record_sources((f"{number}.jpg", key(number)) for number in range(10))
    names = {entry.name for entry in store.place.entries("", deep=True)}
    assert names == {entry.name for entry in local.place.entries("", deep=True)}
    for name in names:
        if not name.startswith("commits"):  # these say when
            assert store.place.read(name, 2**20) == local.place.read(name, 2**20), name


@pytest.mark.usefixtures("server")
def test_merge_is_upload_and_download(tmp_path: Path) -> None:
    source = create(tmp_path / "here")
    fill(source, 9)
    source.record_sources([("a.jpg", key(0))])
    source.record_failure(Failure(source="b.jpg", key=None, reason="decode", message="m", attempts=1))
    assert [copied.copied for copied in merge(URL, [source])] == [9]
    assert [copied.copied for copied in merge(URL, [source])] == [0], "it can be repeated"
    uploaded = open_store(URL)
    back, copied = export(uploaded, tmp_path / "back")
    assert copied.copied == 9
    assert copied.damaged == ()
    assert back.sources() == {"a.jpg": (key(0),)}
    assert [failure.source for failure in back.failures()] == ["b.jpg"]
    np.testing.assert_array_equal(back.read(back.keys), source.read(back.keys))
    assert verify(back.path, level="deep").damage == ()


def test_a_job_goes_on_where_another_stopped(server: S3Server) -> None:
    make(samples=4)
    again = create_store(URL, TINY, SPEC, label="tiny", shard_size=4)
    assert key(3) in again
    write(again, [4, 5])
    worker = open_to_add(again.place)
    server.asked.clear()
    with worker.new_shard(7) as shard:
        shard.add(key(8), expected(again, [8])[0])
        assert shard.commit({}) is not None
    assert not [asked for asked in server.asked if "list-type" in str(asked)], "no listing for a commit"
    assert len(open_store(URL)) == 7


@pytest.mark.usefixtures("server")
def test_a_damaged_payload_and_a_missing_one_are_found() -> None:
    store = make()
    bucket = store.place
    payload = bytearray(bucket.read(store.layout.payload_name(0), 2**20))
    payload[5] ^= 1
    bucket.replace(store.layout.payload_name(0), bytes(payload))
    with pytest.raises(DamagedShardError, match="checksums"):
        open_store(URL).read([key(0)])
    bucket.remove([store.layout.payload_name(1)])
    found = verify(bucket, level="read")
    assert [finding.shard for finding in found.damage] == [0, 1]
    assert found.damage[1].message.startswith(f"{bucket}/latents/c/1/0/0/0/0 (shard 1): it is missing")
    with pytest.raises(DamagedShardError, match="not what their records state"):
        open_store(URL, check_sizes=True)


@pytest.mark.usefixtures("server")
def test_a_pickled_store_holds_its_url_and_no_secret() -> None:
    store = make()
    content = bytes(ForkingPickler.dumps(store))
    assert SECRET.encode() not in content
    np.testing.assert_array_equal(ForkingPickler.loads(content).read([key(1)]), expected(store, [1]))


@pytest.mark.usefixtures("server")
def test_what_needs_files_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match=r"is in a bucket.*theworld cache merge"):
        _ = make().path


def test_a_large_store_opens_from_its_snapshot(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theworld.pipeline.store.latent_store.SNAPSHOT_FROM_SHARDS", 2)
    make()
    server.asked.clear()
    store = open_store(URL)
    assert len(store) == 10
    assert not [asked for asked in server.asked if "GET" in str(asked) and "commits/0.json" in str(asked)]
    np.testing.assert_array_equal(store.read([key(7)]), expected(store, [7]))


def test_a_server_that_ignores_conditions_is_refused_before_anything_is_made(server: S3Server) -> None:
    server.faults.ignores_conditions = True
    with pytest.raises(StoreError, match="replaces objects that it was told to keep"):
        make()
    assert [entry.name for entry in Bucket(URL).entries("", deep=True)] == []


def test_tensorstore_reads_it_from_the_bucket(server: S3Server) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    store = make()
    prefix = str(store.place).removeprefix(f"s3://{BUCKET}/")
    places = {"driver": "s3", "bucket": BUCKET, "path": f"{prefix}/latents/", "endpoint": server.address}
    spec = {"driver": "zarr3", "kvstore": {**places, "aws_region": "us-east-1"}}
    opened = tensorstore.open(spec, read=True).result()
    assert opened.domain.labels == ("sample", "channel", "time", "y", "x")
    np.testing.assert_array_equal(opened[:10].read().result(), expected(store, range(10)))
    np.testing.assert_array_equal(opened[7].read().result(), expected(store, [7])[0])


def test_zarr_python_reads_it_through_its_own_object_store(server: S3Server) -> None:
    store = make()
    prefix = str(store.place).removeprefix(f"s3://{BUCKET}/")
    objects = obstore.store.S3Store(
        BUCKET, prefix=prefix, config={"aws_endpoint": server.address}, client_options={"allow_http": True}
    )
    group = zarr.open_group(ObjectStore(objects, read_only=True), mode="r")
    np.testing.assert_array_equal(group["latents"][:10], expected(store, range(10)))
    assert list(group["key"][:10]) == [key(number) for number in range(10)]


def test_webdataset_reads_its_tars_by_their_addresses(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads addresses by curl")
    monkeypatch.setattr(webdataset.utils, "enforce_security", False)  # WDS_SECURE=1 of another test is kept
    store = make("webdataset")
    names = [store.layout.payload_name(number) for number in store.shards]
    prefix = str(store.place).removeprefix("s3://")
    tars = [f"pipe:curl -s -f {server.address}/{prefix}/{name}" for name in names]
    samples = {sample["__key__"]: sample["npy"] for sample in webdataset.WebDataset(tars, shardshuffle=False).decode()}
    for number in range(10):
        np.testing.assert_array_equal(samples[key(number)], expected(store, [number])[0])
