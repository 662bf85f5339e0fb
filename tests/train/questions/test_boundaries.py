"""Exact limits, guards and orders of questions: each test fails if one comparison or guard is changed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import QuestionError
from theworld.train.questions.columns import Columns
from theworld.train.questions.coverage import _digest as cached_digest
from theworld.train.questions.readers import digest_of
from theworld.train.questions.record import Question, first_scenes, read_question_file, read_questions
from theworld.train.questions.report import QuestionReport, describe, kinds_of
from theworld.train.questions.values.answers import answer_of
from theworld.train.questions.values.choices import choices_of

BASE = {"image": "a.png", "question": "where?", "answer": "left"}


def choose(*names: str) -> dict[str, tuple[str, ...]]:
    return Columns.choose(Path("t.csv"), ("image", "question", "answer", *names), None).by_field


def questions(*rows: dict[str, Any]) -> list[Question]:
    return [Question.model_validate({**BASE, "id": str(number), **row}) for number, row in enumerate(rows)]


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_choices_come_from_letter_columns_only_if_these_exist_and_start_at_a_without_a_gap() -> None:
    assert "choices" not in choose()
    assert "choices" not in choose("A")
    assert "choices" not in choose("A", "C")
    assert choose("A", "B")["choices"] == ("A", "B")


def test_a_column_that_was_asked_for_fills_no_other_field() -> None:
    columns = Columns.choose(Path("t.csv"), ("image", "question", "answer", "type"), {"question": "type"})
    assert columns.by_field["question"] == ("type",)
    assert "type" not in columns.by_field


def test_exactly_as_many_scenes_as_there_are_may_be_asked_for() -> None:
    two = questions({"scene": "a"}, {"scene": "b"})
    assert list(first_scenes(two, 2)) == two
    with pytest.raises(QuestionError, match="have 2"):
        first_scenes(two, 3)


def test_a_changed_file_of_the_same_size_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    before = cached_digest(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(2, 2))
    assert cached_digest(file) != before


def test_exactly_max_bad_left_out_questions_are_no_reason_to_refuse() -> None:
    def report(max_bad: int) -> QuestionReport:
        return QuestionReport("q", "JSONL", 1, 1, {}, {}, 0, (), (), {}, bad=("line 2: wrong",), max_bad=max_bad)

    assert (report(1).refused, report(0).refused) == (False, True)


def test_ten_questions_in_the_same_words_are_a_habit_and_nine_are_not() -> None:
    def blind(same_words: int) -> float:
        habit = [{"question": "which?", "answer": "red"}] * same_words
        return kinds_of(questions(*habit, *[{"answer": "left"}] * 20))["untyped"].blind

    assert blind(10) == 1.0
    assert blind(9) == pytest.approx(20 / 29)


def test_an_image_without_a_split_that_is_also_tested_is_a_leak(tmp_path: Path) -> None:
    file = put(tmp_path / "q.json", [{**BASE, "id": 1}, {**BASE, "id": 2, "split": "test"}])
    assert describe(read_question_file(file)).leaks == {"test and train": 1}


def test_twenty_six_choices_have_letters_and_twenty_seven_have_not() -> None:
    assert list(choices_of(list(map(str, range(26)))))[-1] == "Z"
    with pytest.raises(ValueError, match="up to 26"):
        choices_of(list(map(str, range(27))))


def test_true_is_the_answer_yes_and_no_place() -> None:
    assert answer_of(True, {"A": "yes", "B": "no"}) == "yes"


def test_the_digest_of_several_files_does_not_depend_on_their_folders(tmp_path: Path) -> None:
    for folder, names in (("one", ("a/x.parquet", "b/y.parquet")), ("two", ("b/x.parquet", "a/y.parquet"))):
        for name, content in zip(names, (b"x", b"y"), strict=True):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "two")


def test_two_markers_of_an_image_in_one_conversation_are_two_images(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image><image> which?"}, {"from": "gpt", "value": "a"}]
    rows = [{"image": "a.png", "conversations": talk}]
    assert read_question_file(put(tmp_path / "x.json", rows)).skipped == {"shows several images": 1}


def test_what_a_row_says_of_its_split_goes_before_the_name_of_its_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.Table.from_pylist([{**BASE, "split": "test"}])
    pa.parquet.write_table(table, tmp_path / "val_train.parquet")
    pa.parquet.write_table(table.drop_columns(["split"]), tmp_path / "test_val.parquet")
    assert [question.split for question in read_questions(tmp_path / "val_train.parquet")] == ["test"]
    assert [question.split for question in read_questions(tmp_path / "test_val.parquet")] == ["validation"]
    mapped = pa.Table.from_pylist([{**BASE, "part": "test"}])
    pa.parquet.write_table(mapped, tmp_path / "train.parquet")
    [question] = read_questions(tmp_path / "train.parquet", columns={"split": "part"})
    assert question.split == "test"
