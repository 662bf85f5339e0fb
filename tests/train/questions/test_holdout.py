"""Where no split is stated, questions are held out by image or scene: the same ones each time, none of them trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, RunError
from theworld.train.config import TrainConfig
from theworld.train.questions.holdout import HeldOut, hold_out
from theworld.train.questions.inspect import inspect_questions
from theworld.train.questions.record import Question, read_questions
from theworld.train.runs.meta import read_meta
from theworld.train.runs.partial import resumed_config

from ...miniatures.lm import SMALL_TRAINING, save_mini_lm, save_mini_store

FILE = Path("q.jsonl")


def question(number: int, **fields: Any) -> Question:
    record = {"id": str(number), "image": f"{number}.png", "question": "where?", "answer": "left", **fields}
    return Question.model_validate(record)


def splits(held: HeldOut) -> dict[str, str]:
    return {question.id: question.split or "train" for question in held.questions}


def test_about_the_share_asked_for_is_held_out_and_said() -> None:
    held = hold_out([question(n) for n in range(1000)], 0.2, FILE)
    assert 160 < held.counts["test"] < 240
    count = held.counts["test"]
    assert held.line == (
        f"held out, for no split is stated: of 1,000 questions {count} for test, about {count} of 1,000 images or "
        "scenes (--holdout 0.2); by their names, for no store is named: a training goes by their content"
    )
    assert hold_out([question(n) for n in range(9)], 0, FILE).counts == {}


def test_stated_splits_are_untouched_and_an_image_of_theirs_is_not_held_out() -> None:
    for stated in ("test", "validation", "hard"):
        asked = (question(0, split=stated), *(question(n) for n in range(1, 50)))
        assert hold_out(asked, 0.5, FILE) == HeldOut(asked, {})
    all_train = tuple(question(n, split="train") for n in range(50))
    assert hold_out(all_train, 0.5, FILE) == HeldOut(all_train, {})
    asked = [question(n, image=f"{n % 50}.png", split="train" if n < 25 else None) for n in range(100)]
    held = hold_out(asked, 0.5, FILE)
    assert [q.split for q in held.questions[:25]] == ["train"] * 25
    assert not {q.image for q in held.questions if q.split == "test"} & {q.image for q in held.questions[:25]}
    assert held.counts["test"] > 0


_asked = st.lists(
    st.tuples(st.integers(0, 12), st.none() | st.integers(0, 6), st.none() | st.integers(0, 4), st.booleans()),
    min_size=1,
    max_size=40,
)


def made(rows: list[tuple[int, int | None, int | None, bool]], first: int = 0) -> list[Question]:
    return [
        question(
            first + n,
            image=f"{image}.png",
            scene=None if scene is None else f"s{scene}",
            pair=None if pair is None else f"p{pair}",
            split="train" if is_stated and n % 3 == 0 else None,
        )
        for n, (image, scene, pair, is_stated) in enumerate(rows)
    ]


@settings(max_examples=200, deadline=None)
@given(rows=_asked, share=st.sampled_from([0.1, 0.2, 0.5, 0.9]), validation=st.booleans())
def test_no_image_scene_or_pair_is_on_two_sides(rows: Any, share: float, validation: bool) -> None:
    held = hold_out(made(rows), share, FILE, validation=validation)
    assert [q.id for q in held.questions] == [q.id for q in made(rows)]
    for field in ("image", "scene", "pair"):
        sides: dict[str, set[str]] = {}
        for q in held.questions:
            if (value := getattr(q, field)) is not None:
                sides.setdefault(value, set()).add(q.split or "train")
        assert all(len(its) == 1 for its in sides.values())
    assert any((q.split or "train") == "train" for q in held.questions)
    assert hold_out(list(reversed(made(rows))), share, FILE, validation=validation).counts == held.counts


@settings(max_examples=200, deadline=None)
@given(rows=_asked, more=_asked)
def test_what_was_trained_on_stays_trained_on_as_a_file_grows(rows: Any, more: Any) -> None:
    before = made([*rows, *[(100 + n, None, None, False) for n in range(12)]])  # enough for chance to decide
    after = hold_out([*before, *made(more, first=1000)], 0.2, FILE)
    was, now = splits(hold_out(before, 0.2, FILE)), splits(after)
    assert not {name for name, split in was.items() if split == "train" and now[name] == "test"}


@pytest.mark.parametrize("images", [2, 3, 5])
def test_of_few_images_one_is_tested_and_one_is_trained_on(images: int) -> None:
    for share in (0.01, 0.99):
        held = hold_out([question(n, image=f"{n % images}.png") for n in range(10)], share, FILE)
        assert set(splits(held).values()) == {"train", "test"}
    only = hold_out([question(n, image="a.png") for n in range(10)], 0.2, FILE)
    assert (only.counts, set(splits(only).values())) == ({}, {"train"})
    assert only.line.startswith("nothing is held out for tests")


def test_one_image_under_two_names_is_on_one_side(tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path / "cache")
    for number in range(12):
        (tmp_path / f"copy of {number}.png").write_bytes(f"picture {number}".encode())
    asked = [question(n) for n in range(12)] + [question(20 + n, image=f"copy of {n}.png") for n in range(12)]
    its = splits(hold_out(asked, 0.5, tmp_path / FILE, store))
    assert all(its[str(n)] == its[str(20 + n)] for n in range(12))
    moved = [q.model_copy(update={"image": f"images/{q.image}"}) for q in asked[:12]]
    assert splits(hold_out(moved, 0.5, tmp_path / FILE, store)) == splits(
        hold_out(asked[:12], 0.5, tmp_path / FILE, store)
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A store, a language model, settings, and questions without splits."""
    _, file = save_mini_store(tmp_path / "cache", images=12)
    save_mini_lm(tmp_path / "lm")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    plain = [{name: value for name, value in row.items() if name != "split"} for row in rows]
    file.write_text("\n".join(map(json.dumps, plain)))
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in SMALL_TRAINING.items())
    (tmp_path / "small.toml").write_text(f"[train]\ntrain_steps = 2\n{table}\n")
    return tmp_path


def theworld(*words: object) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done


def train(house: Path, *more: object) -> Any:
    questions = (
        "--questions",
        house / "cache" / "questions.jsonl",
        "--config",
        house / "small.toml",
        "--lm",
        house / "lm",
    )
    return theworld("train", house / "cache", *questions, "--out", house / "run", *more)


def test_the_command_offered_next_evaluates_what_was_held_out_and_the_run_records_it(house: Path) -> None:
    trained = train(house, "--holdout", "0.3")
    assert "held out, for no split is stated" in trained.stderr
    assert f"next: theworld evaluate {house / 'run'}\n" in trained.stdout
    meta = read_meta(house / "run")
    assert (meta.config["holdout"], meta.questions.train + meta.questions.held_out) == (0.3, 24)
    [evaluation] = json.loads(theworld("evaluate", house / "run", "--device", "cpu", "--json").stdout)
    assert evaluation["split"] == "test"
    assert evaluation["overall"]["total"] == meta.questions.held_out > 0
    [learned] = json.loads(theworld("evaluate", house / "run", "--split", "train", "--json").stdout)
    tested, trained_on = ({p["id"] for p in e["predictions"]} for e in (evaluation, learned))
    assert len(tested | trained_on) == len(tested) + len(trained_on) == 24
    assert not {p["image"] for p in evaluation["predictions"]} & {p["image"] for p in learned["predictions"]}
    report = inspect_questions(
        house / "cache" / "questions.jsonl", house / "cache", {"lm": str(house / "lm"), "patch": 2, "holdout": 0.3}
    )
    assert report.splits["test"] == meta.questions.held_out


def test_nothing_is_held_out_of_a_run_of_an_earlier_version(house: Path) -> None:
    train(house, "--holdout", "0")
    place = house / "run" / "theworld.json"
    meta = json.loads(place.read_text())
    for name in ("holdout", "images"):
        del meta["config"][name]
    del meta["questions"]["held_out"]
    place.write_text(json.dumps(meta))
    [evaluation] = json.loads(theworld("evaluate", house / "run", "--split", "train", "--json").stdout)
    assert evaluation["overall"]["total"] == 24


def test_a_training_begun_by_an_earlier_version_is_resumed_as_it_was(house: Path) -> None:
    config = TrainConfig(store=house / "cache", questions=house / "cache" / "questions.jsonl")
    facts: dict[str, Any] = {
        "config": {k: v for k, v in config.model_dump(mode="json").items() if k not in ("holdout", "images")}
    }
    facts |= {"numbered": True, "recipe_id": "r", "images_sha256": "", "questions_sha256": "", "lm": "", "versions": {}}
    (house / "old.partial").mkdir()
    (house / "old.partial" / "training.json").write_text(json.dumps(facts | {"started": ""}))
    assert resumed_config(house / "old.partial", {}).holdout == 0
    with pytest.raises(ConfigError, match="holdout"):
        resumed_config(house / "old.partial", {"holdout": 0.2})


def test_early_stopping_has_a_split_of_its_own(house: Path) -> None:
    trained = train(house, "--holdout", "0.3", "--validate-every", "1")
    assert " for test and " in trained.stderr
    [evaluation] = json.loads(theworld("evaluate", house / "run", "--split", "validation", "--json").stdout)
    assert evaluation["overall"]["total"] > 0


def test_images_named_for_a_training_are_found_again_by_its_evaluation(house: Path) -> None:
    file = house / "cache" / "questions.jsonl"
    (house / "lists").mkdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    photos = house / "photos"
    photos.mkdir()
    for line in lines:
        (photos / f"new {line['image']}").write_bytes((house / "cache" / line["image"]).read_bytes())
        line["image"] = f"new {line['image']}"
    moved = house / "lists" / "q.jsonl"
    moved.write_text("\n".join(map(json.dumps, lines)))
    flags = (
        "--questions",
        moved,
        "--config",
        house / "small.toml",
        "--lm",
        house / "lm",
        "--out",
        house / "run",
        "--images",
        photos,
    )
    trained = theworld("train", house / "cache", *flags)
    assert "images that the store has under another name" in trained.stderr
    [evaluation] = json.loads(theworld("evaluate", house / "run", "--json").stdout)
    assert evaluation["overall"]["total"] > 0
    photos.rename(house / "elsewhere")
    [again] = json.loads(theworld("evaluate", house / "run", "--images", house / "elsewhere", "--json").stdout)
    assert again["overall"] == evaluation["overall"]
    failed = CliRunner().invoke(app, ["evaluate", str(house / "run"), "--images", str(photos)])
    assert isinstance(failed.exception, ConfigError)
    with pytest.raises(RunError):
        read_meta(photos)
    assert len(read_questions(moved)) == 24
