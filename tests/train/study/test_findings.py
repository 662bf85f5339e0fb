"""Planted effects are found and named as what they are; losses are shown like gains; the page needs nothing else."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from theworld.pipeline.errors import ConfigError
from theworld.train.config import TrainConfig
from theworld.train.questions.record import Question, read_questions, select_split
from theworld.train.study.answers import Answers
from theworld.train.study.examples import telling_scenes
from theworld.train.study.findings import Findings, crossing, find, read_outcomes, score_of
from theworld.train.study.folder import UnitAnswers
from theworld.train.study.hypotheses import labels_needed
from theworld.train.study.plan import Study
from theworld.train.study.report import write_report

from ...miniatures.study import save_mini_study

ARMS = ("steps0", "frozen", "shuffled", "rollout", "true", "true@0.5")
Chance = Callable[[str, int, Question], float]
"""Arm, labels, question -> how likely it is answered rightly."""
SCENES = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_mini_study(folder, train=4, test=SCENES, ood=16)
    return folder


def future_is_right(question: Question) -> bool:
    """Three of four rollouts do, as in the miniature store."""
    return int(question.scene_id.split("-")[1]) % 4 != 0


def expected(arm: str, labels: int, question: Question) -> float:
    """What one hopes for: futures help where they are right, and touch nothing else."""
    if question.type == "static":
        return 0.995
    if arm == "rollout":
        return (0.95 if future_is_right(question) else 0.1) if labels > 100 else 0.85
    return {"true": 0.99, "true@0.5": 0.6, "shuffled": 0.5}.get(arm, 0.55)


def study_of(place: Path, arms: tuple[str, ...] = ARMS, curve: tuple[str, ...] | None = None) -> Study:
    settings = TrainConfig(store=place / "rollouts", questions=place / "questions.jsonl", futures=place / "futures")
    return Study(arms=arms, labels=(100, 400), curve=curve, seeds=3, settings=settings, out=place)


def answered(study: Study, chance: Chance) -> list[UnitAnswers]:
    place, everything = study.out, read_questions(study.settings.questions)
    facts: dict[str, Any] = {"budget": {"train_steps": 3}, "questions_sha256": "0" * 64, "recipe": "0" * 64, "steps": 3}
    facts |= {"futures": None, "lm": "sha256:0", "versions": {"torch": "2"}}
    (place / "study.json").write_text(json.dumps(facts))
    units = []
    for unit in study.units():
        answers: dict[str, dict[str, tuple[str, ...]]] = {}
        for split, shown in study.asked(unit, ["test", "ood"]):
            rng = np.random.default_rng([*f"{unit.name} {split} {shown}".encode()])
            said = []
            for question in select_split(everything, split, place):
                choices = question.choices or ()
                wrong = next(choice for choice in choices if choice != question.answer)
                right = rng.random() < chance(shown, unit.labels, question)
                said.append(question.answer if right else wrong)
            answers.setdefault(split, {})[shown] = tuple(said)
        cost = {"world_tokens": 24, "train_steps": 3, "seconds": 1.0, "last_loss": 0.5}
        units.append(
            UnitAnswers(arm=unit.arm, labels=unit.labels, seed=unit.seed, answers=answers, train=cost, answer_seconds=1)
        )
    return units


def found(
    place: Path,
    chance: Chance,
    *,
    outcomes: bool = True,
    arms: tuple[str, ...] = ARMS,
    curve: tuple[str, ...] | None = None,
) -> Findings:
    everything = read_questions(place / "questions.jsonl")
    known = {question.scene_id: future_is_right(question) for question in everything if question.split == "test"}
    study = study_of(place, arms, curve)
    return find(study, answered(study, chance), outcomes=known if outcomes else None)


def verdicts(results: Mapping[str, Any]) -> dict[str, str]:
    return {name: hypothesis["verdict"] for name, hypothesis in results["hypotheses"].items()}


@pytest.fixture(scope="module")
def hoped(place: Path) -> Findings:
    return found(place, expected)


def test_what_was_planted_is_found(hoped: Findings) -> None:
    assert verdicts(hoped.results) == dict.fromkeys(["H1", "H2", "H3", "H4", "H5", "H6"], "supported")
    row = score_of(hoped.results, arm="rollout", labels=400, type="temporal")
    assert row is not None
    assert row["low"] < 0.95 * 0.75 + 0.1 * 0.25 < row["high"]
    assert (row["questions"], len(row["seeds"]), len(row["wilson_by_seed"])) == (SCENES, 3, 3)


def test_families_are_named_and_what_has_none_is_no_family(hoped: Findings, place: Path) -> None:
    tests = select_split(read_questions(place / "questions.jsonl"), "test", place)
    assert hoped.results["families"] == sorted({question.family for question in tests if question.family})
    assert len(hoped.results["families"]) > 1


def test_the_opposite_is_found_as_well(place: Path) -> None:
    def opposite(arm: str, labels: int, question: Question) -> float:  # noqa: ARG001
        if question.type == "static":
            return 0.7 if arm == "rollout" else 0.98
        return {"rollout": 0.5, "true": 0.5, "shuffled": 0.9}.get(arm, 0.95)

    results = found(place, opposite).results
    assert verdicts(results) == {
        "H1": "not supported",
        "H2": "not supported",
        "H3": "not supported",
        "H4": "not supported",
        "H5": "not supported",
        "H6": "undecided",
    }
    lost = [row for row in results["differences"] if row["high"] is not None and row["high"] < 0]
    assert {row["type"] for row in lost} == {"temporal", "static"}
    assert all(max(row["p_by_seed"]) < 0.5 for row in lost if row["questions"] == SCENES)


def test_readers_are_told_apart_by_whole_pairs_not_by_questions(place: Path) -> None:
    def all_or_nothing(arm: str, labels: int, question: Question) -> float:  # noqa: ARG001
        return float(arm != "rollout" or int((question.pair or "")[:-1]) % 12 != 0)

    rows = found(place, all_or_nothing).results["differences"]
    wanted = {"against": "frozen", "labels": 400, "split": "test", "type": "static", "family": ""}
    [row] = [row for row in rows if wanted.items() <= row.items()]
    assert row["value"] == pytest.approx(-10 / SCENES)
    assert row["p_by_seed"] == [2 / 2**5] * 3  # five pairs; ten questions would have said 2 / 2**10


def test_where_nothing_differs_nothing_is_claimed(place: Path) -> None:
    results = found(place, lambda *_: 0.7).results
    assert {verdicts(results)[name] for name in ("H1", "H3", "H4", "H5", "H6")} == {"undecided"}
    assert results["hypotheses"]["H5"]["p_holm"] == 1  # neither arm gets there: it was tested, and counts among them


def test_what_was_not_run_is_said_to_be_untested(place: Path) -> None:
    results = found(place, expected, outcomes=False, arms=("steps0", "rollout")).results
    assert verdicts(results) == {**dict.fromkeys(["H1", "H2", "H3", "H4", "H6"], "not tested"), "H5": "supported"}
    assert "no arm frozen" in results["hypotheses"]["H1"]["why"]
    assert "no --outcomes" in results["hypotheses"]["H6"]["why"]


def test_a_minimal_pair_counts_when_both_halves_are_right(place: Path) -> None:
    def one_half(arm: str, labels: int, question: Question) -> float:  # noqa: ARG001
        return float(question.type == "static" or question.answer == "left")

    results = found(place, one_half).results
    pair, temporal = (score_of(results, arm="rollout", labels=400, type=kind) for kind in ("pair", "temporal"))
    assert pair is not None
    assert temporal is not None
    assert (pair["value"], pair["questions"], temporal["value"]) == (0, SCENES // 2, 0.5)


def test_the_break_even_curve_counts_how_often_the_shown_future_was_right(hoped: Findings) -> None:
    curve = hoped.results["break_even"]
    outcome = {point["arm"]: point["outcome"] for point in curve["points"]}
    assert outcome["true"] == 1
    assert 0.6 < outcome["true@0.5"] < 0.9  # half see another's future, and half of those end alike
    assert curve["world"] == 0.75
    assert crossing([(0.5, 0.4), (0.7, 0.6), (1, 0.9)], 0.75) == pytest.approx(0.85)
    assert crossing([(0.5, 0.4), (1, 0.9)], 0.95) is None


def test_arms_off_the_curve_are_counted_where_they_were_trained(place: Path, tmp_path: Path) -> None:
    results = found(place, expected, curve=("steps0", "rollout", "true")).results
    assert verdicts(results) == dict.fromkeys(["H1", "H2", "H3", "H4", "H5", "H6"], "supported")
    assert score_of(results, arm="frozen", labels=100, type="temporal") is None
    assert {point["labels"] for point in results["break_even"]["points"]} == {400}  # one arm alone draws no curve
    assert results["break_even"]["needed"].keys() == {"400"}
    write_report(Findings(results), tmp_path)
    assert verdicts(found(place, expected, curve=("true",)).results)["H5"] == "not tested"


def test_labels_needed_are_read_off_between_two_counts_along_the_logarithm() -> None:
    curves = np.array([[0.7, 0.9, 0.95], [0.85, 0.9, 0.9], [0.1, 0.2, 0.3], [0.85, 0.7, 0.9]])
    assert labels_needed([100, 10_000, 20_000], curves) == pytest.approx([1000, 100, np.inf, 100])


def test_the_page_is_one_file_with_its_pictures_and_the_strips_that_were_put_there(
    hoped: Findings, tmp_path: Path
) -> None:
    (tmp_path / "strips").mkdir()
    for name in ("win-1", "loss-1", "win-2"):
        Image.new("RGB", (8, 8)).save(tmp_path / "strips" / f"{name}.png")
    file = write_report(hoped, tmp_path)
    text = file.read_text()
    for name in ("learning.png", "shifted.png", "break_even.png", "gains.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert text.count("data:image/png;base64,") == 3
    assert text.count("<svg") > 6
    assert text.index("win 1") < text.index("win 2") < text.index("loss 1")
    assert "://" not in text
    for words in ("Gains and losses by question", "H6 gain follows", "win-1.png", "rule of thumb", "primary count"):
        assert words in text
    assert json.loads((tmp_path / "results.json").read_text())["hypotheses"].keys() == {f"H{n}" for n in range(1, 7)}


def test_the_scenes_to_look_at_are_where_most_was_won_and_lost(place: Path) -> None:
    told = telling_scenes(Answers(study_of(place), answered(study_of(place), expected)))
    assert list(told) == ["win-1", "win-2", "win-3", "loss-1", "loss-2", "loss-3"]
    ends = {q.scene_id: future_is_right(q) for q in read_questions(place / "questions.jsonl")}
    assert {ends[scene] for name, (scene, _) in told.items() if name.startswith("win")} == {True}
    assert not ends[told["loss-1"][0]]  # all wrong rollouts of this store are of one family; families take turns
    assert len({scene for scene, _ in told.values()}) == 6
    arms = ("rollout", "true")
    assert telling_scenes(Answers(study_of(place, arms), answered(study_of(place, arms), expected))) == {}


def test_two_pairs_that_end_apart_leave_open_how_often_rollouts_must_end_right(tmp_path: Path) -> None:
    save_mini_study(tmp_path, train=4, test=4, ood=4)
    plan = study_of(tmp_path, ("frozen", "rollout"))
    ends = {f"test-{number}": number < 6 for number in range(4, 8)}  # no replicate has both pairs

    def chance(arm: str, _: int, question: Question) -> float:
        return 1.0 if arm == "frozen" or ends.get(question.scene_id) else 0.0

    shares = find(plan, answered(plan, chance), outcomes=ends).results["by_outcome"]["needed"]["share"]
    assert shares["rollout"] == {"value": None, "low": None, "high": None}


def test_outcomes_of_another_form_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "o.json"
    file.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match=r'\{"scene": true'):
        read_outcomes(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_outcomes(tmp_path / "none.json")
