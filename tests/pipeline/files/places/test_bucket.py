"""A bucket as a place: against the scripted server, and against a server that we did not write."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from itertools import count
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import localbucket
import pytest

from theworld.pipeline.errors import ConfigError, StoreError
from theworld.pipeline.files.places import bucket as bucket_module
from theworld.pipeline.files.places import bucket_clients
from theworld.pipeline.files.places.bucket import Bucket

from ....faults.harness import in_child
from ....patience import ends_within, patience
from ....s3_server import BUCKET, KEY_ID, SECRET, Faults, S3Server, Stored, environment, s3_server

URL = f"s3://{BUCKET}/some/folder"


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server(page=3) as server, server.environment():
        yield server


@pytest.fixture
def bucket(server: S3Server) -> Bucket:
    bucket = Bucket(URL)
    bucket.self_test()
    server.asked.clear()
    return bucket


def names(bucket: Bucket, folder: str = "", *, deep: bool = True) -> list[str]:
    return sorted(entry.name for entry in bucket.entries(folder, deep=deep))


def use_as_a_place(bucket: Bucket) -> None:
    """All that a store asks of a place, once."""
    assert bucket.create("commits/1.json", b"one")
    assert not bucket.create("commits/1.json", b"another")
    assert bucket.read("commits/1.json", 3) == b"one"
    with bucket.staging() as staging:
        staged = staging / "payload"
        staged.write_bytes(bytes(range(256)) * 64)
        assert bucket.create_from("shards/1.tar", staged)
        assert not bucket.create_from("shards/1.tar", staged)
    assert not staging.exists()
    memory = bytearray(4)
    assert bucket.read_into("shards/1.tar", 254, memoryview(memory)) == 4
    assert memory == bytes([254, 255, 0, 1])
    assert bucket.read_end("shards/1.tar", 2) == bytes([254, 255])
    found = bucket.entry("commits/1.json")
    assert found is not None
    assert (found.name, found.bytes) == ("commits/1.json", 3)
    assert found in list(bucket.entries("commits"))
    bucket.replace("commits/1.json", b"two")
    again = bucket.entry("commits/1.json")
    assert again is not None
    assert again.tag != found.tag
    assert names(bucket) == ["commits/1.json", "shards/1.tar"]
    assert bucket.folders() == ["commits", "shards"]
    assert bucket.below("shards").read_end("1.tar", 1) == b"\xff"
    bucket.set_aside("commits/1.json", "lost+found/1 of yesterday.json")
    assert bucket.read("lost+found/1 of yesterday.json", 10) == b"two"
    bucket.remove(["shards/1.tar", "lost+found/1 of yesterday.json", "never there"])
    assert names(bucket) == []
    assert abs(bucket.now() - time.time()) < patience(5)


def test_a_bucket_does_what_a_store_asks_of_a_place(server: S3Server) -> None:
    bucket = Bucket(URL)
    bucket.self_test()
    use_as_a_place(bucket)
    assert server.objects == {}


def test_a_server_that_we_did_not_write_does_it_too_and_is_told_what_it_lacks(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / BUCKET).mkdir(parents=True)

    class Handler(localbucket.S3Handler):
        data_root = data

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=lambda: other.serve_forever(0.05), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{other.server_port}"
        with environment({"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}):
            use_as_a_place(Bucket(URL))
            with pytest.raises(StoreError, match=f"{address} does not keep the metadata"):
                Bucket(URL).self_test()
            assert names(Bucket(URL)) == []
        other.shutdown()
        thread.join()


def test_a_name_that_is_missing_is_told_from_a_bucket_that_is(bucket: Bucket) -> None:
    for ask in (lambda: bucket.read("no", 9), lambda: bucket.read_end("no", 9), lambda: bucket.set_aside("no", "to")):
        with pytest.raises(FileNotFoundError, match="there is no s3://latents/some/folder/no"):
            ask()
    assert bucket.entry("no") is None
    assert list(bucket.entries("no")) == []
    with pytest.raises(StoreError, match="there is no bucket another"):
        Bucket("s3://another/folder").read("no", 9)


def test_a_file_larger_than_its_limit_is_not_fetched(bucket: Bucket) -> None:
    bucket.replace("large", bytes(1000))
    with pytest.raises(ValueError, match="1,000 bytes"):
        bucket.read("large", 999)


def test_ranges_come_many_at_once_and_end_where_the_object_does(server: S3Server, bucket: Bucket) -> None:
    content = os.urandom(10_000)
    bucket.replace("object", content)
    server.faults.latency_s = 0.05
    memories = [bytearray(100) for _ in range(64)]
    began = time.monotonic()
    read = bucket.read_ranges([("object", 157 * n, memoryview(memory)) for n, memory in enumerate(memories)])
    assert time.monotonic() - began < 64 * 0.05 / 3
    assert read == [max(0, min(100, len(content) - 157 * n)) for n in range(64)]
    assert [bytes(memory[:size]) for memory, size in zip(memories, read, strict=True)] == [
        content[157 * n :][:100] for n in range(64)
    ]


@pytest.mark.parametrize("fault", ["lost", "unavailable", "conflicts", "resets"])
def test_a_name_is_given_once_whatever_becomes_of_the_answers(server: S3Server, bucket: Bucket, fault: str) -> None:
    setattr(server.faults, fault, 0.3)
    made = [bucket.create(f"commits/{n}.json", b"mine %d" % n) for n in range(20)]
    again = [bucket.create(f"commits/{n}.json", b"another") for n in range(20)]
    server.faults = Faults()
    assert made == [True] * 20
    assert again == [False] * 20
    assert [bucket.read(f"commits/{n}.json", 99) for n in range(20)] == [b"mine %d" % n for n in range(20)]


def test_a_bucket_that_ends_at_any_request_leaves_what_it_acknowledged(
    server: S3Server, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "TRIES", 1)
    for at in range(1, 5):
        server.objects.clear()
        server.asked.clear()
        server.faults.dies_at = at
        acknowledged = []
        for n in range(at - 1):
            assert bucket.create(f"{n}", b"record")
            acknowledged.append(f"some/folder/{n}")
        with pytest.raises(StoreError, match="whatever was committed so far stays"):
            bucket.create(f"{at}", b"record")
        assert set(acknowledged) <= set(server.objects)


def test_a_delete_whose_answer_is_lost_does_not_take_what_came_after_it(
    server: S3Server, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.create("shards/7.tar", b"the same bytes")

    def come_after(_: int) -> None:  # before the look, another writer takes the name
        server.faults = Faults()
        assert Bucket(URL).create("shards/7.tar", b"the same bytes")

    look = bucket_module.Bucket._identity
    looks = count()

    def look_later(self: Bucket, name: str) -> object:
        if next(looks) == 1:
            come_after(1)
        return look(self, name)

    monkeypatch.setattr(bucket_module.Bucket, "_identity", look_later)
    server.faults = Faults(lost=1.0)
    bucket.remove_once(["shards/7.tar"])
    assert server.objects["some/folder/shards/7.tar"].content == b"the same bytes"
    assert bucket.is_in_doubt("shards/7.tar")
    assert not bucket.is_in_doubt("shards/8.tar")


def test_what_is_set_aside_is_copied_once_and_never_over_another(server: S3Server, bucket: Bucket) -> None:
    bucket.create("commits/1.json", b"record")
    bucket.create("lost+found/1", b"another")
    with pytest.raises(FileExistsError):
        bucket.set_aside("commits/1.json", "lost+found/1")
    bucket.create("lost+found/2", b"record")  # of an interrupted move
    server.asked.clear()
    bucket.set_aside("commits/1.json", "lost+found/2")
    assert not [line for line in server.asked if line.startswith("COPY")]
    assert set(server.objects) == {"some/folder/lost+found/1", "some/folder/lost+found/2"}


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(ignores_conditions=True), "replaces objects that it was told to keep"),
        (Faults(drops_metadata=True), "does not keep the metadata"),
        (Faults(ignores_ranges=True), "answers a range with the whole object"),
        (Faults(hidden=frozenset({"some/folder/tmp/self-test-0"})), "does not list an object"),
    ],
)
def test_a_server_that_cannot_keep_a_store_is_refused_before_anything_is_made(
    server: S3Server, faults: Faults, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = count()
    monkeypatch.setattr(bucket_module.secrets, "token_hex", lambda _: str(next(drawn)))
    server.faults = faults
    with pytest.raises(StoreError, match=said) as refused:
        Bucket(URL).self_test()
    assert "theworld cache merge" in str(refused.value) or "copy the store to a folder" in str(refused.value)
    assert server.objects == {}


@pytest.mark.parametrize(
    ("status", "code", "said", "advice"),
    [
        (401, "Unauthorized", "refuses the credentials", "AWS_ACCESS_KEY_ID"),
        (403, "InvalidAccessKeyId", "refuses the credentials", "AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "does not allow this", "Give these credentials the rights to list"),
        (403, "RequestTimeTooSkewed", "clock of this machine", "Set it"),
        (403, "QuotaExceeded", "no room left, or the quota is used up", "Make room"),
        (403, "InvalidObjectState", "in an archive", "restore-object"),
        (404, "NoSuchBucket", "there is no bucket latents", "Make it"),
        (301, "PermanentRedirect", "in another region", "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "in another region", "AWS_REGION"),
        (400, "InvalidRequest", "refuses the request \\(400 InvalidRequest\\)", "Check the URL"),
    ],
)
def test_a_refusal_is_one_message_at_once_and_says_what_to_do(
    server: S3Server, status: int, code: str, said: str, advice: str
) -> None:
    server.faults.refusal = (status, code)
    for ask in (
        lambda bucket: bucket.self_test(),
        lambda bucket: bucket.replace("name", b""),
        lambda bucket: bucket.read("name", 9),
        lambda bucket: bucket.read_into("name", 0, memoryview(bytearray(9))),
        lambda bucket: list(bucket.entries("")),
        lambda bucket: bucket.folders(),
    ):
        server.asked.clear()
        with ends_within(5), pytest.raises(StoreError, match=said) as refused:
            ask(Bucket(URL))
        assert advice in str(refused.value)
        assert len(server.asked) == 1, "asked again"


def test_a_disk_that_is_full_behind_the_bucket_is_told_from_a_network_that_fails(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_clients, "RETRIES", dict.fromkeys(("many", "few", "one"), (0, 1.0)))
    server.faults.refusal = (507, "XMinioStorageFull")
    with pytest.raises(StoreError, match=r"no room left.*507 XMinioStorageFull.*Make room"):
        Bucket(URL).replace("name", b"")


@pytest.mark.parametrize("odd", ["commits//a", "commits/./a", "commits/a\tb", "commits/a\nb"])
def test_an_object_that_no_listing_gets_past_is_named_with_what_to_do(
    server: S3Server, bucket: Bucket, odd: str
) -> None:
    server.objects[f"some/folder/{odd}"] = Stored(b"", {}, 1.7e9)
    with pytest.raises(StoreError, match="Rename or remove that object") as caught:
        names(bucket)
    assert repr(f"some/folder/{odd}") in str(caught.value)


def test_who_is_refused_is_told_the_rights_that_are_needed_and_the_reason_that_an_answer_to_head_cannot_hold(
    server: S3Server,
) -> None:
    server.faults.refusal = (403, "AccessDenied")
    with pytest.raises(StoreError, match="rights to list, read, write and delete in latents"):
        Bucket(URL).replace("name", b"")
    with pytest.raises(StoreError, match=r"403 AccessDenied.*rights to list and read in latents"):
        Bucket(URL).entry("name")
    server.faults.refusal = (403, "RequestTimeTooSkewed")
    with pytest.raises(StoreError, match="clock of this machine"):
        Bucket(URL).entry("name")


def test_an_endpoint_that_is_not_there_is_named_within_half_a_minute() -> None:
    with socket.socket() as nobody:  # bound, and nobody listens
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        variables = {"AWS_ENDPOINT_URL_S3": address, "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
        said = f"{address} does not answer.*connection refused"
        with environment(variables), ends_within(45), pytest.raises(StoreError, match=said):
            Bucket(URL).read("name", 9)


def test_an_endpoint_that_takes_requests_and_never_answers_is_named_within_half_a_minute(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults.latency_s = 3600
    monkeypatch.setattr(bucket_clients, "READ_TIMEOUT_S", bucket_clients.READ_TIMEOUT_S / 10)  # and so 3 seconds here
    retries = {name: (times, seconds / 10) for name, (times, seconds) in bucket_clients.RETRIES.items()}
    monkeypatch.setattr(bucket_clients, "RETRIES", retries)
    monkeypatch.setattr(bucket_module, "_FIRST_PATIENCE_S", bucket_module._FIRST_PATIENCE_S / 10)
    asks = (lambda: Bucket(URL).self_test(), lambda: Bucket(URL).read("name", 9))
    with ends_within(35), ThreadPoolExecutor(len(asks)) as pool:
        for asked in [pool.submit(ask) for ask in asks]:
            with pytest.raises(StoreError, match=f"{server.address} does not answer.*no answer in time"):
                asked.result()


def test_a_machine_without_credentials_is_told_which_to_set(server: S3Server) -> None:
    server.faults.refusal = (404, "NotFound")  # what answers for the machine's role
    variables = {"AWS_ENDPOINT_URL_S3": server.address, "AWS_METADATA_ENDPOINT": server.address}
    with environment(variables), ends_within(30), pytest.raises(StoreError, match="Set AWS_ACCESS_KEY_ID") as refused:
        Bucket(URL).self_test()
    assert "there are no credentials" in str(refused.value)


def test_an_answer_that_is_cut_is_asked_for_again_or_named(server: S3Server, bucket: Bucket) -> None:
    content = os.urandom(5000)
    bucket.replace("object", content)
    server.faults.cut_after = 2000
    assert bucket.read("object", 5000) == content
    server.faults.cut_after = 0
    with ends_within(60), pytest.raises(StoreError, match="does not answer as a bucket does"):
        bucket.read("object", 5000)


def test_a_whole_object_for_a_range_is_refused(server: S3Server, bucket: Bucket) -> None:
    bucket.replace("object", bytes(5000))
    server.faults.ignores_ranges = True
    with pytest.raises(StoreError, match="answers a range with the whole object"):
        bucket.read_into("object", 100, memoryview(bytearray(10)))


def test_the_time_is_the_buckets(server: S3Server, bucket: Bucket) -> None:
    server.faults.clock_s = 3600
    assert abs(bucket.now() - time.time() - 3600) < patience(5)
    assert server.objects == {}


def test_in_a_forked_process_it_says_so_and_does_not_hang(bucket: Bucket) -> None:
    def use(bucket: Bucket) -> None:
        signal.alarm(int(patience(20)))
        with pytest.raises(StoreError, match="spawn"):
            bucket.read("name", 9)
        with pytest.raises(StoreError, match="spawn"):
            bucket.read_ranges([("name", 0, memoryview(bytearray(9)))] * 2)

    in_child(lambda: use(bucket))
    in_child(lambda: use(Bucket(URL)))


def test_what_is_shown_or_pickled_is_the_url_alone(server: S3Server, bucket: Bucket) -> None:
    pickled = bytes(ForkingPickler.dumps(bucket))
    server.faults.refusal = (403, "AccessDenied")
    with pytest.raises(StoreError) as refused:
        bucket.read("name", 9)
    for text in (pickled, repr(bucket).encode(), str(bucket).encode(), str(refused.value).encode()):
        assert URL.encode() in text or f"{BUCKET}".encode() in text
        assert KEY_ID.encode() not in text
        assert SECRET.encode() not in text
    assert repr(bucket) == f"Bucket({URL!r})"
    assert bucket.__reduce__() == (Bucket, (URL,))


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY_ID}:{SECRET}@bucket/folder",
        f"s3://bucket/folder?X-Amz-Signature={SECRET}",
        f"s3://bucket/folder#{SECRET}",
    ],
)
def test_a_url_that_holds_a_secret_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials come from the environment") as refused:
        Bucket(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["s3://", "s3:bucket", "http://bucket/folder", "s3://bucket/../other", "s3://bucket/a\nb"]
)
def test_what_is_no_url_of_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Bucket(url)


def test_without_encryption_only_this_machine_is_asked(server: S3Server) -> None:
    elsewhere = {**server.variables(), "AWS_ENDPOINT_URL_S3": "http://192.0.2.1:9000"}
    with environment(elsewhere), pytest.raises(StoreError, match="AWS_ALLOW_HTTP"):
        Bucket(URL).read("name", 9)


def test_a_listing_is_handed_on_page_by_page(server: S3Server, bucket: Bucket) -> None:
    server.objects |= {f"some/folder/{at:05}": Stored(b"", {}, 1.7e9) for at in range(5000)}
    server.page = 1000
    entries = bucket.entries("", deep=True)
    assert server.asked == []
    assert next(iter(entries)).name == "00000"
    assert server.asked.count("LIST some/folder/") < 4, "a bucket of a hundred million objects is never held at once"
    assert len(list(entries)) == 4999
