"""One process at a time holds a lock, and it is free again when the block ends."""

import errno
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from theworld.pipeline.errors import StoreError, StoreLockedError
from theworld.pipeline.files import lock
from theworld.pipeline.files.lock_holder import Holder

from ...faults.file_systems import Refusal, file_system
from ...faults.harness import finish, start
from ...patience import ends_within


def test_a_second_lock_is_refused_with_the_given_words_until_the_first_is_left(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with pytest.raises(FileNotFoundError), lock.exclusive_lock(file, busy="wait"):
        pass
    with lock.exclusive_lock(file, busy="wait", create=True):
        with pytest.raises(StoreLockedError, match=r"^wait$"), lock.exclusive_lock(file, busy="wait"):
            pass
        with pytest.raises(StoreLockedError), lock.exclusive_lock(file, busy="wait"):  # the refusal freed nothing
            pass
    with pytest.raises(KeyError), lock.exclusive_lock(file, busy="wait"):
        raise KeyError
    with lock.exclusive_lock(file, busy="wait"):
        pass


def test_a_lock_leaves_the_content_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text("{}")
    with lock.exclusive_lock(file, busy="wait"):
        assert file.read_text() == "{}"


def test_a_file_system_without_locks_is_named_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB))
    (tmp_path / "f").touch()
    with pytest.raises(StoreError, match="No locks available") as raised, lock.exclusive_lock(tmp_path / "f", busy=""):
        pass
    assert not isinstance(raised.value, StoreLockedError)


REAL_FLOCK = fcntl.flock


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP], ids=["Lustre", "FUSE"])
def no_flock(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file on a file system without flock."""
    file = tmp_path / "theworld.json"
    file.write_text("{}")
    with file_system(tmp_path, Refusal("flock", request.param)):
        yield file


def lock_file_of(file: Path) -> Path:
    return file.with_name("theworld.json.lock")


def take(file: Path) -> None:
    with lock.exclusive_lock(file, busy="wait"):
        pass


def killed_holder(file: Path) -> int:
    """A process that was killed while it held the lock."""

    def hold(tell: Any) -> None:
        with lock.exclusive_lock(file, busy="wait"):
            tell("held")
            signal.pause()

    child, pipe = start(hold)
    assert os.read(pipe, 16) == b"held\n"
    finish(child, pipe, kill=True)
    return child


def test_without_flock_a_lock_file_keeps_a_second_one_away_and_says_who_holds_it(no_flock: Path) -> None:
    for _ in range(2):
        with lock.exclusive_lock(no_flock, busy="wait"):
            with pytest.raises(StoreLockedError, match=f"^wait.*process {os.getpid()} on .*delete that file"):
                take(no_flock)
            with pytest.raises(StoreLockedError):
                take(no_flock)
        assert os.listdir(no_flock.parent) == ["theworld.json"]  # noqa: PTH208


def test_a_lock_file_is_respected_by_who_has_flock(no_flock: Path) -> None:
    def somewhere_else(tell: Any) -> None:
        fcntl.flock = REAL_FLOCK  # the other machine mounts it with locks
        try:
            take(no_flock)
        except StoreLockedError as error:
            tell(json.dumps(str(error)))

    with lock.exclusive_lock(no_flock, busy="wait"):
        [word] = finish(*start(somewhere_else))
    assert "theworld.json.lock says that process" in word
    assert finish(*start(somewhere_else)) == []


def test_the_lock_of_a_killed_process_is_taken_over_by_one_of_many_at_a_time(no_flock: Path) -> None:
    pid = killed_holder(no_flock)
    assert json.loads(lock_file_of(no_flock).read_text())["pid"] == pid

    def contend(tell: Any) -> None:
        try:
            with lock.exclusive_lock(no_flock, busy="wait"):
                began = time.monotonic()
                time.sleep(0.3)
                tell(f"{began} {time.monotonic()}")
        except StoreLockedError:
            tell("busy")

    children = [start(contend) for _ in range(6)]
    words = [word for child in children for word in finish(*child)]
    held = sorted(tuple(map(float, word.split())) for word in words if word != "busy")
    assert held
    assert all(end <= began for (_, end), (began, _) in pairwise(held))
    assert os.listdir(no_flock.parent) == ["theworld.json"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("changes", "is_free"),
    [
        ({"boot": "another"}, True),
        ({"pid": 2**22 + 1}, True),
        ({"started": 1}, True),
        ({}, False),
        ({"host": "another"}, False),
        ({"host": "another", "boot": "another"}, False),
        ({"pids": "pid:[1]", "pid": 2**22 + 1}, False),
        ({"boot": "", "pid": 2**22 + 1}, False),
    ],
    ids=["restarted", "no process", "number given out again", "alive", "host", "other host", "container", "no boot id"],
)
def test_only_a_holder_that_has_certainly_ended_loses_its_lock(
    no_flock: Path, changes: dict[str, Any], is_free: bool
) -> None:
    holder = Holder.this().model_copy(update=changes)
    lock_file_of(no_flock).write_text(holder.model_dump_json())
    if is_free:
        take(no_flock)
        assert not lock_file_of(no_flock).exists()
    else:
        with pytest.raises(StoreLockedError, match="delete that file"):
            take(no_flock)
        assert Holder.model_validate_json(lock_file_of(no_flock).read_text()) == holder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', bytes(5000)])
def test_a_lock_file_that_says_nothing_keeps_everybody_away_and_is_named(no_flock: Path, content: bytes) -> None:
    lock_file_of(no_flock).write_bytes(content)
    with pytest.raises(StoreLockedError, match=r"theworld\.json\.lock .*delete it"):
        take(no_flock)
    assert lock_file_of(no_flock).read_bytes() == content


def test_a_lock_service_that_never_answers_is_named_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theworld.json"
    file.touch()
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    answers = threading.Event()
    monkeypatch.setattr(fcntl, "flock", lambda *_: answers.wait())
    with ends_within(20), pytest.raises(StoreError, match="did not answer within") as raised:
        take(file)
    assert not isinstance(raised.value, StoreLockedError)
    answers.set()
    monkeypatch.undo()
    take(file)


def test_a_folder_that_cannot_be_written_and_has_no_locks_says_both(no_flock: Path) -> None:
    with (
        file_system(no_flock.parent, Refusal("open", errno.EROFS, lambda path: path.suffix == ".lock")),
        pytest.raises(StoreError, match=r"theworld\.json\.lock cannot be written: Read-only"),
    ):
        take(no_flock)
