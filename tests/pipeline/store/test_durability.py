"""Each fsync of the commit path, in its place: what is named must be durable before something else names it."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import StoreError
from theworld.pipeline.files import atomic
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.store import commit
from theworld.pipeline.store.folder import StoreFormat
from theworld.pipeline.store.upkeep.repair import repair

from ...miniatures.store import create, flip, write
from ..files.test_atomic import PatchedOs, finished


class Recorder:
    """Every sync and every change of a name, in order, with paths from `top`."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.calls: list[tuple[str, str]] = []
        record = PatchedOs(
            fsync=self._fsync,
            link=self._names("link", os.link),
            replace=self._names("replace", os.replace),
            unlink=self._names("unlink", os.unlink),
            mkdir=self._names("mkdir", os.mkdir),
        )
        monkeypatch.setattr(atomic, "os", record)

    def _path(self, path: Any) -> str:
        path = Path(path)
        relative = (path.parent.resolve() / path.name).relative_to(self.top.resolve()).as_posix()
        return "tmp/*" if relative.startswith("tmp/") else relative

    def _fsync(self, fd: int) -> None:
        self.calls.append(("sync", self._path(Path(f"/proc/self/fd/{fd}").readlink())))
        os.fsync(fd)

    def _names(self, name: str, function: Any) -> Any:
        def call(*paths: Any) -> None:
            function(*paths)
            self.calls.append((name, self._path(paths[-1])))

        return call

    def take(self, *names: str) -> list[tuple[str, str]]:
        """The calls since the last time; with names, only those."""
        calls, self.calls = self.calls, []
        return [call for call in calls if not names or call[0] in names]


@pytest.mark.parametrize(
    ("format", "payload", "folders"),
    [
        ("zarr", "latents/c/0/0/0/0/0", ["latents/c/0/0/0/0", "latents/c/0/0/0", "latents/c/0/0", "latents/c/0"]),
        ("webdataset", "shards/000000.tar", []),
    ],
)
def test_a_commit_syncs_payload_folders_record_and_its_folder_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: StoreFormat, payload: str, folders: list[str]
) -> None:
    store = create(tmp_path, format=format)
    recorder = Recorder(store.path, monkeypatch)
    write(store, [0, 1])
    calls = [call for call in recorder.take("sync", "link") if not call[1].startswith(("key", "latents/zarr", "."))]
    assert calls[: 6 + len(folders)] == [
        ("sync", "tmp/*"),
        ("link", payload),
        *(("sync", folder) for folder in [*folders, store.layout.payload_folder]),
        ("sync", "tmp/*"),
        ("link", "commits/0.json"),
        ("sync", "commits"),
    ]


def test_a_new_folder_is_synced_in_its_parent_unless_that_is_left_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, monkeypatch)
    atomic.make_folders(tmp_path / "a" / "b")
    assert recorder.take() == [("mkdir", "a"), ("sync", "."), ("mkdir", "a/b"), ("sync", "a")]
    atomic.make_folders(tmp_path / "a" / "b")
    assert recorder.take() == []
    atomic.make_folders(tmp_path / "c" / "d", durable=False)
    assert recorder.take() == [("mkdir", "c"), ("mkdir", "c/d")]


def test_a_file_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    recorder = Recorder(tmp_path, monkeypatch)
    assert atomic.publish(tmp_path / "tmp", tmp_path / "file", b"1")
    assert recorder.take() == [("sync", "tmp/*"), ("link", "file"), ("sync", "."), ("unlink", "tmp/*")]
    atomic.replace(tmp_path / "tmp", tmp_path / "file", b"2")
    assert recorder.take() == [("sync", "tmp/*"), ("replace", "file"), ("sync", ".")]
    atomic.replace(tmp_path / "tmp", tmp_path / "file", b"3", durable=False)
    assert recorder.take() == [("replace", "file")]


def test_a_removal_is_synced_and_nothing_is_where_nothing_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    recorder = Recorder(tmp_path, monkeypatch)
    atomic.remove(tmp_path / "folder" / "file")
    assert recorder.take() == [("unlink", "folder/file"), ("sync", "folder")]
    atomic.remove(tmp_path / "folder" / "file")
    assert recorder.take() == []


def test_a_repair_syncs_the_new_name_before_it_takes_the_old_one_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path)
    write(store, [0, 1])
    flip(store.payload_path(0), 5)
    recorder = Recorder(store.path, monkeypatch)
    repair(store.path, apply=True)
    calls = recorder.take()
    aside = calls.index(("link", "lost+found/commits-0.json"))
    gone = calls.index(("unlink", "commits/0.json"))
    assert ("sync", "lost+found") in calls[aside:gone]
    assert calls[gone + 1] == ("sync", "commits")
    assert gone < calls.index(("link", "lost+found/latents-c-0-0-0-0-0")), "the record first"


def test_a_creation_syncs_every_folder_up_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    paths: list[str] = []

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            paths.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        os.fsync(fd)

    monkeypatch.setattr(atomic, "os", PatchedOs(fsync=fsync))
    store = create(cache)
    for folder in (store.path / "latents" / "c", store.path / "latents", store.path, cache):
        assert str(folder) in paths
    paths.clear()
    create(cache)  # whoever began it may have been killed before these syncs
    for folder in (store.path / "latents" / "c", store.path / "latents", store.path, cache):
        assert str(folder) in paths


def test_a_file_system_that_says_it_kept_a_file_and_replaced_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(temp: Path, target: Path) -> None:
        if target.exists():
            target.write_bytes(temp.read_bytes())
        os.link(temp, target)

    (tmp_path / "tmp").mkdir()
    Folder(tmp_path).self_test("tmp")
    assert list((tmp_path / "tmp").iterdir()) == []
    monkeypatch.setattr(atomic, "os", PatchedOs(link=link))
    with pytest.raises(OSError, match="replaces a file"):
        Folder(tmp_path).self_test("tmp")


def test_a_payload_is_never_placed_through_a_link(tmp_path: Path) -> None:
    for name in ("tmp", "top", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "top" / "0").symlink_to(tmp_path / "outside")

    def payload_of(number: int) -> str:
        return f"top/{number}/payload"

    assert commit.place_payload(Folder(tmp_path), finished(tmp_path), payload_of, first=0, top="top") == 1
    assert list((tmp_path / "outside").iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="symbolic link"):
        commit.place_payload(Folder(tmp_path), finished(tmp_path), payload_of, first=0, top="link")
