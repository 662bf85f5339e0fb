"""Files appear whole or not at all, and a sealed record that was touched is recognised."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import DamagedShardError, StoreError, StoreNotFoundError
from theworld.pipeline.files import atomic as commit
from theworld.pipeline.files.sealed import read_file, seal, unseal
from theworld.pipeline.store.index import record_stamps
from theworld.pipeline.store.records import ShardRecord, read_record

RECIPE_ID = "ab" * 32


class Os:
    """The module `os` with some functions replaced."""

    def __init__(self, **replaced: Any) -> None:
        self.replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self.replaced.get(name) or getattr(os, name)


def fails(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def record(**changes: Any) -> ShardRecord:
    fields: dict[str, Any] = {
        "shard": 0,
        "recipe_id": RECIPE_ID,
        "keys": ("0" * 32, "1" * 32),
        "rows": 2,
        "bytes": 100,
        "xxh3_128": "0" * 32,
        "sha256": "0" * 64,
        "first_frames_crc32c": "0000000100000002",
        "created": "2026-01-01T00:00:00+00:00",
        "facts": {"host": "here"},
    }
    return ShardRecord.model_construct(**(fields | changes), format=changes.get("format", 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tmp", "commits", "latents/c"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def finished(folder: Path, content: bytes = b"payload") -> Path:
    temp = commit.TempFile(folder / "tmp")
    temp.write(content)
    temp.finish()
    return temp.path


def test_every_flipped_bit_and_every_cut_of_a_sealed_line_is_recognised() -> None:
    sealed = seal({"keys": ["a", "b"], "rows": 2})
    assert unseal(sealed) == b'{"keys":["a","b"],"rows":2}'
    broken = [sealed[:length] for length in range(len(sealed))]
    for position in range(len(sealed)):
        for bit in range(8):
            flipped = bytearray(sealed)
            flipped[position] ^= 1 << bit
            broken.append(bytes(flipped))
    for content in broken:
        with pytest.raises(ValueError, match="seal"):
            unseal(content)


def test_placing_never_replaces(folder: Path) -> None:
    target = folder / "target"
    assert commit.place(finished(folder, b"first"), target)
    assert not commit.place(finished(folder, b"second"), target)
    assert target.read_bytes() == b"first"


def test_a_link_whose_answer_got_lost_is_known_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks a second time where no answer came, and is told that the name is taken: by the first asking."""

    def twice(temp: Path, target: Path) -> None:
        os.link(temp, target)
        os.link(temp, target)

    monkeypatch.setattr(commit, "os", Os(link=twice))
    target = folder / "target"
    assert commit.publish(folder / "tmp", target, b"first")
    assert not commit.publish(folder / "tmp", target, b"second")
    assert target.read_bytes() == b"first"
    commit.publish_record(folder, record())
    with pytest.raises(StoreError, match="exists"):
        commit.publish_record(folder, record())


def test_without_hard_links_files_are_renamed_and_still_never_replace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "os", Os(link=fails(errno.EPERM)))
    target = folder / "target"
    assert commit.publish(folder / "tmp", target, b"first")
    assert not commit.publish(folder / "tmp", target, b"second")
    assert target.read_bytes() == b"first"
    assert list((folder / "tmp").iterdir()) == []


def test_a_file_system_that_can_do_neither_is_refused_with_advice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "os", Os(link=fails(errno.EPERM)))
    monkeypatch.setattr(commit.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(StoreError, match="hard links"), commit.writing(folder):
        commit.publish(folder / "tmp", folder / "target", b"content")
    assert not (folder / "target").exists()


def test_a_kernel_that_takes_a_few_bytes_at_a_time_still_gets_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "os", Os(write=lambda fd, data: os.write(fd, data[:3])))
    assert finished(folder, b"ten bytes.").read_bytes() == b"ten bytes."


def test_files_get_the_rights_the_umask_leaves(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        commit.publish(folder / "tmp", folder / "target", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "target").stat().st_mode) == 0o640


def test_a_failed_fsync_publishes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "os", Os(fsync=fails(errno.EIO)))
    with pytest.raises(OSError, match="Input/output"):
        commit.publish(folder / "tmp", folder / "target", b"content")
    assert not (folder / "target").exists()
    assert list((folder / "tmp").iterdir()) == []


def test_what_can_be_made_again_is_put_whole_and_without_fsync(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "os", Os(fsync=fails(errno.EIO)))
    (folder / "target").write_bytes(b"before")
    commit.replace(folder / "tmp", folder / "target", memoryview(b"content"), durable=False)
    assert (folder / "target").read_bytes() == b"content"
    with pytest.raises(OSError, match="Input/output"):
        commit.replace(folder / "tmp", folder / "target", b"later")
    assert (folder / "target").read_bytes() == b"content"
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "--cache"), (errno.EIO, "Check the disk")],
)
def test_a_refusing_disk_is_explained(folder: Path, number: int, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught, commit.writing(folder):
        raise OSError(number, os.strerror(number))
    assert str(folder) in str(caught.value)
    assert "same command" in str(caught.value)


def test_our_own_errors_pass_unchanged(folder: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="as it is"), commit.writing(folder):
        raise StoreNotFoundError("as it is")


def test_a_payload_takes_the_first_free_number(folder: Path) -> None:
    def payload_of(number: int) -> Path:
        return folder / "latents" / "c" / str(number) / "0" / "payload"

    top = folder / "latents" / "c"
    numbers = [
        commit.place_payload(finished(folder, bytes([n])), payload_of, first=first, top=top)
        for n, first in enumerate([3, 3, 0, 4])
    ]
    assert numbers == [3, 4, 0, 5]
    assert [payload_of(number).read_bytes() for number in numbers] == [b"\0", b"\1", b"\2", b"\3"]


def test_a_record_comes_back_as_it_was_published(folder: Path) -> None:
    commit.publish_record(folder, record(shard=7))
    assert set(record_stamps(folder)) == {7}
    assert read_record(folder, 7, RECIPE_ID) == record(shard=7)
    with pytest.raises(StoreError, match="exists"):
        commit.publish_record(folder, record(shard=7))


def test_only_names_of_records_are_taken_for_records(folder: Path) -> None:
    for name in ("0.json", "12.json", "012.json", "3.json~", ".4.json", "x.json", "9999999999.json", "5"):
        (folder / "commits" / name).touch()
    assert set(record_stamps(folder)) == {0, 12}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shard": 6}, "shard 6"),
        ({"recipe_id": "cd" * 32}, "recipe cdcdcd"),
        ({"keys": ("0" * 32, "0" * 32)}, "distinct keys"),
        ({"keys": ("0" * 32,)}, "distinct keys"),
        ({"keys": ("0" * 32, "../../../../etc/passwd")}, "32 hexadecimal digits"),
        ({"keys": ("0" * 32, "A" * 32)}, "32 hexadecimal digits"),
        ({"keys": ("0" * 31, "1" * 33)}, "32 hexadecimal digits"),
        ({"first_frames_crc32c": "00000001"}, "first_frames_crc32c"),
        ({"bytes": -1}, "bytes"),
        ({"rows": "2"}, "rows"),
        ({"format": 2}, "format"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_record_with_a_right_seal_and_wrong_content_is_damage(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    fields = {name: getattr(record(), name) for name in ShardRecord.model_fields} | {"shard": 5}
    (folder / "commits" / "5.json").write_bytes(seal(fields | changes))
    with pytest.raises(DamagedShardError, match=words) as caught:
        read_record(folder, 5, RECIPE_ID)
    for part in ("commits/5.json", "lost+found", "theworld precompute"):
        assert part in str(caught.value)


def test_pipes_and_huge_files_do_not_hold_a_reader_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="regular"):
        read_file(tmp_path / "pipe", 10)
    with pytest.raises(ValueError, match="at most 10"):
        read_file(tmp_path / "large", 10)
    assert len(read_file(tmp_path / "large", 100)) == 100
