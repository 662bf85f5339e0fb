"""An image is found in the folder that was named, and under the names that other machines write; never by a guess."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError, QuestionError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.store.folder import LatentStore
from theworld.train.questions.images import SourceNames, find_file, parts_of, require_folder
from theworld.train.questions.inspect import inspect_questions, write_questions
from theworld.train.questions.record import Coverage, Question, read_questions, resolve_keys

from ...miniatures.lm import save_mini_lm, save_mini_store

NFC, NFD = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return save_mini_store(tmp_path / "cache")[0]


def find(place: Path, store: LatentStore, *names: str, images: Path | None = None) -> Coverage:
    asked = [Question(id=name, image=name, question="?", answer="left") for name in names]
    return resolve_keys(asked, place / "q.jsonl", store, images=images)


def put(place: Path, number: int) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(f"picture {number}".encode())
    return place


def keys(*numbers: int) -> list[str]:
    return [key_of_bytes(f"picture {number}".encode()) for number in numbers]


def test_each_spelling_of_a_name_finds_the_file_and_is_counted(tmp_path: Path, store: LatentStore) -> None:
    put(tmp_path / "sub" / "a.png", 1)
    put(tmp_path / NFC, 2)
    names = ("sub\\a.png", NFD, f"file://{tmp_path}/sub/a%2epng", "./sub/a.png", " sub/a.png")
    found = find(tmp_path, store, *names)
    assert list(found.keys.values()) == keys(1, 2, 1, 1, 1)
    assert found.notes[0].startswith("images found by another spelling of their names: 4, such as sub\\a.png as ")


def test_each_spelling_of_a_name_finds_what_precompute_recorded(tmp_path: Path, store: LatentStore) -> None:
    store.record_sources([(NFD, keys(1)[0]), ("sub\\b.png", keys(2)[0])])
    found = find(tmp_path, store, NFC, "sub/b.png", "file:///4.png")
    assert list(found.keys.values()) == keys(1, 2, 4)


def test_the_folder_named_is_looked_into_first_and_that_of_the_questions_next(
    tmp_path: Path, store: LatentStore
) -> None:
    photos = tmp_path / "photos"
    put(photos / "coco" / "x.png", 1)
    put(tmp_path / "coco" / "x.png", 2)
    put(tmp_path / "coco" / "y.png", 3)
    found = find(tmp_path, store, "coco/x.png", "coco/y.png", images=photos)
    assert list(found.keys.values()) == keys(1, 3)


def test_folders_in_front_of_a_name_may_be_too_many_or_missing(tmp_path: Path, store: LatentStore) -> None:
    photos = tmp_path / "photos"
    put(photos / "x.png", 1)
    store.record_sources([("train2017/z.png", keys(2)[0])])
    names = ("data/coco/x.png", "z.png", "images/4.png", "C:\\data\\5.png")
    found = find(tmp_path, store, *names, images=photos)
    assert list(found.keys.values()) == keys(1, 2, 4, 5)
    assert found.notes[0] == (
        f"images found by the ends of their names: 4, such as data/coco/x.png as {photos / 'x.png'}"
    )


def test_an_end_that_two_images_share_is_not_guessed(tmp_path: Path, store: LatentStore) -> None:
    store.record_sources([("a/same.png", keys(1)[0]), ("b/same.png", keys(2)[0]), ("copy/one.png", keys(3)[0])])
    store.record_sources([("other/one.png", keys(3)[0])])
    found = find(tmp_path, store, "same.png", "one.png", "x/4.png", "y/4.png", "a/same.png")
    assert found.keys == {"one.png": keys(3)[0], "a/same.png": keys(1)[0]}
    reasons = {item.question.id: item.reason for item in found.missing}
    assert reasons["same.png"].startswith("same.png has the end of the names of 2 different images in the store")
    assert reasons["x/4.png"] == "x/4.png was found as 4.png, and so was y/4.png: which of them is it?"
    put(tmp_path / "photos" / "8.png", 8)
    missing = find(tmp_path, store, "u/8.png", "v/8.png", images=tmp_path / "photos").missing
    assert len(missing) == 2


def test_an_id_finds_the_image_of_this_name_or_number(tmp_path: Path, store: LatentStore) -> None:
    """As questions of GQA, Visual Genome and VQAv2 name their images."""
    numbers = [("2354786.jpg", 1), ("val2014/COCO_val2014_000000000042.jpg", 2), ("000000000139.jpg", 3)]
    store.record_sources([(name, keys(number)[0]) for name, number in numbers])
    put(tmp_path / "photos" / "n161313.jpg", 5)
    (tmp_path / "photos" / "n161313.json").write_text("{}")  # not an image
    found = find(tmp_path, store, "2354786", "42", "139", "n161313", "4", images=tmp_path / "photos")
    assert list(found.keys.values()) == keys(1, 2, 3, 5, 4)
    assert found.notes[0] == "images found by their ids or numbers: 5, such as 2354786 as 2354786.jpg"
    store.record_sources([("COCO_train2014_000000000042.jpg", keys(6)[0])])
    found = find(tmp_path, store, "42", "000000000042", "COCO_train2014_000000000042", "354786", "14")
    assert found.keys == {"COCO_train2014_000000000042": keys(6)[0]}
    assert found.missing[0].reason == (
        "42 is the id or the number of 2 different images in the store; put the one meant beside the file"
    )


def test_the_file_of_an_id_is_looked_for_by_its_names_and_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "photos", tmp_path
    put(first / "1.JPG", 1)
    put(first / "2.jpg", 2)
    put(first / "2.png", 3)
    put(second / "2.jpg", 4)
    put(second / "3.webp", 5)

    def no_list(*_: object) -> None:
        raise AssertionError("a folder of 100,000 images would be listed for each of as many questions")

    monkeypatch.setattr("os.scandir", no_list)
    monkeypatch.setattr("os.listdir", no_list)
    found = [find_file(name, [first, second]) for name in ("1", "2", "3", "4")]
    assert [file and file.path for file in found] == [first / "1.JPG", None, second / "3.webp", None]


def test_a_number_names_an_image_also_where_it_is_a_number_of_json(tmp_path: Path) -> None:
    row = {"question_id": 42001, "image_id": 42, "question": "where?", "multiple_choice_answer": "left"}
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": [row]}))
    (tmp_path / "gqa.json").write_text(json.dumps({"7": {"imageId": "2354786", "question": "?", "answer": "no"}}))
    [vqa], [gqa] = (read_questions(tmp_path / name) for name in ("annotations.json", "gqa.json"))
    assert (vqa.id, vqa.image, gqa.id, gqa.image) == ("42001", "42", "7", "2354786")


def test_an_image_that_the_store_has_under_another_name_says_so(tmp_path: Path, store: LatentStore) -> None:
    put(tmp_path / "renamed.png", 4)
    put(tmp_path / "5.png", 6)
    (tmp_path / "7.png").write_bytes(b"edited")
    found = find(tmp_path, store, "renamed.png", "7.png")
    assert found.keys == {"renamed.png": keys(4)[0]}
    assert found.notes == (
        "images that the store has under another name, found by their content: 1, such as renamed.png, there 4.png",
    )
    assert found.missing[0].reason.endswith("; the store has another image by this name")


def test_a_refusal_says_where_was_looked_and_names_the_flag(tmp_path: Path, store: LatentStore) -> None:
    with pytest.raises(QuestionError, match=r"gone\.png is neither a file in .*photos or beside.*--images FOLDER"):
        find(tmp_path, store, "gone.png", images=tmp_path / "photos").require_complete()
    with pytest.raises(ConfigError, match=r"--images .*photos does not exist"):
        require_folder(tmp_path / "photos")


def test_the_questions_command_and_its_copy_find_images_in_the_folder(tmp_path: Path, store: LatentStore) -> None:
    put(tmp_path / "photos" / "coco" / "x.png", 1)
    lists = tmp_path / "lists"
    lists.mkdir()
    asked = Question(id="1", image="coco\\x.png", question="where is the ball now?", answer="left")
    (lists / "q.jsonl").write_text(asked.model_dump_json())
    save_mini_lm(tmp_path / "lm")
    given = {"lm": str(tmp_path / "lm"), "patch": 2, "images": tmp_path / "photos"}
    report = inspect_questions(lists / "q.jsonl", store.path, given)
    assert (report.with_latents, report.without_latents) == (1, {})
    assert any(line.startswith("images found by another spelling of their names: 1") for line in report.lines())
    written = write_questions(lists / "q.jsonl", tmp_path / "out", given)
    [copied] = read_questions(written.path)
    assert (tmp_path / "out" / copied.image).read_bytes() == b"picture 1"


@given(st.lists(st.sampled_from(["a", "b", "x.png", "é", "."]), min_size=1, max_size=4))
def test_a_name_and_its_spellings_have_the_same_parts(parts: Sequence[str]) -> None:
    name = "/".join(parts)
    for spelling in (name.replace("/", "\\"), unicodedata.normalize("NFD", name), f"./{name}", f" {name}"):
        assert parts_of(spelling) == parts_of(name)
    sources = SourceNames({name: ("key",)})
    assert sources.named(name.replace("/", "\\")) == (name,) or not parts_of(name)


def test_no_name_leads_out_of_the_folder_by_its_end(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", 1)
    (tmp_path / "photos").mkdir()
    assert find_file("x/../secret.png", [tmp_path / "photos"]) is None
