"""Rows of lists as others write them: lists, objects, names of columns, spellings of paths, a folder of their own."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.command_line import theworld
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files import limits
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs
from theworld.precompute.inputs.rows.manifests import COLUMNS
from theworld.precompute.inputs.rows.spellings import spellings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    return tmp_path / "in"


def listed(folder: Path, *rows: object, kind: Any = "rollout", name: str = "l.jsonl", **options: Any) -> Listing:
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return list_inputs(folder / name, kind, **options)


def taken(listing: Listing) -> list[str]:
    return [sample.source for sample in listing.samples]


def bad(listing: Listing) -> dict[str, str]:
    return {failure.source: failure.message for failure in listing.refused}


@pytest.mark.parametrize(
    "value",
    [
        ["a.png"],
        {"path": "a.png", "bytes": None},
        {"src": "a.png"},
        {"image": {"path": "a.png"}},
        [{"type": "image", "image": "a.png"}],
        {"type": "image_url", "image_url": {"url": "a.png"}},
        '["a.png"]',
        "['a.png']",
    ],
)
def test_a_row_with_one_image_is_that_image_however_it_is_wrapped(folder: Path, value: object) -> None:
    listing = listed(folder, {"image": value})
    assert (taken(listing), listing.refused) == (["a.png"], ())
    assert "l.jsonl:1" in listing.readable


def test_each_image_of_a_row_is_an_input_and_its_place_is_in_its_name(folder: Path) -> None:
    rows = [{"image": "b.png"}, {"image": ["a.png", "no.png", 7, "sub/c.png"]}, {"image": ["a.png", "b.png"]}]
    listing = listed(folder, *rows)
    assert taken(listing) == ["b.png", "a.png", "sub/c.png", "a.png", "b.png"]
    assert sorted(bad(listing)) == ["l.jsonl:2[1]", "l.jsonl:2[2]"]
    for name, is_readable in {
        "l.jsonl:1": True,
        "l.jsonl:2": False,  # not all of it
        "l.jsonl:2[0]": True,
        "l.jsonl:2[1]": False,
        "l.jsonl:2[3]": True,
        "l.jsonl:2[4]": False,
        "l.jsonl:3": True,  # refused by an earlier version, which knew no lists
        "l.jsonl:1[0]": False,
        "l.jsonl:4": False,
        "l.jsonl:999999999999": False,
    }.items():
        assert (name in listing.readable) == is_readable, name
    assert "l.jsonl:2[3]" not in list_inputs(folder / "l.jsonl", "rollout", limit=3).readable


def test_a_prompt_belongs_to_each_image_of_its_row(folder: Path) -> None:
    listing = listed(folder, {"image": ["a.png", "b.png"], "Text ": "it falls"}, prompt_field="text")
    assert [(sample.source, sample.prompt) for sample in listing.samples] == [
        ("a.png", "it falls"),
        ("b.png", "it falls"),
    ]


def test_rows_that_hold_no_image_say_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ROW_INPUTS", 3)
    rows = [[], [None], [1, 2], [None, *["a.png"] * 3], {"bytes": "x"}, [["a.png"]], "a.png"]
    listing = listed(folder, *({"image": row} for row in rows))
    assert taken(listing) == ["a.png"]
    words = ["an empty list", "an empty list", "got [1, 2]", "has 4 inputs; the limit for one row is 3"]
    words += ['got {"bytes": "x"}', 'got [["a.png"]]']
    for line, text in enumerate(words, 1):
        assert text in bad(listing)[f"l.jsonl:{line}"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.jsonl", '"a.png"\n"b.png"\n', "l.jsonl:1 is of type str, but a row must be an object"),
        ("l.json", '["a.png"]', "l.json:1 is of type str, but a row must be an object"),
        ("l.csv", "image,text\na.png,one, two\n", "l.csv:2 has 3 values for 2 columns"),
        ("l.json", '{"images": [{"file_name": "a.png"}]}', "is not a JSON array.*jq .images l.json > rows.json"),
    ],
)
def test_a_list_without_one_row_that_can_be_read_says_why(folder: Path, name: str, text: str, words: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        list_inputs(folder / name, "rollout")


def test_rows_behind_an_open_quotation_mark_are_inputs(folder: Path) -> None:
    (folder / "l.csv").write_text('image,text\na.png,"one\nb.png,two\n')
    listing = list_inputs(folder / "l.csv", "rollout")
    assert taken(listing) == ["b.png"]
    assert "a quotation mark in it is not closed" in bad(listing)["l.csv:2"]


@pytest.mark.parametrize("layout", ["l.jsonl", "l.json"])
def test_a_conversation_without_images_is_of_text_alone(folder: Path, layout: str) -> None:
    rows = [{"messages": [], "images": []}, {"messages": [], "images": ["a.png"]}]
    (folder / layout).write_text(json.dumps(rows) if layout == "l.json" else "\n".join(map(json.dumps, rows)))
    listing = list_inputs(folder / layout, "rollout")
    assert (taken(listing), listing.refused, dict(listing.left_out)) == (["a.png"], (), {"of text alone": 1})


@pytest.mark.parametrize(
    "name", ["images", "img", "image_path", "imagePath", "Image Path", " IMAGE ", "filepath", "filename", "File-Name"]
)
def test_columns_are_known_by_the_names_that_others_give(folder: Path, name: str) -> None:
    (folder / "l.csv").write_text(f"id,{name}\n1,a.png\n2,b.png\n")
    assert taken(list_inputs(folder / "l.csv", "rollout")) == ["a.png", "b.png"]
    assert taken(listed(folder, {"id": 1, name: "a.png"}, {"id": 2, name.upper(): "b.png"})) == ["a.png", "b.png"]


def test_the_old_names_of_columns_come_before_the_others(folder: Path) -> None:
    for name in COLUMNS:
        row = {"images": "no.png", "img": "no.png", "image_path": "no.png", name: "a.png"}
        assert taken(listed(folder, row)) == ["a.png"], name
    assert taken(listed(folder, {"images": ["no.png"], "videos": ["a.png"]}, kind="frames")) == ["a.png"]
    assert taken(listed(folder, {"Image": "no.png", "image": "a.png"}, column="image")) == ["a.png"]


def test_a_column_of_addresses_is_named_with_what_to_do(folder: Path) -> None:
    for name in ("url", "contentUrl", "URL"):
        (folder / "l.csv").write_text(f"{name},caption\nhttps://x.org/a.png,one\n")
        with pytest.raises(
            ConfigError, match=rf"The column {name} holds addresses.*nothing is downloaded.*img2dataset"
        ):
            list_inputs(folder / "l.csv", "rollout")


def test_other_spellings_of_a_path_lead_to_its_file_and_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / unicodedata.normalize("NFD", "é.png")).write_bytes(b"e")
    (folder / "a b.png").write_bytes(b"ab")
    (folder / "sub\\exact.png").write_bytes(b"exact")
    written = {
        "sub\\c.png": "sub/c.png",
        ".\\sub\\c.png": "sub/c.png",
        f"file://{folder}/a%20b.png": "a b.png",
        f"file://localhost{folder}/a.png": "a.png",
        " sub/c.png\t": "sub/c.png",
        "~/a.png": "a.png",
        "é.png": unicodedata.normalize("NFD", "é.png"),
        "./a.png": "a.png",
        "sub\\exact.png": "sub\\exact.png",  # as it is written comes first
    }
    listing = listed(folder, *({"image": path} for path in written))
    assert taken(listing) == list(written), "the name of an input stays as it is written"
    for sample, name in zip(listing.samples, written.values(), strict=True):
        assert sample.location.read(100) == (folder / name).read_bytes()
    [note] = listing.notes
    assert "l.jsonl: files found by another spelling of their paths: 7 (" in note
    assert "backslashes 2" in note
    assert (found := listing.samples.find("sub\\c.png")) is not None
    assert found.location.read(100) == b"sub/c.png"


def test_no_spelling_leads_out_of_the_folder_by_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "away").symlink_to(tmp_path)
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    listing = listed(folder, *({"image": path} for path in ("away\\secret.png", " out.png", "a.png")))
    assert taken(listing) == ["a.png"]
    assert [failure.reason for failure in listing.refused] == ["not_a_file", "not_a_file"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("c.png", "--image-root "),
        ("/a.png", "without the slash in front"),
        ("A.png", "small and capital letters differ"),
        ("SUB/C.PNG", "small and capital letters differ"),
        ("a.jpg", "the end of the name differs"),
        ("in/a.png", "--image-root "),
        ("photos/a.png", "without photos/"),
        ("sub%2fc.png", "without % codes"),
        ("$DATA/a.png", "no variable is replaced"),
        ("C:\\photos\\a.png", "a path of Windows"),
        ("https://x.org/a.png", "nothing is downloaded"),
        ("hf://datasets/a.png", "write hf://datasets/ORG/NAME"),
        ("file://server/a.png", "another machine"),
        ("data:image/png;base64,AAAA", "base64"),
        ("nothing.png", "relative to the folder of the list"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_it_looks_like(folder: Path, path: str, hint: str) -> None:
    listing = listed(folder, {"image": path}, {"image": "a.png"})
    assert listing.refused[0].reason == "missing"
    assert hint in bad(listing)["l.jsonl:1"]


def test_a_path_that_is_right_gets_no_hint(folder: Path) -> None:
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dead.png").symlink_to("absent.png")
    listing = listed(folder, *({"image": path} for path in ("loop.png", "dead.png", "a.png")))
    assert [failure.reason for failure in listing.refused] == ["missing", "missing"]
    assert not any("--image-root" in text or "letters" in text for text in bad(listing).values())


def test_the_same_path_has_always_the_same_spellings() -> None:
    assert spellings("a.png") == spellings("C:\\a.png") == spellings("\\\\server\\a.png") == []
    assert [other.path for other in spellings(" é\\b.png ")] == ["é/b.png", unicodedata.normalize("NFD", "é/b.png")]
    assert spellings("file:///a%00b") == []


def test_paths_may_be_relative_to_another_folder(folder: Path, tmp_path: Path) -> None:
    for root in (folder, Path(f"{folder}/"), folder / "sub" / ".."):
        assert taken(listed(tmp_path, {"image": "a.png"}, {"image": "sub\\c.png"}, image_root=root)) == [
            "a.png",
            "sub\\c.png",
        ]
    with pytest.raises(ConfigError, match=r"--image-root .*absent is no folder"):
        listed(tmp_path, {"image": "a.png"}, image_root=tmp_path / "absent")
    with pytest.raises(ConfigError, match="is no list, so no path in it is relative to --image-root"):
        list_inputs(folder, "rollout", image_root=folder)


def test_where_no_row_can_be_used_the_first_reasons_are_shown_and_nothing_is_made(folder: Path, tmp_path: Path) -> None:
    for number in range(9):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "vqa.json").write_text(json.dumps([{"image": f"{number}.png"} for number in range(9)]))
    before = sorted(tmp_path.rglob("*"))
    command = ["precompute", "vqa.json", "--kind", "posterior", "--size", "64x64", "--cache", "c", "--in-process"]
    done = theworld(*command, cwd=tmp_path)
    assert done.code == 2
    assert "none of the 9 inputs of vqa.json can be read" in done.err
    assert [f"vqa.json:{line}: " in done.err for line in (1, 2, 3, 4)] == [True, True, True, False]
    assert "--image-root in" in done.err
    assert sorted(tmp_path.rglob("*")) == before
    made = theworld(*command, "--image-root", "in", cwd=tmp_path)
    assert made.code == 0, made.err
    assert theworld(*command, "--media-root", "in", "--dry-run", cwd=tmp_path).code == 0
