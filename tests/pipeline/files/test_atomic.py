"""Files appear whole or not at all, and a sealed record that was touched is recognised."""

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from theworld.pipeline.errors import StoreError, StoreNotFoundError
from theworld.pipeline.files import atomic
from theworld.pipeline.files.plain import read_file
from theworld.pipeline.files.sealed import seal, unseal


class PatchedOs:
    """The module `os` with some functions replaced."""

    def __init__(self, **replaced: Any) -> None:
        self.replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self.replaced.get(name) or getattr(os, name)


def fails(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def finished(folder: Path, content: bytes = b"payload") -> Path:
    temp = atomic.TempFile(folder / "tmp")
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
    assert atomic.place(finished(folder, b"first"), target)
    assert not atomic.place(finished(folder, b"second"), target)
    assert target.read_bytes() == b"first"


def test_a_link_whose_answer_got_lost_is_known_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks a second time where no answer came, and is told that the name is taken: by the first asking."""

    def twice(temp: Path, target: Path) -> None:
        os.link(temp, target)
        os.link(temp, target)

    monkeypatch.setattr(atomic, "os", PatchedOs(link=twice))
    target = folder / "target"
    assert atomic.publish(folder / "tmp", target, b"first")
    assert not atomic.publish(folder / "tmp", target, b"second")
    assert target.read_bytes() == b"first"


def test_without_hard_links_files_are_renamed_and_still_never_replace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "os", PatchedOs(link=fails(errno.EPERM)))
    target = folder / "target"
    assert atomic.publish(folder / "tmp", target, b"first")
    assert not atomic.publish(folder / "tmp", target, b"second")
    assert target.read_bytes() == b"first"
    assert list((folder / "tmp").iterdir()) == []


def test_a_file_system_that_can_do_neither_is_refused_with_advice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "os", PatchedOs(link=fails(errno.EPERM)))
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(StoreError, match="hard links"), atomic.writing(folder):
        atomic.publish(folder / "tmp", folder / "target", b"content")
    assert not (folder / "target").exists()


def test_a_kernel_that_takes_a_few_bytes_at_a_time_still_gets_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "os", PatchedOs(write=lambda fd, data: os.write(fd, data[:3])))
    assert finished(folder, b"ten bytes.").read_bytes() == b"ten bytes."


def test_files_get_the_rights_the_umask_leaves(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic.publish(folder / "tmp", folder / "target", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "target").stat().st_mode) == 0o640


def test_a_failed_fsync_publishes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "os", PatchedOs(fsync=fails(errno.EIO)))
    with pytest.raises(OSError, match="Input/output"):
        atomic.publish(folder / "tmp", folder / "target", b"content")
    assert not (folder / "target").exists()
    assert list((folder / "tmp").iterdir()) == []


def test_what_can_be_made_again_is_put_whole_and_without_fsync(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "os", PatchedOs(fsync=fails(errno.EIO)))
    (folder / "target").write_bytes(b"before")
    atomic.replace(folder / "tmp", folder / "target", memoryview(b"content"), durable=False)
    assert (folder / "target").read_bytes() == b"content"
    with pytest.raises(OSError, match="Input/output"):
        atomic.replace(folder / "tmp", folder / "target", b"later")
    assert (folder / "target").read_bytes() == b"content"
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "--cache"), (errno.EIO, "Check the disk")],
)
def test_a_refusing_disk_is_explained(folder: Path, number: int, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught, atomic.writing(folder):
        raise OSError(number, os.strerror(number))
    assert str(folder) in str(caught.value)
    assert "same command" in str(caught.value)


def test_our_own_errors_pass_unchanged(folder: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="as it is"), atomic.writing(folder):
        raise StoreNotFoundError("as it is")


def test_pipes_and_huge_files_do_not_hold_a_reader_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="regular"):
        read_file(tmp_path / "pipe", 10)
    with pytest.raises(ValueError, match="limit is 10"):
        read_file(tmp_path / "large", 10)
    assert len(read_file(tmp_path / "large", 100)) == 100


def test_a_sealed_line_is_the_same_whatever_the_order_of_its_fields() -> None:
    assert seal({"rows": 2, "keys": ["a"]}) == seal({"keys": ["a"], "rows": 2})
    with pytest.raises(ValueError, match="JSON"):
        seal({"rows": float("nan")})


def test_a_link_to_the_file_that_is_to_be_placed_is_another_file(folder: Path) -> None:
    temp, target = finished(folder), folder / "target"
    target.symlink_to(temp)
    assert not atomic.place(temp, target)
    assert target.is_symlink()


def test_a_kernel_that_cannot_rename_without_replacing_is_refused_and_other_errors_stay_what_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "os", PatchedOs(link=fails(errno.EPERM)))
    for number, told in ((errno.EINVAL, errno.ENOTSUP), (errno.ENOSYS, errno.ENOTSUP), (errno.EIO, errno.EIO)):

        def renameat2(*_: object, number: int = number) -> int:
            atomic.ctypes.set_errno(number)
            return -1

        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, call=renameat2, **__: SimpleNamespace(renameat2=call))
        with pytest.raises(OSError, match=r".") as caught:
            atomic.place(finished(folder), folder / "target")
        assert caught.value.errno == told
    assert not (folder / "target").exists()
