"""Hostile questions files, in each layout, end in words and in little time; good questions beside them stay."""

import json
import os
import time
from pathlib import Path

import pytest

from theworld.pipeline.errors import QuestionError
from theworld.pipeline.files import limits
from theworld.train.questions.record import read_question_file

GOOD = {"image": "a.png", "question": "where?", "answer": "left"}


def test_a_line_without_end_is_one_wrong_row(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD) + "\n")
    os.truncate(tmp_path / "q.jsonl", 40 * 2**30)
    found = read_question_file(tmp_path / "q.jsonl")
    assert len(found.questions) == 1
    [bad] = found.bad
    assert "line 2 is longer than 1,073,741,824 bytes, so the file is no list of lines" in bad.problem


def test_a_long_line_and_a_deep_one_are_wrong_rows(tmp_path: Path) -> None:
    rows = ["x" * (limits.MAX_ROW_BYTES + 5), "[" * 200_000, "1" * 5000, json.dumps(GOOD)]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    found = read_question_file(tmp_path / "q.jsonl")
    assert [question.id for question in found.questions] == ["4"]
    assert [bad.where for bad in found.bad] == ["line 1", "line 2", "line 3"]
    assert "longer than 16,777,216 characters" in found.bad[0].problem
    assert "nested too deeply" in found.bad[1].problem


def test_old_line_ends_and_the_first_wrong_byte_are_found_as_ever(tmp_path: Path) -> None:
    lines = [json.dumps({**GOOD, "id": name}) for name in "abc"]
    (tmp_path / "q.jsonl").write_bytes(f"\ufeff{lines[0]}\r{lines[1]}\r\n{lines[2]}".encode())
    assert [question.id for question in read_question_file(tmp_path / "q.jsonl").questions] == ["a", "b", "c"]
    (tmp_path / "q.jsonl").write_bytes(b" " * 2**20 + "é".encode() + b"\xff\n")
    with pytest.raises(QuestionError, match=rf"not UTF-8 text \(byte {2**20 + 2}\)"):
        read_question_file(tmp_path / "q.jsonl")


@pytest.mark.parametrize("layout", ["q.jsonl", "llava.json", "table.json", "table.csv"])
def test_a_question_of_blanks_takes_no_time(tmp_path: Path, layout: str) -> None:
    text = "where" + " " * 400_000 + "?<image>" + "\t" * 400_000 + "!"
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "left"}]
    rows: dict[str, str] = {
        "q.jsonl": json.dumps({**GOOD, "question": text}),
        "llava.json": json.dumps([{"id": 1, "image": "a.png", "conversations": turns}]),
        "table.json": json.dumps([{**GOOD, "question": text}]),
        "table.csv": f'image,answer,question\na.png,left,"{text}"\n',
    }
    (tmp_path / layout).write_text(rows[layout])
    start = time.process_time()
    [question] = read_question_file(tmp_path / layout).questions
    assert time.process_time() - start < 5
    assert question.question.startswith("where")
    assert "<image>" not in question.question or layout == "q.jsonl"


def test_a_conversation_of_many_turns_is_a_wrong_row(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    rows = [{"image": "a.png", "conversations": turns * count} for count in (limits.MAX_TURNS, limits.MAX_TURNS + 2)]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    found = read_question_file(tmp_path / "l.json")
    assert len(found.questions) == limits.MAX_TURNS
    assert "204 turns; the limit is 100 answers" in found.bad[0].problem


def test_a_folder_of_simulations_with_bad_results(tmp_path: Path) -> None:
    (tmp_path / "sim_1_results.json").write_text('{"finalBucket": 2}')
    (tmp_path / "sim_2_results.json").write_text("[" * 200_000)
    (tmp_path / "sim_3_results.json").touch()
    os.truncate(tmp_path / "sim_3_results.json", 40 * 2**30)
    (tmp_path / "sim_4_results.json").write_text('{"finalBucket": Infinity}')
    for name in ("sim_1_initial.png", "sim_10_initial.png"):
        (tmp_path / name).touch()
    found = read_question_file(tmp_path)
    assert [(question.id, question.image) for question in found.questions] == [("sim_1", "sim_1_initial.png")]
    assert len(found.bad) == 3


def test_a_pipe_is_no_questions_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(QuestionError, match="is not a regular file"):
        read_question_file(tmp_path / "q.jsonl")
