"""Gigabytes of weights are read once: a second command finds their hash by what the file system says of the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from theworld.pipeline.files import hash_cache
from theworld.pipeline.files.hashing import digest_of_file, hash_files
from theworld.pipeline.files.hub import weight_hashes
from theworld.pipeline.files.hub.weight_hashes import digest_of_weights, hash_weights
from theworld.pipeline.machine import own_folder
from theworld.pipeline.progress import Progress


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(hash_cache, "_RACY_NS", -(10**10))  # files of this very second count as old
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(bytes(range(256)) * 40_000)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []

    def digest(path: Path, **options: object) -> bytes:
        names.append(path.name)
        return digest_of_file(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(weight_hashes, "digest_of_file", digest)
    return names


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def _print(self, line: str) -> None:
        self.lines.append(line)


def test_weights_are_read_once_and_again_when_they_change(folder: Path, read: list[str]) -> None:
    files = sorted(folder.iterdir())
    whole = hash_files(folder, files)
    assert hash_weights(folder, files) == whole
    assert read == ["a.safetensors", "config.json"]
    assert hash_weights(folder, files) == whole
    assert len(read) == 2
    status = files[0].stat()
    files[0].write_bytes(b"X" + files[0].read_bytes()[1:])
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time: the time of change tells
    assert hash_weights(folder, files) == hash_files(folder, files) != whole
    assert read[2:] == ["a.safetensors"]
    hash_weights(folder, files, trust=False)
    assert len(read) == 5


def test_one_file_is_remembered_as_a_folder_is(folder: Path, read: list[str]) -> None:
    file = folder / "a.safetensors"
    assert digest_of_weights(file) == digest_of_weights(file) == digest_of_file(file)
    assert read == [file.name]


def test_a_read_that_takes_long_is_said_and_a_remembered_one_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_hashes, "MANY_BYTES", 10**7)
    told = Told()
    hash_weights(folder, folder.iterdir(), progress=told)
    assert told.lines == [f"reading the weights in {folder}, 9.8 MiB: once, as long as they do not change"]
    hash_weights(folder, folder.iterdir(), progress=told)
    assert len(told.lines) == 1


def test_an_interruption_keeps_what_was_read(folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = weight_hashes.digest_of_file

    def interrupted(path: Path, **options: object) -> bytes:
        if path.name == "config.json":
            raise KeyboardInterrupt
        return known(path, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(weight_hashes, "digest_of_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hash_weights(folder, sorted(folder.iterdir()))
    hash_weights(folder, folder.iterdir())
    assert read == ["a.safetensors", "config.json"]


def test_where_nothing_can_be_kept_weights_are_hashed_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "config.json"))  # a file, so no folder can be made in it
    assert hash_weights(folder, folder.iterdir()) == hash_files(folder, folder.iterdir())
    assert own_folder() == folder / "config.json" / "theworld"
