"""Which files a run takes, by its kind of recipe."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from theworld.pipeline.errors import ConfigError
from theworld.precompute.inputs.listing.inputs import list_inputs
from theworld.precompute.rollout.kinds import KINDS

FILES = ("a.png", "b.jpg", "moving.gif", "one.mp4", "sub/two.MKV", "notes.txt", "q.jsonl", ".hidden.mp4")

MP4 = b"\0\0\0\x18ftypmp42" + bytes(100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    return tmp_path / "in"


def test_each_kind_takes_its_own_files_and_counts_those_of_the_other(folder: Path) -> None:
    images = list_inputs(folder, KINDS["rollout"])
    assert [sample.source for sample in images.samples] == ["a.png", "b.jpg", "moving.gif"]
    assert (images.others, images.left_out) == ({"video": 2}, {".txt": 1, ".jsonl": 1, "hidden": 1})
    videos = list_inputs(folder, KINDS["frames"])
    assert [sample.source for sample in videos.samples] == ["one.mp4", "sub/two.MKV"]
    assert (videos.others, videos.left_out) == ({"image": 3}, {".txt": 1, ".jsonl": 1, "hidden": 1})
    assert len(list_inputs(folder, KINDS["frames"], limit=1).samples) == 1


def test_a_folder_of_the_other_kind_says_which_kind_takes_it(folder: Path) -> None:
    for name in ("a.png", "b.jpg", "moving.gif"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"holds no image, but 2 videos. --kind frames takes videos"):
        list_inputs(folder, KINDS["rollout"])
    (folder / "one.mp4").unlink()
    (folder / "sub" / "two.MKV").unlink()
    with pytest.raises(ConfigError, match=r"holds no video: none of its 2 files ends in .avi, .m4v, .mkv"):
        list_inputs(folder, KINDS["frames"])


def test_files_that_are_named_must_all_be_of_the_kind(folder: Path) -> None:
    (folder / "one.mp4").write_bytes(MP4)
    with pytest.raises(ConfigError, match=r"one\.mp4 stands for 1 video, and only images are wanted. --kind frames"):
        list_inputs(folder / "one.mp4", KINDS["rollout"])
    with pytest.raises(ConfigError, match=r"stands for 3 images.*--kind rollout takes images, or narrow the pattern"):
        list_inputs(folder / "*.*", KINDS["frames"])
    assert len(list_inputs(folder / "**" / "*.[mM][pPkK]*", KINDS["frames"]).samples) == 2
    assert list_inputs(folder / "one.mp4", KINDS["frames"]).others == {}
    with pytest.raises(ConfigError, match=r"no folder or video at .*absent"):
        list_inputs(folder / "absent", KINDS["frames"])


def test_a_pattern_in_quotes_may_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    images = KINDS["rollout"]
    here = list_inputs(folder / "*.png", images)
    assert here.samples
    assert list_inputs(Path("~") / folder.name / "*.png", images) == here


def test_a_socket_with_the_name_of_a_tar_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("x.tar")
        [refused] = list_inputs(tmp_path / "*.tar", KINDS["rollout"]).refused
    assert (refused.source, refused.reason) == ("x.tar", "not_a_file")
