"""Questions as other tools write them are read, or refused with what to do; nothing is lost in silence."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import QuestionError
from theworld.train.questions.readers import digest_of
from theworld.train.questions.record import QuestionFile, read_question_file

ROW = {"id": "1", "image": "a.png", "question": "where?", "answer": "left"}
CSV = "id,image,question,answer\n1,a.png,où?,left\n"
PEOPLE = [{"answer": "left"}, {"answer": "right"}, {"answer": "left", "answer_confidence": "no"}]
HUMAN = "Picture 1: <img>coco/a.png</img>\nwhere?"


def read(folder: Path, name: str, content: str | bytes) -> QuestionFile:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_question_file(file)


def only(file: QuestionFile) -> tuple[str, str, str]:
    assert not file.bad
    [question] = file.questions
    return question.image, question.question, question.answer


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", CSV.replace(",", ";")),
        ("tabs.csv", CSV.replace(",", "\t")),
        ("excel.csv", "sep=;\r\n" + CSV.replace(",", ";")),
        ("unicode_text.csv", CSV.replace(",", "\t").encode("utf-16")),
        ("unicode_text.tsv", CSV.replace(",", "\t").encode("utf-16")),
        ("packed.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
    ],
)
def test_a_csv_is_read_however_excel_wrote_it(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert only(read(tmp_path, name, content)) == ("a.png", "où?", "left")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl.gz", gzip.compress(json.dumps(ROW).encode(), mtime=0)),
        ("x.jsonl.bz2", bz2.compress(json.dumps(ROW).encode())),
        ("x.jsonl", (json.dumps(ROW) + "\n").encode("utf-16")),
        ("x.json", json.dumps([ROW]).encode("utf-16")),
        ("list.json", json.dumps({"version": 1, "data": [ROW]})),
        ("ids.json", json.dumps({"17": {**ROW, "id": None}})),
        ("one.json", json.dumps(ROW)),
        ("split.json", json.dumps({"columns": [*ROW], "index": [0], "data": [[*ROW.values()]]})),
        ("columns.json", json.dumps({name: {"0": value} for name, value in ROW.items()})),
        ("imagefolder.jsonl", json.dumps({"file_name": "a.png", "text": "where?", "label": "left"})),
        ("vqav2.json", json.dumps([{**ROW, "answer": None, "answers": PEOPLE, "multiple_choice_answer": "left"}])),
    ],
)
def test_json_is_read_in_any_of_its_usual_shapes(tmp_path: Path, name: str, content: str | bytes) -> None:
    if name == "vqav2.json":
        content = json.dumps([{key: value for key, value in json.loads(content)[0].items() if key != "answer"}])
    assert only(read(tmp_path, name, content)) == ("a.png", "where?", "left")


def test_json_lines_of_another_name_are_lines(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({**ROW, "id": str(number)}) for number in range(3))
    assert len(read(tmp_path, "pope.json", lines).questions) == 3


@pytest.mark.parametrize(
    ("row", "answer", "note"),
    [
        ({"answers": PEOPLE}, "left", "the most frequent of several"),
        ({"answers": ["left", "right", "left"]}, "left", "the most frequent of several"),
        ({"direct_answers": "['right', 'left', 'left']"}, "left", "the most frequent of several"),
        ({"choices": ["left", "right"], "correct_choice_idx": 1}, "right", "by place"),
        ({"choices": [{"label": "A", "text": "left"}, {"label": "B", "text": "right"}], "answerKey": "B"}, "right", ""),
        ({"options": [{"id": "a", "value": "left"}, {"id": "b", "value": "right"}], "answer": "b"}, "right", ""),
        ({"choices": ["left", "NA"], "answer": "left"}, "left", "written NA, N/A, null or None"),
        ({"A": "left", "B": "right", "C": "#N/A", "answer": "B"}, "right", "an empty choice"),
        ({"answer": "left", "hint": "it rolls"}, "left", "a hint beside the question, which is not read"),
    ],
)
def test_answers_and_choices_are_read_as_benchmarks_give_them(
    tmp_path: Path, row: dict[str, Any], answer: str, note: str
) -> None:
    whole = {name: value for name, value in ROW.items() if name != "answer"} | row
    file = read(tmp_path, "q.jsonl", json.dumps(whole))
    assert only(file)[2] == answer
    assert [note in said for said in file.notes] == [True] * bool(note)


def test_an_image_that_only_the_text_names_is_the_image(tmp_path: Path) -> None:
    def asked(*turns: str, **fields: str) -> str:
        talk = [{"from": ("user", "assistant")[n % 2], "value": text} for n, text in enumerate(turns)]
        return json.dumps([{"id": "1", "conversations": talk, **fields}])

    assert only(read(tmp_path, "qwen.json", asked(HUMAN, "left"))) == ("coco/a.png", "where?", "left")
    assert only(read(tmp_path, "both.json", asked(HUMAN, "left", image="b.png")))[0] == "b.png"
    two = read(tmp_path, "two.json", asked(f"{HUMAN} <img>b.png</img>", "left"))
    assert two.skipped == {"shows several images": 1}


def test_a_folder_of_images_with_its_table_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "question": "where?", "answer": "left"}) + "\n"
    )
    assert only(read_question_file(tmp_path)) == ("a.png", "where?", "left")
    assert digest_of(tmp_path) == digest_of(tmp_path / "metadata.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", "unpack it, or compress it with gzip"),
        ("x.xlsx", b"PK", "save the sheet as CSV"),
        ("x.json", b'{"a": [{"q": 1}], "b": [{"q": 1}]}', "several lists: a, b"),
        ("y.json", b'{"info": 3}', "no rows, but info"),
        ("z.json", b'{"info": ', "neither JSON nor JSON lines"),
        ("w.csv", b"\xff\xfei", "begins as UTF-16 text"),
    ],
)
def test_what_is_not_read_is_refused_with_what_to_do(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(QuestionError, match=words):
        read(tmp_path, name, content)


def test_an_empty_row_of_a_sheet_is_no_wrong_question(tmp_path: Path) -> None:
    file = read(tmp_path, "q.csv", CSV + ",,,\n")
    assert len(file.questions) == 1
    assert (file.bad, file.skipped) == ((), {"has no image": 1})
