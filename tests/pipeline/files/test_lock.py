"""One process at a time holds a lock, and it is free again when the block ends."""

import fcntl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from theworld.pipeline.errors import StoreError, StoreLockedError
from theworld.pipeline.files import lock


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
