"""Questions of every layout become the same record; what is wrong with a row is said with the row."""

import base64
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from theworld.pipeline.errors import QuestionError
from theworld.pipeline.files.hashing import digest_of_bytes
from theworld.pipeline.files.tables import arrow as arrow_files
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.train.questions.inspect import write_questions
from theworld.train.questions.readers import digest_of, place_of
from theworld.train.questions.record import Question, read_question_file, read_questions, resolve_keys
from theworld.train.questions.report import describe

from ...miniatures.lm import save_mini_store

PAGE = (Path(__file__).parents[3] / "docs" / "questions.md").read_text()
TURNS = [
    {"from": "human", "value": "<image>\nwhat is this?"},
    {"from": "gpt", "value": "a ball"},
    {"from": "human", "value": "where will it land?"},
    {"from": "gpt", "value": "left"},
]


def put(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).to_parquet(path)
    return path


def picture(number: int) -> bytes:
    """What the miniature store holds latents of."""
    return f"picture {number}".encode()


def test_every_layout_on_the_page_is_read(tmp_path: Path) -> None:
    snippets = re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in snippets] == ["own.jsonl", "llava.json", "table.csv"]
    read = {name: read_questions(put(tmp_path / name, content)) for name, content in snippets}
    assert [(q.id, q.answer, q.choices, q.type, q.split) for q in read["own.jsonl"]] == [
        ("1", "left", ("left", "right"), "temporal", None),
        ("2", "red", None, None, "test"),
    ]
    assert [(q.id, q.question, q.answer, q.before) for q in read["llava.json"]] == [
        ("7.1", "what is this?", "a ball", ()),
        ("7.2", "where will it land?", "left", (("what is this?", "a ball"),)),
    ]
    assert [(q.id, q.answer, q.choices, q.type) for q in read["table.csv"]] == [
        ("q1", "right", ("left", "right"), "temporal"),
        ("q2", "yes", ("yes", "no"), "static"),
    ]


def test_a_conversation_keeps_its_system_text_and_ids_that_come_twice_are_told_apart(tmp_path: Path) -> None:
    system = [{"from": "system", "value": "Be brief."}, *TURNS[:2]]
    rows = [{"id": 1, "image": "a.png", "conversations": talk} for talk in (system, TURNS[:2])]
    first, second = read_questions(put(tmp_path / "x.json", rows))
    assert (first.question, second.question) == ("Be brief.\n\nwhat is this?", "what is this?")
    assert (first.id, second.id) == ("1", "1@1")
    lines = "\n".join(json.dumps(row) for row in rows)
    assert read_questions(put(tmp_path / "x.jsonl", lines)) == (first, second)


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([TURNS[0]], "must alternate"),
        ([TURNS[1]], "must alternate"),
        ([TURNS[0], {"from": "gpt", "value": " "}], "turn 1 has an empty answer"),
        ("hello", "no list of turns"),
        ([{"from": "human"}], "a turn is not"),
    ],
)
def test_a_conversation_that_is_wrong_is_named_and_the_others_go_on(tmp_path: Path, turns: Any, words: str) -> None:
    good = {"id": "a", "image": "a.png", "conversations": TURNS}
    file = put(tmp_path / "x.json", [good, {"id": "b", "image": "a.png", "conversations": turns}])
    with pytest.raises(QuestionError, match=rf"x\.json:2.*{words}.*--max-bad 1"):
        read_questions(file)
    assert [question.id for question in read_questions(file, max_bad=1)] == ["a.1", "a.2"]


def test_what_asks_nothing_about_one_image_is_passed_over_and_counted(tmp_path: Path) -> None:
    talks = [{"conversations": TURNS}, {"image": ["a.png", "b.png"], "conversations": TURNS}]
    found = read_question_file(put(tmp_path / "x.json", [*talks, {"image": ["a.png"], "conversations": TURNS}]))
    assert (len(found.questions), found.bad) == (2, ())
    assert found.skipped == {"has no image": 1, "shows several images": 1}
    assert "passed over, it has no image: 1" in describe(found).lines()


@pytest.mark.parametrize("images", ["image_bytes", "images"])  # of array/SAT, of array/SAT-v2
def test_sat_is_known_and_the_right_answer_loses_its_place(tmp_path: Path, images: str) -> None:
    def shown(number: int) -> object:
        return picture(number) if images == "image_bytes" else {"bytes": picture(number), "path": None}

    rows = [
        {
            images: [shown(number % 12)],
            "question": "did the camera move left or right?",
            "answers": ["left", "right"],
            "question_type": "ego_movement",
            "correct_answer": "left",
        }
        for number in range(40)
    ]
    several = {**rows[0], images: [shown(0), shown(1)]}
    found = read_question_file(table(tmp_path / "SAT_val.parquet", [*rows, several]))
    assert found.layout == "SAT"
    assert found.skipped == {"shows several images": 1}
    assert {question.split for question in found.questions} == {"validation"}
    assert {question.type for question in found.questions} == {"ego_movement"}
    assert 5 < sum((question.choices or ())[0] == "left" for question in found.questions) < 35
    assert found == read_question_file(tmp_path / "SAT_val.parquet")
    store, _ = save_mini_store(tmp_path / "cache")
    keys = resolve_keys(found.questions, tmp_path / "SAT_val.parquet", store).keys
    assert [keys[question.id] for question in found.questions[:12]] == [key_of_bytes(picture(n)) for n in range(12)]


def test_a_table_of_hugging_face_is_read_as_it_was_saved(tmp_path: Path) -> None:
    features = Features(
        {"image": Image(decode=False), "Q": Value("string"), "label": ClassLabel(names=["left", "right"])}
    )
    rows = [{"image": {"bytes": picture(n), "path": "same.png"}, "Q": f"where {n}?", "label": n % 2} for n in range(3)]
    saved = Dataset.from_list(rows, features=features)
    DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "plain.parquet")
    questions = read_questions(tmp_path / "saved", columns={"question": "Q"})
    assert [(q.question, q.answer, q.split) for q in questions[2:4]] == [
        ("where 2?", "left", "train"),
        ("where 0?", "left", "test"),
    ]
    assert questions[0].image_sha256 == digest_of_bytes(picture(0)).hex()
    assert len({question.image for question in questions}) == 3  # one name an image, though all say the same path
    assert [q.answer for q in read_questions(tmp_path / "plain.parquet", columns={"question": "Q"})] == [
        *("left", "right", "left"),
    ]
    assert len(digest_of(tmp_path / "saved")) == 64


def test_a_data_set_of_the_hub_is_found_again_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": f"{n}.png", "question": "where?", "answer": "left"} for n in range(3)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "x")
    cached = (tmp_path / "x" / "data-00000-of-00001.arrow").rename(tmp_path / "org___balls-test.arrow")
    monkeypatch.setattr(arrow_files, "fetch_hub", {"hf:org/balls": [cached]}.__getitem__)
    place = Path("hf:org/balls")
    assert [(question.id, question.split) for question in read_questions(place)] == [
        (f"org___balls-test.arrow#{n}", "test") for n in range(3)
    ]
    assert place_of(place) == "hf:org/balls"
    assert digest_of(place) == digest_of(cached)


def test_answers_may_be_letters_places_or_words(tmp_path: Path) -> None:
    choices = ["left", "middle", "right"]
    rows = [
        {"image": "a.png", "question": "where?", "options": choices, "answer": given}
        for given in ("middle", "B", "(b)", 1, "up", 3, "", None)
    ]
    found = read_question_file(put(tmp_path / "x.json", rows))
    assert [question.answer for question in found.questions] == ["middle"] * 4
    assert [row.where for row in found.bad] == [f"x.json:{n}" for n in (5, 6, 7, 8)]
    for row, words in zip(found.bad, ["'up' is none", "'3' is none", "is empty", "missing"], strict=True):
        assert words in row.problem


def test_a_column_map_names_columns_lists_and_choices_of_several(tmp_path: Path) -> None:
    row = {"pics": ["b.png", "a.png"], "Q": "where?", "A1": "left", "A2": "right", "truth": "right", "answer": "-"}
    asked = {"image": "pics[1]", "question": "Q", "choices": "A1|A2", "answer": "truth"}
    for file in (put(tmp_path / "x.json", [row]), put(tmp_path / "x.jsonl", row), table(tmp_path / "x.parquet", [row])):
        [question] = read_questions(file, columns=asked)
        assert (question.image, question.choices, question.answer) == ("a.png", ("left", "right"), "right")
    with pytest.raises(QuestionError, match=r"no column 'pix' for image; it has pics, Q"):
        read_questions(tmp_path / "x.json", columns={**asked, "image": "pix"})
    with pytest.raises(QuestionError, match=r"which column holds the image\? It has pics, Q.*--columns image=NAME"):
        read_questions(tmp_path / "x.json")
    with pytest.raises(QuestionError, match="no field 'picture' to fill"):
        read_questions(tmp_path / "x.json", columns={"picture": "pics"})


def test_what_several_people_said_is_not_taken_for_choices(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "what?", "answer": "ball", "answers": ["ball", "ball", "sphere"]}
    assert read_questions(put(tmp_path / "x.json", [row]))[0].choices is None


def test_vpct_is_asked_in_the_words_of_the_embedded_scenes(tmp_path: Path) -> None:
    for number, bucket in enumerate((1, 3, 2, 9), start=1):
        put(tmp_path / f"sim_{number}_results.json", {"duration": 2.5, "simId": number, "finalBucket": bucket})
        put(tmp_path / f"sim_{number}.json", {"lines": [], "buckets": []})  # the scene, which lies beside them
        (tmp_path / f"sim_{number}_initial.png").write_bytes(picture(number))
    put(tmp_path / "sim_10_results.json", {"finalBucket": 1})
    found = read_question_file(tmp_path)
    assert [(q.id, q.image, q.answer) for q in found.questions] == [
        ("sim_1", "sim_1_initial.png", "left"),
        ("sim_2", "sim_2_initial.png", "right"),
        ("sim_3", "sim_3_initial.png", "middle"),
    ]
    assert {(q.split, q.choices, q.question) for q in found.questions} == {
        ("test", ("left", "middle", "right"), "where will the ball land?")
    }
    assert [row.where for row in found.bad] == ["sim_4_results.json", "sim_10_results.json"]
    store, _ = save_mini_store(tmp_path / "cache")
    assert resolve_keys(found.questions, tmp_path, store).keys["sim_2"] == key_of_bytes(picture(2))


def test_images_in_base64_are_known_by_their_content_and_can_be_written_as_files(tmp_path: Path) -> None:
    large = picture(5) * 20_000  # more than csv's own limit of a field
    rows = [["1", base64.b64encode(large).decode(), "where?", "left", "right", "B"]]
    lines = [["index", "image", "question", "A", "B", "answer"], *rows]
    file = put(tmp_path / "x.tsv", "\n".join("\t".join(line) for line in lines))
    [question] = read_questions(file)
    assert (question.answer, question.image_sha256) == ("right", digest_of_bytes(large).hex())
    written = write_questions(file, tmp_path / "out", {})
    assert (written.questions, written.images) == (1, 1)
    [again] = read_questions(written.path)
    assert (tmp_path / "out" / again.image).read_bytes() == large
    assert again == question.model_copy(update={"image": again.image})
    with pytest.raises(QuestionError, match="exists already"):
        write_questions(file, tmp_path / "out", {})


def test_what_is_in_no_layout_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, content, words in (
        ("x.txt", "where?", "in no layout we read"),
        ("x.parquet", "PAR1 not really", "cannot be read as a table"),
        ("x.json", '{"image": "a.png"}', "a JSON object of no rows, but image"),
        ("x.csv", "", "holds no row"),
        ("x.csv", "image,question,answer\na.png,who, me,x\n", "no row that can be read.*4 values for 3 columns"),
        ("empty", None, "a folder without questions"),
        ("absent.csv", None, "No such file"),
    ):
        file = tmp_path / name if content is None else put(tmp_path / name, content)
        with pytest.raises(QuestionError, match=words):
            read_questions(file)


_cell = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["a.png", "B", "left"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["A", "from", "value", "path"]), inner),
    max_leaves=6,
)
_columns = st.sampled_from(["id", "image", "question", "answer", "choices", "A", "B", "type", "split", "conversations"])
_rows = st.lists(_cell | st.dictionaries(_columns, _cell, max_size=8), max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_rows, lines=st.booleans())
def test_whatever_stands_in_a_row_is_a_question_or_has_a_reason(tmp_path: Path, rows: list[Any], lines: bool) -> None:
    whole = {"image": "a.png", "question": "where?", "answer": "left", "id": 1}
    rows = [whole, *rows]
    content = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    file = put(tmp_path / ("x.jsonl" if lines else "x.json"), content)
    for columns in (None, {"answer": "answer"}):
        found = read_question_file(file, columns=columns)
        if found.layout in ("table", "JSONL"):
            assert len(found.questions) + len(found.bad) + sum(found.skipped.values()) == len(rows)
        assert all(row.where and row.problem for row in found.bad)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
)
def test_noise_is_refused_and_never_crashes(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"noise{suffix}"
    file.write_bytes(content)
    with contextlib.suppress(QuestionError):
        read_question_file(file)


def test_text_in_a_table_that_is_no_unicode_is_said_of_the_table(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "question": "where?", "answer": word} for n, word in enumerate(("left", "right"))]
    sound = pyarrow.Table.from_pylist(rows)
    bytes_of = pyarrow.array([b"left", b"\xff"], pyarrow.binary()).buffers()
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, bytes_of)
    pyarrow.parquet.write_table(sound.set_column(2, "answer", broken), tmp_path / "x.parquet")
    [bad] = read_question_file(tmp_path / "x.parquet").bad
    assert "x.parquet cannot be read to its end" in bad.problem


def test_a_record_with_a_digest_finds_latents_without_any_image(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    digest = digest_of_bytes(picture(4)).hex()
    question = Question(id="q", image="gone.png", question="?", answer="left", image_sha256=digest)
    file = put(tmp_path / "q.jsonl", question.model_dump_json())
    assert resolve_keys(read_questions(file), file, store).keys == {"q": key_of_bytes(picture(4))}


def test_a_number_that_is_one_choice_and_the_place_of_another_is_asked_about(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "how many?"}
    given = [(["1", "2", "3"], 0), (["1", "2", "3"], 1), (["2", "3", "4"], 3), (["0", "1"], 1), (["1", "2", "3"], "1")]
    given += [([1, 2, 3], 1), ([10, 20, 30], 1)]  # type: ignore[list-item]
    rows = [{**row, "choices": choices, "answer": answer} for choices, answer in given]
    found = read_question_file(put(tmp_path / "x.json", rows))
    assert [question.answer for question in found.questions] == ["1", "3", "1", "1", "1", "20"]
    assert [(bad.where, "place (from 0) of another, '2'" in bad.problem) for bad in found.bad] == [("x.json:2", True)]


def test_a_conversation_without_an_id_gets_one_and_an_id_that_is_no_text_is_a_wrong_row(tmp_path: Path) -> None:
    rows = [{"id": name, "image": "a.png", "conversations": TURNS[:2]} for name in (None, [1], "x")]
    found = read_question_file(put(tmp_path / "x.json", rows))
    assert [question.id for question in found.questions] == ["0", "x"]
    assert [bad.where for bad in found.bad] == ["x.json:2"]


def test_the_mark_that_windows_puts_in_front_of_utf_8_is_no_content(tmp_path: Path) -> None:
    line = json.dumps({"image": "a.png", "question": "where?", "answer": "left"})
    (tmp_path / "x.jsonl").write_text(f"{line}\n", encoding="utf-8-sig")
    assert [question.answer for question in read_questions(tmp_path / "x.jsonl")] == ["left"]
