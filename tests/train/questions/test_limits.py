"""Hostile questions files, in each layout, end in words and in little time; good questions beside them stay."""

import copy
import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from theworld.pipeline.errors import QuestionError
from theworld.pipeline.files import limits
from theworld.pipeline.files.tables import text as text_tables
from theworld.train.questions.record import Question, read_question_file

GOOD = {"image": "a.png", "question": "where?", "answer": "left"}


def test_a_line_without_end_is_one_wrong_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tables, "MAX_SKIPPED_BYTES", 2**27)  # the true limit takes seconds
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
    assert "<image>" not in question.question


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


def test_the_turns_of_a_conversation_are_held_once(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?" * 500}, {"from": "gpt", "value": "!" * 500}] * limits.MAX_TURNS
    row = json.dumps({"image": "a.png", "conversations": turns})
    (tmp_path / "l.json").write_text(f"[{', '.join([row] * 20)}]")
    tracemalloc.start()
    try:
        questions = read_question_file(tmp_path / "l.json").questions
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(questions) == 20 * limits.MAX_TURNS
    assert questions[99].before == (("?" * 500, "!" * 500),) * 99
    size = (tmp_path / "l.json").stat().st_size
    assert held < 3 * size
    assert peak < 6 * size


def test_earlier_turns_are_as_a_tuple_of_pairs_is(tmp_path: Path) -> None:
    turns = [
        {"from": role, "value": text} for role, text in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
    ]
    (tmp_path / "l.json").write_text(json.dumps([{"id": "x", "image": "a.png", "conversations": turns}]))
    first, second = read_question_file(tmp_path / "l.json").questions
    written = Question(id="x.2", image="a.png", question="c", answer="d", before=(("a", "b"),))
    assert second == written
    assert hash(second) == hash(written)
    assert copy.deepcopy(second) == second
    assert second.model_dump(mode="json", exclude_defaults=True)["before"] == [["a", "b"]]
    assert "before" not in first.model_dump(mode="json", exclude_defaults=True)
    turns[3]["value"] = "\ud800"
    (tmp_path / "l.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    [bad] = read_question_file(tmp_path / "l.json").bad
    assert "not Unicode text" in bad.problem


@pytest.mark.parametrize("layout", ["q.jsonl", "q.json", "q.csv", "q.parquet"])
def test_questions_beyond_the_limit_are_refused_in_words(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [GOOD] * 4
    if layout == "q.parquet":
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(rows), tmp_path / layout
        )
    elif layout == "q.csv":
        (tmp_path / layout).write_text("image,question,answer\n" + "a.png,where?,left\n" * 4)
    else:
        text = json.dumps(rows) if layout == "q.json" else "\n".join(map(json.dumps, rows))
        (tmp_path / layout).write_text(text)
    assert len(read_question_file(tmp_path / layout).questions) == 4
    monkeypatch.setattr(limits, "MAX_QUESTIONS", 3)
    with pytest.raises(QuestionError, match=r"has more than 3 questions\. Split it into several files"):
        read_question_file(tmp_path / layout)


@pytest.mark.parametrize("name", ["sim_1_results_{}.png", "sim_{}_results.json", "t{}.parquet"])
def test_a_folder_of_too_many_files_is_refused_in_words(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_QUESTION_FILES", 3)
    if name.endswith(".png"):
        (tmp_path / "sim_1_results.json").write_text('{"finalBucket": 2}')
    for number in range(4):
        (tmp_path / name.format(number)).touch()
    with pytest.raises(QuestionError, match="holds more than 3 files"):
        read_question_file(tmp_path)


def test_links_to_tables_are_followed_and_special_files_are_not(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    blob, folder = tmp_path / "hub" / "blobs" / "0f", tmp_path / "hub" / "snapshots" / "c0"
    blob.parent.mkdir(parents=True)
    (folder / "data").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist([GOOD]), blob)
    (folder / "data" / "train-0.parquet").symlink_to("../../../blobs/0f")
    parquet.write_table(pa.Table.from_pylist([GOOD]), tmp_path / "mine.parquet")
    (folder / "mine.parquet").symlink_to(tmp_path / "mine.parquet")
    assert len(read_question_file(folder).questions) == 2
    for target in ("pipe.parquet", "/dev/zero"):
        if target == "pipe.parquet":
            os.mkfifo(folder / target)
        else:
            (folder / "zero.parquet").symlink_to(target)
        with pytest.raises(QuestionError, match=r"\.parquet is not a regular file"):
            read_question_file(folder)
        (folder / "pipe.parquet").unlink(missing_ok=True)


def test_a_pipe_is_no_questions_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(QuestionError, match="is not a regular file"):
        read_question_file(tmp_path / "q.jsonl")


def test_a_row_of_a_million_fields_choices_or_turns_is_refused_in_a_short_text_and_at_once(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "id": "fields", **{f"imag{number}": 1 for number in range(300_000)}},
        {**GOOD, "id": "name", "x" * 2_000_000: 1},
        {**GOOD, "id": "choices", "choices": [str(number) for number in range(300_000)]},
        {**GOOD, "id": "twice", "choices": ["left", "right", "left", "x" * 2_000_000]},
        {**GOOD, "id": "turns", "before": [["a", "b"]] * 300_000},
    ]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    started = time.process_time()
    found = read_question_file(file)
    assert time.process_time() - started < 10
    assert [question.id for question in found.questions] == ["name"]
    assert len(found.bad) == 4
    assert all(len(str(row)) < 1100 for row in found.bad)


def test_all_questions_together_may_have_so_many_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps({**GOOD, "id": f"{number}", "answer": "left" * 100}) for number in range(9)))
    monkeypatch.setattr(limits, "MAX_QUESTION_TEXTS", 1000)
    with pytest.raises(QuestionError, match="more than 1,000 letters together"):
        read_question_file(file)
