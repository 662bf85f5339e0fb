"""Conversations of every tool become the same questions, and the markers of their image go."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from theworld.pipeline.files.hashing import digest_of_bytes
from theworld.train.questions.markers import Markers
from theworld.train.questions.record import QuestionFile, read_question_file

PNG = b"\x89PNG picture"
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def turns(question: Any, answer: Any = "left", *, system: str | None = None) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def read(place: Path, *rows: dict[str, Any]) -> QuestionFile:
    (place / "q.json").write_text(json.dumps(rows))
    return read_question_file(place / "q.json")


TEXT = {"type": "text", "text": "where?"}
HUMAN, GPT = {"from": "human", "value": "<image>\nwhere?"}, {"from": "gpt", "value": "left"}
ROWS: dict[str, dict[str, Any]] = {
    "LLaVA": {"image": "a.png", "conversations": [HUMAN, GPT]},
    "LLaVA, marker behind": {"image": "a.png", "conversations": [{**HUMAN, "value": "where?\n<image>"}, GPT]},
    "LLaMA-Factory's ShareGPT": {"images": ["a.png"], "conversations": [HUMAN, GPT]},
    "ms-swift": {"images": ["a.png"], "messages": turns("<image>where?")},
    "ms-swift's objects": {"images": [{"bytes": None, "path": "a.png"}], "messages": turns("<image>where?")},
    "TRL": {"images": ["a.png"], "messages": turns([{"type": "image"}, TEXT], [{"type": "text", "text": "left"}])},
    "Qwen's parts": {"messages": turns([{"type": "image", "image": "a.png"}, TEXT])},
    "OpenAI": {"messages": turns([TEXT, {"type": "image_url", "image_url": {"url": "a.png"}}])},
    "datasets' parts": {"image": "a.png", "messages": turns([{"type": "image", "text": None}, TEXT])},
    "parts without a type": {"messages": turns([{"image": "a.png"}, {"text": "where?"}])},
    "Qwen-VL": {"image": "a.png", "messages": turns("Picture 1: <img>a.png</img>\nwhere?")},
    "JSON in a cell": {"image": "a.png", "conversations": json.dumps(turns("<image>where?"))},
    "roles in capitals": {"image": "a.png", "conversations": [{**HUMAN, "from": "Human"}, {**GPT, "from": "GPT"}]},
    "a named video": {"image": None, "video": "a.png", "conversations": turns("<video>where?")},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_tool_s_conversation_is_the_same_question(row: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path, row)
    assert (found.bad, found.skipped) == ((), {})
    [question] = found.questions
    assert (question.image, question.question, question.answer, question.choices) == ("a.png", "where?", "left", None)
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert read_question_file(tmp_path / "q.jsonl").questions == found.questions


def test_conversations_in_a_table_are_read_with_their_images(tmp_path: Path) -> None:
    row = {"images": [{"bytes": PNG, "path": "x.png"}], "messages": turns([{"type": "image", "text": None}, TEXT])}
    row["messages"][1]["content"] = [{"type": "text", "text": "left"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train.parquet")
    [question] = read_question_file(tmp_path / "train.parquet").questions
    assert (question.question, question.answer, question.split) == ("where?", "left", "train")
    assert question.image_sha256 == digest_of_bytes(PNG).hex()


def test_an_image_inside_a_message_is_known_by_its_content(tmp_path: Path) -> None:
    row = {"messages": turns([TEXT, {"type": "image_url", "image_url": {"url": URL}}])}
    assert read(tmp_path, row).questions[0].image_sha256 == digest_of_bytes(PNG).hex()


def test_choices_and_type_of_a_conversation_are_those_of_the_turns_that_name_one(tmp_path: Path) -> None:
    talk = [*turns("what is it?", "a ball"), *turns("which side?", "B")]
    row = {"id": 7, "image": "a.png", "type": "space", "options": ["left", "right"], "conversations": talk}
    first, second = read(tmp_path, row).questions
    assert (first.id, first.answer, first.choices, first.type) == ("7.1", "a ball", None, "space")
    assert (second.id, second.answer, second.choices) == ("7.2", "right", ("left", "right"))
    assert second.before == (("what is it?", "a ball"),)
    [bad] = read(tmp_path, {**row, "conversations": turns("which side?", "up")}).bad
    assert "'up' is none of the choices" in bad.problem


SYSTEM = [{"messages": turns("where?", system="Be brief.")}, {"system": "Be brief.", "messages": turns("where?")}]


@pytest.mark.parametrize("row", SYSTEM, ids=["turn", "field"])
def test_a_system_turn_or_field_stands_before_the_first_question(row: dict[str, Any], tmp_path: Path) -> None:
    [question] = read(tmp_path, {**row, "image": "a.png"}).questions
    assert question.question == "Be brief.\n\nwhere?"


def test_what_is_no_conversation_about_one_image_is_named_or_counted(tmp_path: Path) -> None:
    two = [{"type": "image"}, {"type": "image"}, TEXT]
    found = read(
        tmp_path,
        {"images": ["a.png", "b.png"], "messages": turns("<image><image>where?")},
        {"images": ["a.png"], "messages": turns(two)},
        {"messages": turns([{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}, TEXT])},
        {"messages": turns("where?")},
        {"image": "a.png", "messages": turns([{"type": "audio", "audio": "a.wav"}, TEXT])},
        {"image": "a.png", "messages": [{"role": "user", "content": "where?"}, {"role": "tool", "content": "left"}]},
        {"image": "a.png", "messages": turns("where?", None)},
        {"image": "a.png", "messages": turns("where?", "<image>")},
    )
    assert found.questions == ()
    assert found.skipped == {"shows several images": 3, "has no image": 1}
    problems = [bad.problem for bad in found.bad]
    assert len(problems) == 4
    for words, problem in zip(("'audio'", "must alternate", "a turn is not", "empty answer"), problems, strict=True):
        assert words in problem


WRITTEN = [
    *("<image>", "<IMAGE>", "<image 1>", "<image_1>", "<image1>", "<image-1>", "<img>", "<video>", "<|image|>"),
    *("<|image_1|>", "<start_of_image>", "<|vision_start|><|image_pad|><|vision_end|>", "<img>a b/c.png</img>"),
    *("(<image>./</image>)", "<Img><ImageHere></Img>", "[IMG]", "<image-placeholder>", "<image_placeholder>"),
    *("<|begin_of_image|><|image|><|end_of_image|>", "<im_start><image><im_end>", "<fake_token_around_image><image>"),
    "<start_of_image><image_soft_token><image_soft_token><end_of_image>",
]


@pytest.mark.parametrize("marker", WRITTEN)
def test_each_tool_s_marker_goes_and_is_one_image(marker: str) -> None:
    for text, rest in (
        (f"{marker}\nwhere?", "where?"),
        (f"where? {marker}", "where?"),
        (f"where {marker} is it?", "where is it?"),
        (f"in {marker}, where?", "in, where?"),
    ):
        markers = Markers()
        assert markers.take(text) == rest
        assert (markers.images, markers.removed > 0) == (1, True)


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("<image><image>", 2),
        ("<image 1> <image 2>", 2),
        ("<image 1> <image 1>", 1),
        ("a < images > b", 0),
        ("<imagine>", 0),
    ],
)
def test_markers_are_counted_as_images(text: str, images: int) -> None:
    markers = Markers()
    left = markers.take(text)
    assert markers.images == images
    assert left == ("" if images else text)


@pytest.mark.parametrize(
    "part", ["<img>", "(<image>./", "Picture 1: ", "<image ", "<|vision_start|><|image_pad|>", "<im_"]
)
def test_a_text_full_of_halves_of_markers_takes_no_time(part: str) -> None:
    started = time.process_time()
    Markers().take(part * 50_000)
    Markers().take(f"a{' ' * 500_000}<image>{' ' * 500_000}b")
    assert time.process_time() - started < 3
