"""The image of a WebDataset sample: chosen by its extension, or asked for; nothing of a tar is taken unsaid."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import ConfigError
from theworld.precompute.inputs.listing.inputs import list_inputs
from theworld.precompute.inputs.tars import samples as tar_samples
from theworld.precompute.inputs.tars.samples import split_name


def write_tar(file: Path, names: Iterable[str]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            tar.addfile(info, io.BytesIO(name.encode()))
    return file


def taken(place: Path, **options: Any) -> list[str]:
    return [sample.source.partition(":")[2] for sample in list_inputs(place, "rollout", **options).samples]


CONTROL = [f"{key}.{end}" for key in ("000", "sub.d/001") for end in ("jpg", "mask.png", "Depth.PNG", "json")]


def test_a_name_is_split_at_the_first_dot_behind_the_folders() -> None:
    assert split_name("sub.d/000.Mask.PNG") == ("sub.d/000", "mask.png")
    assert split_name("000") == ("000", "")


@pytest.mark.parametrize(
    ("column", "inputs"),
    [
        ("jpg", ["000.jpg", "sub.d/001.jpg"]),
        (".JPG", ["000.jpg", "sub.d/001.jpg"]),
        ("depth.png", ["000.Depth.PNG", "sub.d/001.Depth.PNG"]),
        ("webp;mask.png; jpg", ["000.mask.png", "sub.d/001.mask.png"]),
        ("*", [name for name in CONTROL if not name.endswith("json")]),
    ],
)
def test_an_extension_chooses_the_image_of_each_sample(tmp_path: Path, column: str, inputs: list[str]) -> None:
    assert taken(write_tar(tmp_path / "s.tar", CONTROL), column=column) == inputs


def test_samples_of_several_images_are_asked_about_before_anything(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", CONTROL)
    with pytest.raises(
        ConfigError, match=r"2 of 2 have more than one \(jpg 2, mask\.png 2, depth\.png 2\).*--column jpg"
    ):
        list_inputs(tmp_path / "s.tar", "rollout")
    write_tar(tmp_path / "pairs.tar", [f"{number}.{end}" for end in ("jpg", "png") for number in range(5)])
    with pytest.raises(ConfigError, match=r"5 of 5 have more than one.*--column '\*' for each as an input of its own"):
        list_inputs(tmp_path / "pairs.tar", "rollout")


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png"],
        ["a.jpg", "a.png", "b.jpg", "c.jpg", "d.jpg", "e.png", "f.png"],
        [f"{camera}.{number:04d}.png" for camera in ("left", "right") for number in range(9)],
        ["Holiday 1.5.png", "Holiday 1.6.png", "Mr. A.png", "Mr. B.png", "Dr. A.png", "Dr. B.png"],
        ["x.png", "x.png", "y.png", "y.png"],
        ["images/0.jpg", "masks/0.png", "images/1.jpg", "masks/1.png"],
    ],
)
def test_every_image_of_a_folder_in_a_tar_is_an_input(tmp_path: Path, names: list[str]) -> None:
    listing = list_inputs(write_tar(tmp_path / "s.tar", names), "rollout")
    assert len(listing.samples) == len(names)
    has_note = any("names with several images: 1 of " in note for note in listing.notes)
    assert has_note == (names[:2] == ["a.jpg", "a.png"])


def test_a_sample_without_the_extension_is_a_row_with_what_it_has(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", ["0.jpg", "0.txt", "1.png", "1.txt", "2.jpg", "._2.jpg"])
    listing = list_inputs(tmp_path / "s.tar", "rollout", column="jpg")
    assert [sample.source for sample in listing.samples] == ["s.tar:0.jpg", "s.tar:2.jpg"]
    [failure] = listing.refused
    assert (failure.source, failure.reason) == ("s.tar:1.jpg", "missing")
    assert "no member .jpg; it has png, txt" in failure.message
    assert dict(listing.left_out) == {".txt": 2, ".png": 1, "hidden": 1}
    with pytest.raises(ConfigError, match=r"no member \.tif\. The extensions of its members are jpg 2, txt 2, png 1"):
        list_inputs(tmp_path / "s.tar", "rollout", column="tif")


def test_a_tar_that_is_cut_keeps_the_samples_before(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "s.tar", CONTROL)
    file.write_bytes(file.read_bytes()[: 1024 * 5 + 512 + 3])
    listing = list_inputs(file, "rollout", column="jpg")
    assert [sample.source for sample in listing.samples] == ["s.tar:000.jpg", "s.tar:sub.d/001.jpg"]
    assert [failure.source for failure in listing.refused] == ["s.tar"]


def test_what_stands_behind_the_end_of_a_tar_is_named(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{name}.tar", [f"{name}.png"]).read_bytes() for name in "ab")
    for content, words in (
        (first + second, "goes on behind its end"),  # cat a.tar b.tar
        (first[:1024] + bytes(2**21), "holds nothing but zeros"),  # a download that was broken off
        (first + bytes(2**19), ""),
        (first[:1024], ""),
    ):
        (tmp_path / "joined.tar").write_bytes(content)
        listing = list_inputs(tmp_path / "joined.tar", "rollout")
        assert [sample.source for sample in listing.samples] == ["joined.tar:a.png"]
        assert [words in str(bad) for bad in listing.refused] == [True] * bool(words)


def test_prompts_and_other_folders_are_of_lists_alone(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "s.tar", ["0.jpg"])
    with pytest.raises(ConfigError, match="no columns, so --prompt-field"):
        list_inputs(file, "rollout", prompt_field="txt")
    with pytest.raises(ConfigError, match="is no list"):
        list_inputs(file, "rollout", image_root=tmp_path)


def test_samples_of_many_tars_are_counted_together_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_samples, "_MOST_KEYS", 4)
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [f"{shard}{key}.{end}" for key in range(9) for end in ("jpg", "seg.png")])
    with pytest.raises(ConfigError, match=r"27 of 27 have more than one \(jpg 27, seg\.png 27\)"):
        list_inputs(tmp_path, "rollout")
    assert len(taken(tmp_path, column="jpg")) == 27
