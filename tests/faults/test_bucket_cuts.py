"""A bucket that ends at the n-th request of any command, for all n: nothing is lost, and the command can go on.

What a killed process leaves in a bucket is what its requests have done until then. So the server ends at request n:
that one is done or not, and nothing after it. Then the server is back, and another process looks and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.errors import StoreLockedError, TheWorldError
from theworld.pipeline.files import lock_holder
from theworld.pipeline.files.places import bucket as bucket_module
from theworld.pipeline.files.places import bucket_clients
from theworld.pipeline.files.places.bucket import Bucket
from theworld.pipeline.files.places.lock_object import LOCK, held_object, lock_of
from theworld.pipeline.store import latent_store
from theworld.pipeline.store.folder import create_store, load_store, open_store
from theworld.pipeline.store.upkeep.compact import compact
from theworld.pipeline.store.upkeep.drop import drop, undo_drop
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.transfer import export, merge
from theworld.pipeline.store.upkeep.verify import verify

from ..miniatures.store import SPEC, TINY, create, fill, key, latent, write
from ..s3_server import BUCKET, Faults, S3Server, Stored, s3_server
from .harness import amount

CACHE = f"s3://{BUCKET}/latents"
STORE = f"{CACHE}/tiny-{TINY.id[:12]}"
SAMPLES = 10
_QUICK_STEP = 13
"""Without FAULT_CUTS, requests from one cut to the next: a prime, so that rounds are met at other places."""
OLD_S = 15 * 24 * 3600.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """One that no client asks twice; each command runs, to its lock, on another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of-this-machine"))
    monkeypatch.setattr(bucket_module, "TRIES", 1)
    monkeypatch.setattr(bucket_clients, "RETRIES", dict.fromkeys(("many", "few", "one"), (0, 1.0)))
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 2)
    machines = count()
    monkeypatch.setattr(lock_holder.platform, "node", lambda: f"machine-{next(machines)}")
    with s3_server() as server, server.environment():
        yield server


def make(samples: int = SAMPLES) -> None:
    """Samples in shards of 4, with a list of inputs."""
    store = create_store(CACHE, TINY, SPEC, label="tiny", shard_size=4)
    fill(store, samples)
    store.record_sources((f"{number}.jpg", key(number)) for number in range(samples))


def age(server: S3Server, name: str) -> None:
    """An object was written two weeks ago."""
    full = f"{STORE.removeprefix(f's3://{BUCKET}/')}/{name}"
    server.objects[full] = replace(server.objects[full], modified=time.time() - OLD_S)


def plant(server: S3Server, number: int, *, is_old: bool) -> None:
    """What a writer leaves that was killed between payload and record."""
    name = load_store(STORE).layout.payload_name(number)
    Bucket(STORE).create(name, b"of a killed writer")
    if is_old:
        age(server, name)


def with_garbage(server: S3Server) -> None:
    make()
    plant(server, 7, is_old=True)
    plant(server, 8, is_old=False)
    Bucket(STORE).create("tmp/clock-0", b"")
    age(server, "tmp/clock-0")


def with_a_lock_left(server: S3Server) -> None:
    """The machine of another gc went down."""
    with_garbage(server)
    with suppress(TheWorldError), held_object(Bucket(STORE), busy="busy"):
        server.faults = Faults(dies_at=len(server.asked) + 1)
        raise TheWorldError
    server.faults = Faults()


def with_damage(_: S3Server) -> None:
    make(16)
    bucket, layout = Bucket(STORE), load_store(STORE).layout
    for name in (layout.payload_name(1), "commits/2.json"):
        content = bytearray(bucket.read(name, 2**20))
        content[5] ^= 1
        bucket.replace(name, bytes(content))


def with_dropped(_: S3Server) -> None:
    make()
    drop(Bucket(STORE), [key(1), key(6)], apply=True)


def in_small_shards(_: S3Server) -> None:
    make(4)
    store = create_store(CACHE, TINY, SPEC, label="tiny", shard_size=4)
    for numbers in ([4, 5], [6], [7, 8, 9]):
        write(store, numbers)
    store.publish()


@dataclass(frozen=True)
class Case:
    """A command, what it starts from, and which samples are to be there always, and in the end."""

    prepare: Callable[[S3Server], object]
    act: Callable[[bool], object]
    """With whether to break a lock."""
    always: list[int]
    after: list[int]
    damage: int = 0
    """Shards that are damaged before."""
    breaks: bool = False
    """The first run, too, breaks a lock."""


ALL = list(range(SAMPLES))
CASES = {
    "repair": Case(
        with_damage,
        lambda broken: repair(Bucket(STORE), apply=True, break_lock=broken),
        [0, 1, 2, 3, 12, 13, 14, 15],
        [0, 1, 2, 3, 12, 13, 14, 15],
        damage=2,
    ),
    "gc": Case(with_garbage, lambda broken: gc(Bucket(STORE), apply=True, break_lock=broken), ALL, ALL),
    "gc --break-lock": Case(
        with_a_lock_left, lambda broken: gc(Bucket(STORE), apply=True, break_lock=broken), ALL, ALL, breaks=True
    ),
    "drop": Case(
        lambda _: make(),
        lambda broken: drop(Bucket(STORE), [key(1), key(6)], apply=True, break_lock=broken),
        [0, 2, 3, 4, 5, 7, 8, 9],
        [0, 2, 3, 4, 5, 7, 8, 9],
    ),
    "drop --undo": Case(
        with_dropped,
        lambda broken: undo_drop(Bucket(STORE), None, apply=True, break_lock=broken),
        [0, 2, 3, 4, 5, 7, 8, 9],
        [0, 2, 3, 4, 5, 7, 8, 9],
    ),
    "compact": Case(
        in_small_shards, lambda broken: compact(Bucket(STORE), apply=True, break_lock=broken), ALL, ALL
    ),
}  # fmt: skip


def cut_everywhere(server: S3Server, before: dict[str, Stored], act: Callable[[], object]) -> Iterator[int]:
    """Each n that a command has a request of: it was cut there, and the server is back.

    Long: request n done and not done; quick: in turn, at some of them.
    """
    restore(server, before)
    act()
    requests = len(server.asked)
    long = amount("CUTS", 1) > 1
    for number in range(1, requests + 1, 1 if long else _QUICK_STEP):
        for does_last in (False, True) if long else (number // _QUICK_STEP % 2 == 1,):
            restore(server, before)
            server.faults = Faults(dies_at=number, does_last=does_last)
            with suppress(TheWorldError):
                act()
            server.faults = Faults()
            yield number


def restore(server: S3Server, objects: dict[str, Stored]) -> None:
    server.objects.clear()
    server.objects.update(objects)
    server.asked.clear()


def assert_here(numbers: list[int]) -> None:
    store = load_store(STORE)
    assert set(map(key, numbers)) <= set(store.keys)
    wanted = np.stack([latent(number, store.sample_shape) for number in numbers]).astype(store.dtype)
    np.testing.assert_array_equal(store.read([key(number) for number in numbers]), wanted)


def again(act: Callable[[bool], object]) -> None:
    """The same command by another process, which breaks the lock where one is left."""
    if lock_of(Bucket(STORE)) is not None:
        with pytest.raises(StoreLockedError, match="--break-lock"):
            act(False)
    act(lock_of(Bucket(STORE)) is not None)


@pytest.mark.parametrize("name", CASES)
def test_upkeep_that_is_cut_at_any_request_loses_nothing_and_can_go_on(
    server: S3Server, name: str, figure: Callable[[str], None]
) -> None:
    case = CASES[name]
    case.prepare(server)
    cuts = 0
    for number in cut_everywhere(server, dict(server.objects), lambda: case.act(case.breaks)):
        assert_here(case.always)
        assert verify(Bucket(STORE), level="read").damaged <= case.damage, number
        again(case.act)
        assert_here(case.after)
        assert sorted(load_store(STORE).keys) == [key(each) for each in case.after], number
        found = {finding.what for finding in verify(Bucket(STORE), level="deep").findings}
        assert found <= {"unmade", "orphan", "leftover"}, number
        assert not [name for name in server.objects if name.endswith(f"/{LOCK}") or "/retiring/" in name]
        cuts += 1
    figure(f"{name} in a bucket, cut at {cuts} requests: 0 broken promises")


def test_a_job_that_is_cut_at_any_request_keeps_what_was_acknowledged(
    server: S3Server, figure: Callable[[str], None]
) -> None:
    make(4)
    acknowledged: list[int] = []

    def act() -> None:
        acknowledged.clear()
        store = create_store(CACHE, TINY, SPEC, label="tiny", shard_size=4)
        for numbers in ([4, 5, 6, 7], [8, 9]):
            write(store, numbers)
            acknowledged.extend(numbers)
        store.publish()

    cuts = 0
    for number in cut_everywhere(server, dict(server.objects), act):
        assert_here([0, 1, 2, 3, *acknowledged])
        assert not verify(Bucket(STORE), level="read").damage, number
        act()
        assert_here(ALL)
        cuts += 1
    figure(f"two commits in a bucket, cut at {cuts} requests: 0 broken promises")


@pytest.mark.parametrize("to_bucket", [True, False])
def test_a_merge_that_is_cut_at_any_request_can_be_repeated(
    server: S3Server, to_bucket: bool, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    turns = count()
    if to_bucket:
        source = create(tmp_path / "here")
        fill(source, SAMPLES)
    else:
        make()

    def act() -> None:
        if to_bucket:
            merge(CACHE, [open_store(source.place)])
        else:
            export(open_store(STORE), tmp_path / f"copy-{next(turns)}")

    cuts = 0
    for number in cut_everywhere(server, dict(server.objects), act):
        if to_bucket and server.objects:
            with suppress(TheWorldError):  # it may not have come to theworld.json
                assert not verify(Bucket(STORE), level="read").damage, number
        act()
        assert_here(ALL)
        cuts += 1
    figure(f"merge {'to' if to_bucket else 'from'} a bucket, cut at {cuts} requests: 0 broken promises")
