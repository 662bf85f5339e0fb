"""A lock in a bucket keeps others away, says who holds it, and one process takes it from one that has ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import count

import pytest

from theworld.pipeline.errors import StoreError, StoreLockedError
from theworld.pipeline.files import lock_holder
from theworld.pipeline.files.places import lock_object
from theworld.pipeline.files.places.bucket import Bucket
from theworld.pipeline.files.places.lock_object import LOCK, freed_locks, held_object, lock_of, require_held

from ....s3_server import BUCKET, S3Server, s3_server

BUSY = "another is at work"


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server, server.environment():
        yield server


@pytest.fixture
def place(server: S3Server) -> Bucket:  # noqa: ARG001
    return Bucket(f"s3://{BUCKET}/store")


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holder is of another machine."""
    names = count()
    monkeypatch.setattr(lock_holder.platform, "node", lambda: f"machine-{next(names)}")


def leave(place: Bucket, *, break_lock: bool = False) -> None:
    """What a process leaves that held the lock and was killed."""
    lock_object._acquire(place, BUSY, break_lock)


def test_one_holds_it_and_the_next_one_is_told_who_and_for_how_long(server: S3Server, place: Bucket) -> None:
    with held_object(place, busy=BUSY):
        stored = server.objects["store/LOCK"]
        server.objects["store/LOCK"] = replace(stored, modified=stored.modified - 7200)
        with pytest.raises(StoreLockedError, match=rf"{BUSY}. {place}/LOCK: process \d+ on .* for 2 hours"):
            held_object(place, busy=BUSY).__enter__()
        require_held(place)
    assert server.objects == {}
    with held_object(place, busy=BUSY):
        pass


@pytest.mark.usefixtures("machines")
def test_a_lock_that_was_left_is_broken_on_request_alone_and_again(server: S3Server, place: Bucket) -> None:
    leave(place)
    with pytest.raises(StoreLockedError, match="--break-lock"):
        held_object(place, busy=BUSY).__enter__()
    first = lock_of(place)
    leave(place, break_lock=True)
    assert first is not None
    assert lock_of(place) not in (None, first)
    with held_object(place, busy=BUSY, break_lock=True):
        require_held(place)
        with pytest.raises(StoreLockedError):
            held_object(place, busy=BUSY).__enter__()
    assert server.objects == {}


def test_a_process_of_this_machine_that_runs_keeps_its_lock(place: Bucket) -> None:
    with held_object(place, busy=BUSY), pytest.raises(StoreLockedError, match="runs on this machine: end it first"):
        held_object(place, busy=BUSY, break_lock=True).__enter__()


@pytest.mark.usefixtures("machines")
def test_of_many_that_break_a_lock_one_gets_it(place: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(place)
    got: list[AbstractContextManager[None]] = []
    look, all_have_looked, of_thread = lock_object._chain, threading.Barrier(8), threading.local()

    def look_together(of: Bucket) -> object:
        found = look(of)
        if not hasattr(of_thread, "has_looked"):
            of_thread.has_looked = True
            all_have_looked.wait()  # each has seen the same lock before one acts
        return found

    def take() -> None:
        lock = held_object(place, busy=BUSY, break_lock=True)
        with suppress(StoreLockedError):
            lock.__enter__()
            got.append(lock)

    with monkeypatch.context() as patched:
        patched.setattr(lock_object, "_chain", look_together)
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    [lock] = got
    lock.__exit__(None, None, None)
    assert place.names("") == []


@pytest.mark.usefixtures("machines")
def test_who_was_only_slow_finds_out_before_it_takes_anything_away(server: S3Server, place: Bucket) -> None:
    with held_object(place, busy=BUSY):
        server.objects["store/LOCK-" + "0" * 32] = server.objects["store/LOCK"]  # of a lock that is free by now
        assert freed_locks(place) == ["LOCK-" + "0" * 32]
        del server.objects["store/LOCK-" + "0" * 32]
        leave(place, break_lock=True)
        with pytest.raises(StoreError, match="was broken by somebody else"):
            require_held(place)
    assert LOCK in place.names(""), "theirs stays"
    assert lock_of(place) is not None


def test_an_object_that_says_nothing_keeps_others_away_and_is_named(place: Bucket) -> None:
    place.create(LOCK, b"not ours")
    with pytest.raises(StoreLockedError, match="does not say who holds it"):
        held_object(place, busy=BUSY).__enter__()
    with held_object(place, busy=BUSY, break_lock=True):
        pass
    assert place.names("") == []
