"""Answers are counted with honest intervals, and only like is laid beside like."""

import hashlib
import json
from pathlib import Path

import pytest
from rich.console import Console

from theworld.pipeline.errors import RunError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.evaluation.metrics import Prediction, Score
from theworld.train.evaluation.own_words import normalised
from theworld.train.evaluation.results.compare import compare
from theworld.train.evaluation.results.saved import EVALUATION, Evaluation, read_evaluation
from theworld.train.evaluation.statistics import wilson
from theworld.train.runs.meta import read_meta, versions
from theworld.train.training.train import train

from ...miniatures.training import lay_out as lay_out_house
from ...miniatures.training import settings


def evaluation(run: Path, *, correct: int = 3, questions: str = "0" * 64) -> Path:
    low, high = wilson(correct, 4)
    score = Score(correct=correct, total=4, accuracy=correct / 4, low=low, high=high)
    result = Evaluation(
        run=str(run), split="test", steps=8, trained_steps=8, lm="sha256:0", recipe_id="0" * 64, questions="q.jsonl",
        questions_sha256=questions, overall=score, by_type={"temporal": score}, predicted={"temporal": {"left": 4}},
        answers={"temporal": {"left": 3, "right": 1}},
        predictions=(Prediction(id="a", type="temporal", predicted="left", answer="left", correct=True),),
    )  # fmt: skip
    run.mkdir()
    (run / EVALUATION).write_text(result.model_dump_json())
    return run


@pytest.mark.parametrize(("said", "meant"), [("Left.", "left"), ("The  red ball", "red ball"), ("a bin!", "bin")])
def test_case_punctuation_and_articles_do_not_count(said: str, meant: str) -> None:
    assert normalised(said) == normalised(meant)


def test_other_words_do_count() -> None:
    assert normalised("left bin") != normalised("left")


@pytest.mark.parametrize(("said", "meant"), [("", "A"), ("the", "A"), (".", "A"), ("3", "-3"), ("", "?"), ("B", "A")])
def test_an_answer_of_a_letter_or_a_sign_is_more_than_nothing(said: str, meant: str) -> None:
    assert normalised(said) != normalised(meant)
    assert normalised(f"{meant}.") == normalised(f"{meant.lower()} .") if meant != "?" else True


def test_runs_stand_side_by_side_with_intervals_and_counts(tmp_path: Path) -> None:
    table = compare([evaluation(tmp_path / "a"), evaluation(tmp_path / "b", correct=1)])
    console = Console(width=200, record=True)
    with console.capture() as shown:
        console.print(table)
    for piece in ["temporal", "0.750 [0.301, 0.954] of 4", "0.250 [0.046, 0.699] of 4", "steps 8"]:
        assert piece in shown.get()


def test_runs_asked_different_questions_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not the same questions"):
        compare([evaluation(tmp_path / "a"), evaluation(tmp_path / "b", questions="1" * 64)])


def test_a_run_without_an_evaluation_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="theworld evaluate"):
        read_evaluation(tmp_path)
    (tmp_path / EVALUATION).write_text("{}")
    with pytest.raises(RunError, match=r"run is missing.*again: theworld evaluate"):
        read_evaluation(tmp_path)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = lay_out_house(tmp_path_factory.mktemp("house"))
    train(settings(house, train_steps=2, steps=2))
    return house


def test_an_evaluation_says_what_was_asked_of_which_run_and_what_was_left_out(house: Path) -> None:
    file = house / "cache" / "questions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    long = {**lines[-2], "id": "long", "question": "left " * 4100}
    asked = house / "asked.jsonl"
    asked.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, long]))
    found = evaluate(house / "run", questions=asked, device="cpu", steps=1, max_bad=1)
    meta = read_meta(house / "run")
    assert (found.run, found.questions) == (str(house / "run"), str(asked))
    assert (found.split, found.steps, found.trained_steps) == ("test", 1, 2)
    assert (found.arm, found.trained_arm) == ("rollout", "rollout")
    assert (found.lm, found.recipe_id, found.version) == (meta.lm.identity, meta.recipe_id, 2)
    assert found.questions_sha256 == hashlib.sha256(asked.read_bytes()).hexdigest()
    assert (found.left_out, found.overall.total) == (1, 12)
    assert found.created_with == versions()
    assert found.answer_seconds > 0
    test = {line["id"]: line for line in lines if line["split"] == "test"}
    assert [prediction.id for prediction in found.predictions] == list(test)
    for prediction in found.predictions:
        line = test[prediction.id]
        assert (prediction.question, prediction.image, prediction.answer) == (
            line["question"], line["image"], line["answer"],
        )  # fmt: skip
        assert prediction.key == key_of_bytes((house / "cache" / line["image"]).read_bytes())
        assert prediction.choices == (tuple(line["choices"]) if "choices" in line else None)
    [saved] = (house / "run").glob("evaluation-*.json")
    assert Evaluation.model_validate_json(saved.read_bytes()) == found


def test_the_batch_size_changes_no_answer(house: Path) -> None:
    one, many = (evaluate(house / "run", device="cpu", batch_size=size) for size in (1, 64))
    for alone, together in zip(one.predictions, many.predictions, strict=True):
        said = [(answer.id, answer.predicted, answer.generated, answer.correct) for answer in (alone, together)]
        assert said[0] == said[1]
        assert alone.probabilities == pytest.approx(together.probabilities, abs=1e-4)
    assert any(prediction.choices is None for prediction in one.predictions)
    assert any(prediction.generated for prediction in one.predictions)
