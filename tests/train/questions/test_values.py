"""A value means the same in every layout, and whatever is changed or left out is counted by its reason."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from theworld.pipeline.errors import QuestionError
from theworld.train.questions.record import QuestionFile, read_question_file
from theworld.train.questions.report import describe
from theworld.train.questions.values.answers import read_answer
from theworld.train.questions.values.choices import Choices, choices_of
from theworld.train.questions.values.text import is_absent, text_of

ROW: dict[str, Any] = {"id": "q", "image": "a.png", "question": "where?", "answer": "left"}
NAN = float("nan")


def as_jsonl(place: Path, row: dict[str, Any]) -> Path:
    (place / "q.jsonl").write_text(json.dumps(row) + "\n")
    return place / "q.jsonl"


def as_json(place: Path, row: dict[str, Any]) -> Path:
    (place / "q.json").write_text(json.dumps([row]))
    return place / "q.json"


def as_llava(place: Path, row: dict[str, Any]) -> Path:
    talk = [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": str(row["answer"])}]
    return as_json(place, {**row, "conversations": talk})


def as_messages(place: Path, row: dict[str, Any]) -> Path:
    parts = [{"type": "image"}, {"type": "text", "text": row["question"]}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": str(row["answer"])}]
    return as_json(
        place, {**{name: row[name] for name in row if name != "image"}, "messages": talk, "images": [row["image"]]}
    )


def as_parquet(place: Path, row: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), place / "q.parquet")
    return place / "q.parquet"


def as_csv(place: Path, row: dict[str, Any]) -> Path:
    """As pandas writes it: an empty cell for what is absent, Python's words for a list."""
    cells = ["" if is_absent(value) else str(value) for value in row.values()]
    lines = [",".join(row), ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)]
    (place / "q.csv").write_text("\n".join(lines) + "\n")
    return place / "q.csv"


TYPED = [as_jsonl, as_json, as_parquet]
TALKS = [as_llava, as_messages]
LAYOUTS = [*TYPED, as_csv, *TALKS]
TWO = ["left", "right"]

FORMS: list[tuple[str, dict[str, Any], str, tuple[str, ...] | None]] = [
    ("letter", {"options": TWO, "answer": "B"}, "right", ("left", "right")),
    ("small letter", {"options": TWO, "answer": "b"}, "right", ("left", "right")),
    ("letter in brackets", {"options": TWO, "answer": "(B)"}, "right", ("left", "right")),
    ("letter and dot", {"options": TWO, "answer": "b."}, "right", ("left", "right")),
    ("letter and text", {"options": TWO, "answer": "B. right"}, "right", ("left", "right")),
    ("text", {"options": TWO, "answer": " right "}, "right", ("left", "right")),
    ("another case", {"options": TWO, "answer": "Right"}, "right", ("left", "right")),
    ("place as a number", {"options": TWO, "answer": 1}, "right", ("left", "right")),
    ("place as a float", {"options": TWO, "answer": 1.0}, "right", ("left", "right")),
    ("place as text", {"options": TWO, "answer": "1"}, "right", ("left", "right")),
    ("place as text of a float", {"options": TWO, "answer": "1.0"}, "right", ("left", "right")),
    ("choice that is a number", {"options": ["3", "4"], "answer": "3"}, "3", ("3", "4")),
    ("Python's list", {"options": "['left', \"right\"]", "answer": "B"}, "right", ("left", "right")),
    ("numpy's list", {"options": "['left' 'right']", "answer": "B"}, "right", ("left", "right")),
    ("numpy's array", {"options": "array(['left', 'right'], dtype=object)", "answer": "B"}, "right", ("left", "right")),
    ("JSON", {"options": '["left", "right"]', "answer": "B"}, "right", ("left", "right")),
    ("JSON by letter", {"options": '{"a": "left", "b": "right"}', "answer": "B"}, "right", ("left", "right")),
    ("bars", {"options": "left|right", "answer": "B"}, "right", ("left", "right")),
    ("lines with letters", {"options": "A. left\nB. right", "answer": "B"}, "right", ("left", "right")),
    ("VSI's", {"options": ["A. left", "B. right"], "answer": "B"}, "right", ("left", "right")),
    ("an empty option", {"A": "left", "B": "", "C": "right", "answer": "C"}, "right", ("left", "right")),
    ("columns in other words", {"option_a": "left", "option_b": "right", "answer": "b"}, "right", ("left", "right")),
    ("no options at all", {"A": "", "B": "", "answer": "left"}, "left", None),
    ("empty fields", {"type": "", "split": "", "prompt": None, "scene": "", "answer": "left"}, "left", None),
    ("headers", {"Image": "a.png", " QUESTION ": "where?", "Correct Answer": "b", "Options ": "left|right"}, "right",
     ("left", "right")),
    ("markers", {"question": "<image>\nwhere?", "answer": "left"}, "left", None),
    ("None is a word", {"options": "left|None", "answer": "None"}, "None", ("left", "None")),
]  # fmt: skip


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize(("fields", "answer", "choices"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_a_value_means_the_same_in_every_layout(
    write: Callable[[Path, dict[str, Any]], Path],
    fields: dict[str, Any],
    answer: str,
    choices: tuple[str, ...] | None,
    tmp_path: Path,
) -> None:
    if write in TALKS and ("Image" in fields or not isinstance(fields["answer"], str)):
        pytest.skip("a turn is a text, and its fields have the layout's names")
    row = {"id": "q"} | fields if "Image" in fields else ROW | fields
    found = read_question_file(write(tmp_path, row))
    assert (found.bad, found.skipped) == ((), {})
    [question] = found.questions
    assert (question.id, question.image, question.question) == ("q", "a.png", "where?")
    assert (question.answer, question.choices, question.type, question.split) == (answer, choices, None, None)


ABSENT = [None, NAN, "", "  ", "nan", "NaN", "<NA>", []]


def test_an_answer_names_the_choice_that_looks_the_same(tmp_path: Path) -> None:
    choices = ["caf\u00e9 noir", "tea"]
    for answer in (
        "cafe\u0301 noir",
        "caf\u00e9\u00a0noir",
        "caf\u00e9  noir",
        "caf\u00e9 noir\u200b",
        "Cafe\u0301 noir",
    ):
        file = read_question_file(as_jsonl(tmp_path, {**ROW, "choices": choices, "answer": answer}))
        assert [question.answer for question in file.questions] == ["caf\u00e9 noir"], answer
        assert file.notes == {"answers with other blanks than their choice, or in another form of Unicode": 1}
    file = read_question_file(
        as_jsonl(tmp_path, {**ROW, "choices": ["caf\u00e9", "cafe\u0301"], "answer": "caf\u00e9"})
    )
    assert "names one choice twice" in str(file.bad[0])
    file = read_question_file(as_jsonl(tmp_path, {**ROW, "choices": ["a b", "a  b"], "answer": "a\u00a0b"}))
    assert "is none of the choices" in str(file.bad[0]), "which of the two is meant?"


def test_an_answer_that_is_one_choice_and_the_letter_of_another_is_counted(tmp_path: Path) -> None:
    file = read_question_file(as_jsonl(tmp_path, {**ROW, "choices": ["B", "A", "C"], "answer": "A"}))
    assert [question.answer for question in file.questions] == ["A"]
    assert file.notes == {"answers that are one choice and the letter or place of another, taken as the choice": 1}


@pytest.mark.parametrize("value", ABSENT, ids=map(repr, ABSENT))
@pytest.mark.parametrize("write", [as_jsonl, as_json, as_csv])
def test_what_is_absent_is_absent_in_every_layout(
    write: Callable[[Path, dict[str, Any]], Path], value: Any, tmp_path: Path
) -> None:
    [bad] = read_question_file(write(tmp_path, {**ROW, "answer": value})).bad
    assert "answer is missing" in bad.problem or "answer is empty" in bad.problem
    [bad] = read_question_file(write(tmp_path, {**ROW, "question": value})).bad
    assert "question is missing" in bad.problem
    found = read_question_file(write(tmp_path, {**ROW, "image": value}))
    assert (found.bad, found.skipped) == ((), {"has no image": 1})
    [question] = read_question_file(write(tmp_path, {**ROW, "choices": value, "type": value})).questions
    assert (question.choices, question.type) == (None, None)
    [question] = read_question_file(write(tmp_path, {**ROW, "A": "left", "B": value, "C": "up"})).questions
    assert question.choices == ("left", "up")


def test_numbers_are_their_text_everywhere(tmp_path: Path) -> None:
    for value, text in ((3, "3"), (3.0, "3"), (0.5, "0.5"), (True, "yes"), (-2, "-2")):
        for write in TYPED:
            row = {"id": value, "image": "a.png", "question": "how many?", "answer": value, "type": value}
            [question] = read_question_file(write(tmp_path, row)).questions
            assert (question.id, question.answer, question.type) == (text, text, text)


def test_a_choice_without_a_text_keeps_its_letter_and_its_place() -> None:
    for empty in (None, NAN, ""):
        choices = Choices(choices_of(["left", empty, "right"]))
        assert choices.offered == ("left", "right")
        assert [read_answer(asked, choices)[0] for asked in ("C", "c", 2, 2.0, "2")] == ["right"] * 5
        for wrong in ("B", 1, "1"):
            with pytest.raises(ValueError, match="names a choice that is empty"):
                read_answer(wrong, choices)


def test_a_number_among_numbers_is_no_place_and_what_may_mean_two_things_is_refused(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "how many?"}
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"choices": [1, 2, 3], "answer": 1}, "1"),
        ({"choices": [1.0, 2.0, 3.0], "answer": 2.0}, "2"),
        ({"choices": ["1", "2", "3"], "answer": 1}, None),
        ({"choices": ["1", "2", "3"], "answer": "1.0"}, None),
        ({"choices": ["1.0", "2.0"], "answer": "1.0"}, "1.0"),
        ({"choices": ["3", "4"], "answer": "4.0"}, "4"),
        ({"choices": {"1": "left", "2": "right"}, "answer": 1}, "left"),
        ({"choices": {"1": "2", "2": "1"}, "answer": "1"}, None),
        ({"choices": {"text": ["left", "right"], "label": ["1", "2"]}, "answer": "2"}, "right"),
        ({"choices": ["True", "False"], "answer": False}, "False"),
        ({"choices": TWO, "answer": 2}, None),
        ({"choices": TWO, "answer": -1}, None),
        ({"choices": TWO, "answer": ["right"]}, "right"),
        ({"choices": TWO, "answer": '["right"]'}, "right"),
        ({"choices": TWO, "answer": TWO}, None),
    ]
    for fields, answer in cases:
        found = read_question_file(as_json(tmp_path, row | fields))
        assert [question.answer for question in found.questions] == ([] if answer is None else [answer]), fields


@pytest.mark.parametrize("text", ["left, right", "[left, right]", "['left''right']", "['left' ... 'right']", "['left"])
def test_a_list_whose_items_are_not_clear_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="are no list, and no text of one"):
        choices_of(text)


def test_whatever_is_changed_or_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "<image> where?"},
        {"question": "in <image 1> and <image 1>, where?"},
        {"question": "<image 1> or <image 2>?"},
        {"image": ""},
        {"image": ["a.png", "b.png"]},
        {"A": "left", "B": None, "C": "right"},
        {"choices": TWO, "answer": "1"},
        {"choices": TWO, "answer": "LEFT"},
        {"choices": ["<image 1>", "<image 2>"], "answer": "A"},
        {"image": "a.png", "video": "a.mp4"},
        {"answer": "<image>"},
        {"answer": None},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps({**ROW, "id": n} | row) for n, row in enumerate(rows)))
    found = read_question_file(tmp_path / "q.jsonl")
    assert [question.id for question in found.questions] == ["0", "1", "5", "6", "7", "9"]
    assert found.skipped == {"shows several images": 2, "has no image": 1, "offers images as choices": 1}
    assert len(found.bad) == 2
    assert found.notes == {
        "questions with a marker of the image in their text, which is taken out": 2,
        "questions with an empty choice, which is left out": 1,
        "answers given by place, from 0": 1,
        "answers written in another case than their choice": 1,
        "rows with a video beside the image, which is not read": 1,
    }
    lines = describe(found).lines()
    for line in (
        "passed over, it shows several images: 2",
        "questions with an empty choice, which is left out: 1",
    ):
        assert line in lines


def test_fields_of_other_tools_are_left_alone_and_a_misspelt_one_of_ours_is_named(tmp_path: Path) -> None:
    others = {
        "_id": 1,
        "time": 3,
        "scene_id": 4,
        "features": [1],
        "types": ["x"],
        "image_id": 5,
        "pairs": 2,
        "spans": [],
    }
    assert len(read_question_file(as_jsonl(tmp_path, ROW | others)).questions) == 1
    [question] = read_question_file(
        as_jsonl(tmp_path, ROW | {"category": ["a", "b"], "history": ["hello"], "system": {"os": "linux"}})
    ).questions
    assert (question.type, question.before, question.question) == (None, (), "where?")
    [question] = read_question_file(
        as_jsonl(tmp_path, ROW | {"category": "a", "history": [["what?", "a ball"]]})
    ).questions
    assert (question.type, question.before) == ("a", (("what?", "a ball"),))
    for wrong, right in (
        ("anwser", "answer"),
        ("qestion", "question"),
        ("imge", "image"),
        ("choises", "choices"),
        ("choice", "choices"),
        ("spilt", "split"),
        ("tpye", "type"),
    ):
        row = {name: value for name, value in ROW.items() if name != right} | {wrong: "x"}
        [bad] = read_question_file(as_jsonl(tmp_path, row)).bad
        assert f"{wrong}: unknown field; did you mean {right!r}?" in bad.problem


def test_images_in_numbered_columns_are_one_image_or_several(tmp_path: Path) -> None:
    row = {"id": "1", "question": "<image 1> what?", "answer": "A", "options": "['x', 'y']", "image_1": "a.png"}
    assert read_question_file(as_json(tmp_path, {**row, "image_2": None})).questions[0].image == "a.png"
    assert read_question_file(as_json(tmp_path, {**row, "image_2": "b.png"})).skipped == {"shows several images": 1}


def test_earlier_turns_and_digests_survive_a_table(tmp_path: Path) -> None:
    row = {**ROW, "before": [["<image> what?", "a ball"]], "image_sha256": "AB" * 32}
    for write in (as_jsonl, as_json, as_parquet):
        [question] = read_question_file(write(tmp_path, row)).questions
        assert question.before == (("what?", "a ball"),)
        assert question.image_sha256 == "ab" * 32


_cells = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.floats()
    | st.sampled_from(
        ["", "nan", "a.png", "left", "B", "(b)", "1", "1.0", "<image>", "<image 2> x", "['left', 'right']"]
    )
    | st.lists(st.sampled_from(["a.png", "left", "right", None, 1, ""]), max_size=3)
)
_names = ["id", "image", "images", "video", "Question", "answer", "choices", "options", "A", "B", "type", "split", "x"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(_names), _cells, max_size=9), min_size=1, max_size=5))
def test_every_row_is_a_question_or_counted_by_its_reason(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    def read(name: str, text: str) -> QuestionFile | None:
        (tmp_path / name).write_text(text)
        try:
            return read_question_file(tmp_path / name)
        except QuestionError:
            return None  # no column at all fills a field

    for name, text in (("x.json", json.dumps(rows)), ("x.jsonl", "\n".join(map(json.dumps, rows)))):
        found = read(name, text)
        if found is not None:
            assert len(found.questions) + len(found.bad) + sum(found.skipped.values()) == len(rows)
            assert all(bad.where and bad.problem for bad in found.bad)
            for question in found.questions:
                texts = (question.question, question.answer, *(question.choices or ()))
                assert not any("<image" in text or is_absent(text) for text in texts)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text().filter(lambda t: not is_absent(t)))
def test_a_text_of_a_value_is_its_own_text(value: Any) -> None:
    text = text_of(value)
    assert text_of(text) == text
    if isinstance(value, float) and math.isfinite(value):
        assert float(text) == value
