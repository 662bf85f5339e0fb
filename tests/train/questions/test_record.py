"""Questions are read or refused by name, and each one's image is found in the store or reported."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.errors import QuestionError
from theworld.pipeline.latents.keys import key_of_bytes, key_of_sample
from theworld.pipeline.store.folder import LatentStore, create_store
from theworld.train.questions.markers import Markers
from theworld.train.questions.record import (
    Question,
    evaluation_split,
    first_scenes,
    read_questions,
    resolve_keys,
    select_split,
)
from theworld.train.questions.values.text import is_absent

from ...miniatures.lm import RECIPE, SPEC, blob_latents, save_mini_store

GOOD = {"id": "q1", "image": "a.png", "question": "where will it land?", "answer": "left", "choices": ["left", "right"]}


def survives(value: str) -> bool:
    """No blanks around it, no marker of an image, no NUL, which no image's name has, and no cell without a value."""
    return Markers().take(value) == value and "\0" not in value and not is_absent(value)


text = st.text(min_size=1).filter(survives)


def write(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_questions_keep_the_order_of_the_file_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", GOOD, "", {**GOOD, "id": "q2", "type": "temporal", "split": "test"})
    first, second = read_questions(file)
    assert (first.id, first.choices, first.type, first.split) == ("q1", ("left", "right"), None, None)
    assert (second.id, second.type, second.split) == ("q2", "temporal", "test")


def test_a_question_without_an_id_gets_its_line_number(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", "", {"image": "a.png", "question": "what?", "answer": "this"})
    assert read_questions(file)[0].id == "2"


def test_fields_of_other_tools_are_left_alone(tmp_path: Path) -> None:
    assert read_questions(write(tmp_path / "q.jsonl", {**GOOD, "difficulty": 3}))[0].id == "q1"


@given(texts=st.lists(text, min_size=5, max_size=5, unique=True))
def test_any_text_survives_the_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    identity, image, asked, answer, other = texts
    question = Question(id=identity, image=image, question=asked, answer=answer, choices=(other, answer))
    file = tmp_path_factory.mktemp("questions") / "q.jsonl"
    file.write_text(question.model_dump_json() + "\n", encoding="utf-8")
    assert read_questions(file) == (question,)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**GOOD, "answer": 3}, ["answer '3' is none of the choices"]),
        ({**GOOD, "answer": {"text": "left"}}, ["expected a text, got dict"]),
        ({name: value for name, value in GOOD.items() if name != "image"}, ["image is missing"]),
        ({**GOOD, "question": "  "}, ["question"]),
        ({**GOOD, "choices": ["left"]}, ["choices", "at least 2"]),
        ({**GOOD, "choices": ["left", "left"]}, ["choices", "twice"]),
        ({**GOOD, "choices": ["up", "down"]}, ["answer", "'left'", "up"]),
        ({"image": "a.png", "question": "?", "answer": "up", "choises": ["up", "down"]}, ["choises", "'choices'"]),
        ({"id": "x", "image": "a.png", "question": "?", "anwser": "a"}, ["anwser", "did you mean 'answer'"]),
        ([1, 2], ["JSON object", "list"]),
        ('{"id": ', ["not JSON"]),
        ("[" * 100_000, ["not JSON"]),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path: Path, record: object, words: list[str]) -> None:
    file = write(tmp_path / "q.jsonl", GOOD, record)
    with pytest.raises(QuestionError) as caught:
        read_questions(file)
    for word in [str(file), "line 2", *words]:
        assert word in str(caught.value)


def test_two_questions_of_one_id_are_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match=r"line 3.*'q1' is already the id of line 1"):
        read_questions(write(tmp_path / "q.jsonl", GOOD, {**GOOD, "id": "q2"}, GOOD))


def test_a_file_that_is_missing_empty_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="No such file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(QuestionError, match="holds no question"):
        read_questions(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(QuestionError, match="UTF-8"):
        read_questions(tmp_path / "binary.jsonl")


def test_training_takes_questions_without_a_split_and_an_unknown_split_lists_those_there(tmp_path: Path) -> None:
    more = [{**GOOD, "id": "q2", "split": "train"}, {**GOOD, "id": "q3", "split": "test"}]
    file = write(tmp_path / "q.jsonl", GOOD, *more)
    questions = read_questions(file)
    assert [question.id for question in select_split(questions, "train", file)] == ["q1", "q2"]
    assert [question.id for question in select_split(questions, "test", file)] == ["q3"]
    assert len(select_split(questions, None, file)) == 3
    with pytest.raises(QuestionError, match=r"'dev'.*no split \(1\), test \(1\), train \(1\).*--split all has"):
        select_split(questions, "dev", file)


def test_an_image_beside_the_file_is_found_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    (tmp_path / "renamed.jpg").write_bytes(b"picture 4")
    file = write(tmp_path / "q.jsonl", {**GOOD, "image": "renamed.jpg"})
    assert resolve_keys(read_questions(file), file, store).keys == {"q1": key_of_bytes(b"picture 4")}


def test_an_image_that_was_exchanged_since_the_last_look_is_found_by_its_new_content(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    file = write(tmp_path / "q.jsonl", {**GOOD, "image": "mine.jpg"})
    for content in (b"picture 4", b"picture 5"):
        (tmp_path / "new.jpg").write_bytes(content)
        (tmp_path / "new.jpg").replace(tmp_path / "mine.jpg")
        assert resolve_keys(read_questions(file), file, store).keys == {"q1": key_of_bytes(content)}


def test_an_image_that_is_gone_is_found_by_the_name_precompute_recorded(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    file = write(tmp_path / "q.jsonl", {**GOOD, "image": "4.png"})
    assert resolve_keys(read_questions(file), file, store).keys == {"q1": key_of_bytes(b"picture 4")}


def test_a_name_that_stood_for_two_images_is_not_guessed(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    store.record_sources([("4.png", key_of_bytes(b"picture 5"))])
    file = write(tmp_path / "q.jsonl", {**GOOD, "image": "4.png"})
    (missing,) = resolve_keys(read_questions(file), file, store).missing
    assert "2 different images" in missing.reason


def test_questions_without_latents_are_counted_named_and_refused(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    (tmp_path / "edited.png").write_bytes(b"another picture")
    images = {"ok": "4.png", "new": "edited.png", **{f"q{number}": "nowhere.png" for number in range(4)}}
    file = write(tmp_path / "q.jsonl", *({**GOOD, "id": name, "image": image} for name, image in images.items()))
    coverage = resolve_keys(read_questions(file), file, store)
    assert set(coverage.keys) == {"ok"}
    with pytest.raises(QuestionError) as caught:
        coverage.require_complete()
    message = str(caught.value)
    for word in ["5 of 6", "2 images", "new (no latent for the content of edited.png", "and 2 more", str(store.path)]:
        assert word in message
    assert "recompute" in message  # what to do


def with_own_prompts(cache: Path, *prompts: str) -> LatentStore:
    """A store with one picture, a.png, rolled out once with each prompt."""
    recipe = RECIPE.model_copy(update={"prompts": "sample"})
    store = create_store(cache, recipe, SPEC, label="mini", shard_size=8)
    keys = {key_of_sample(b"picture", prompt): prompt for prompt in prompts}
    with store.new_shard() as shard:
        for number, key in enumerate(keys):
            shard.add(key, blob_latents(0, number))
        shard.commit({})
    store.record_sources([("a.png", key) for key in keys], keys)
    return store


@pytest.mark.parametrize("beside", [True, False], ids=["image beside the file", "image gone"])
def test_a_question_about_one_of_an_image_s_futures_finds_it_by_its_prompt(tmp_path: Path, beside: bool) -> None:
    store = with_own_prompts(tmp_path / "cache", "it falls", "it stays")
    if beside:
        (tmp_path / "a.png").write_bytes(b"picture")
    asked = [{**GOOD, "id": prompt, "prompt": prompt} for prompt in ("it falls", "it stays", "it flies")]
    file = write(tmp_path / "q.jsonl", *asked, {**GOOD, "id": "any"})
    coverage = resolve_keys(read_questions(file), file, store)
    assert coverage.keys == {prompt: key_of_sample(b"picture", prompt) for prompt in ("it falls", "it stays")}
    flies, unsaid = coverage.missing
    expected = "with the prompt 'it flies', key" if beside else "a.png is neither a file beside the questions nor"
    assert expected in flies.reason
    assert unsaid.reason == "a.png was rolled out with 2 prompts; name one in the question's `prompt`"


def test_the_only_prompt_of_an_image_need_not_be_named(tmp_path: Path) -> None:
    store = with_own_prompts(tmp_path / "cache", "it falls")
    (tmp_path / "a.png").write_bytes(b"picture")
    file = write(tmp_path / "q.jsonl", GOOD)
    assert resolve_keys(read_questions(file), file, store).keys == {"q1": key_of_sample(b"picture", "it falls")}


def test_the_hash_a_file_states_finds_the_latents_with_the_prompt_if_samples_have_their_own(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"picture").hexdigest()
    file = write(tmp_path / "q.jsonl", {**GOOD, "image": "elsewhere", "image_sha256": digest, "prompt": "it falls"})
    own = with_own_prompts(tmp_path / "own", "it falls")
    assert resolve_keys(read_questions(file), file, own).keys == {"q1": key_of_sample(b"picture", "it falls")}
    store, _ = save_mini_store(tmp_path / "cache")  # of one prompt for all: the question's own is not part of a key
    (missing,) = resolve_keys(read_questions(file), file, store).missing
    assert missing.reason == f"no latent for the content of elsewhere, key {key_of_bytes(b'picture')}"


def test_a_name_of_an_image_whose_latents_are_gone_or_never_came_is_said(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    store.record_sources([("failed.png", key_of_bytes(b"failed"))])
    file = write(tmp_path / "q.jsonl", {**GOOD, "image": "failed.png"})
    coverage = resolve_keys(read_questions(file), file, store)
    assert coverage.keys == {}
    assert coverage.missing[0].reason == f"failed.png was source of key {key_of_bytes(b'failed')}, which has no latent"


def test_an_image_s_hash_says_nothing_about_its_future(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    record = {**GOOD, "image_sha256": hashlib.sha256(b"picture 1").hexdigest(), "future": "4.png"}
    file = write(tmp_path / "q.jsonl", record, {**GOOD, "id": "q2", "image": "4.png"})
    coverage = resolve_keys(read_questions(file), file, store, field="future")
    assert coverage.keys == {"q1": key_of_bytes(b"picture 4")}
    assert [(item.question.id, item.reason) for item in coverage.missing] == [("q2", "it names no future")]


def test_a_name_no_file_can_have_is_a_question_without_latents(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    asked = [Question.model_validate({**GOOD, "image": "a\0b"})]
    assert len(resolve_keys(asked, tmp_path / "q.jsonl", store).missing) == 1


def test_up_to_max_bad_wrong_rows_are_left_out_and_a_file_of_nothing_else_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", GOOD, {"id": "bad"}, {"id": "worse"})
    assert [question.id for question in read_questions(file, max_bad=2)] == ["q1"]
    with pytest.raises(QuestionError, match=r"2 lines are wrong: .*--max-bad 2"):
        read_questions(file, max_bad=1)
    with pytest.raises(QuestionError, match="holds no question"):
        read_questions(write(tmp_path / "bad.jsonl", {"id": "bad"}), max_bad=1)


def test_the_first_scenes_are_those_of_the_file_s_order_and_there_must_be_enough() -> None:
    record = {name: value for name, value in GOOD.items() if name != "id"}
    asked = [Question.model_validate({**record, "id": str(n), "scene": f"s{n // 2}"}) for n in range(4)]
    assert [question.id for question in first_scenes(asked, 1)] == ["0", "1"]
    assert first_scenes(asked, 2) == first_scenes(asked, None) == tuple(asked)
    with pytest.raises(QuestionError, match="3 labelled scenes are asked for, the questions have 2"):
        first_scenes(asked, 3)


def test_after_training_the_test_split_is_evaluated_else_another_not_learned_from() -> None:
    def of(*splits: str | None) -> list[Question]:
        return [Question.model_validate({**GOOD, "split": split}) for split in splits]

    assert evaluation_split(of("dev", "train", "test")) == "test"
    assert evaluation_split(of("train", "ood", "dev", None)) == "dev"
    assert evaluation_split(of("train", None)) == "train"
