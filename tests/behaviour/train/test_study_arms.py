"""A study's file states arms with stores, draws and settings of their own, and the hypotheses it is judged on."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.command_line import theworld
from tests.miniatures.lm import RECIPE, SMALL_TRAINING, SPEC, blob_latents, save_mini_lm
from tests.miniatures.study import place_of, save_mini_draws, save_mini_study
from theworld.pipeline.config import read_table
from theworld.pipeline.errors import ConfigError, StoreMismatchError, StoreNotFoundError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import create_store, open_store
from theworld.precompute.worlds.source import resolve_world
from theworld.train.config import TrainConfig
from theworld.train.evaluation.abstention import accuracy_by_coverage
from theworld.train.pages.charts import Curve, Point, plot
from theworld.train.pages.style import STYLE
from theworld.train.study import plots, run
from theworld.train.study.arm_colors import page_color_of, plot_color_of, plot_line_of, plot_marker_of
from theworld.train.study.arms import StudyTable, parse_study_table, shown_of
from theworld.train.study.check import check_study
from theworld.train.study.findings import find, score_of, share_needed
from theworld.train.study.folder import write_json
from theworld.train.study.plan import Study
from theworld.train.study.price import cost_ticks, price
from theworld.train.study.report import write_report
from theworld.train.study.run import run_study
from theworld.train.training.train import train

CONFIGS = Path(__file__).parents[3] / "configs"
SCENES = 16
OUTCOMES = {f"test-{number}": number % 4 != 0 for number in range(8, SCENES)}
"""As the mini study makes its rollouts."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini study with three draws of each image, and rollouts of another seed that all end right."""
    folder = tmp_path_factory.mktemp("arms")
    save_mini_lm(folder / "lm")
    save_mini_study(folder, train=8, test=8, ood=0)
    save_mini_draws(folder / "draws", scenes=SCENES)
    other = create_store(folder / "better", RECIPE.model_copy(update={"seed": 5}), SPEC, label="mini", shard_size=64)
    with other.new_shard() as shard:
        for number in range(SCENES):
            shard.add(key_of_bytes(f"picture {number}".encode()), blob_latents(place_of(number), number))
        shard.commit({})
    return folder


def stamps_of(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "units").iterdir()}


def changed(before: dict[str, int], out: Path) -> set[str]:
    """The answers that are new since."""
    return {name for name, stamp in stamps_of(out).items() if before.get(name) != stamp}


def table(place: Path, **changes: Any) -> StudyTable:
    arms = {
        "better": {"store": place / "better"},
        "draws": {"draws": 3, "draws_store": place / "draws"},
        "still": {"shows": "frozen", "train": {"learning_rate": 1e-3}},
    }
    hypotheses = {
        "S1": {"claim": "better", "arm": "better", "than": "rollout"},
        "S2": {"claim": "not_worse", "arm": "draws", "than": "rollout", "margin": 0.5},
        "S3": {"claim": "equivalent", "arm": "better", "than": "rollout", "type": "static", "margin": 0.9},
        "S4": {"claim": "better", "arm": "true", "than": "rollout"},
        "S5": {"claim": "not_worse", "arm": "better", "than": "still", "margin": 0.9, "ends": "wrong"},
    }
    return StudyTable.model_validate({"world_tokens": 24, "arms": arms, "hypotheses": hypotheses, **changes})


def study(place: Path, out: Path, **changes: Any) -> Study:
    names = {"store": "rollouts", "questions": "questions.jsonl", "lm": "lm"}
    settings = {**SMALL_TRAINING, "train_steps": 4, **{name: str(place / file) for name, file in names.items()}}
    plan: dict[str, Any] = {"arms": ("rollout", "better", "draws", "still"), "table": table(place), **changes}
    return Study(labels=(8,), seeds=2, settings=TrainConfig.model_validate(settings), out=out, **plan)


@pytest.fixture(scope="module")
def results(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("evidence2")
    plan = study(place, out)
    findings = find(plan, run_study(plan, jobs=1), outcomes=OUTCOMES)
    page = write_report(findings, out).read_text()
    assert "to do as well as frozen" not in page, "there is no arm of this name"
    assert "Accuracy against cost" in page
    assert "Abstention: only the most certain questions are answered" in page
    return {**findings.results, "out": out}


def test_each_arm_reads_its_own_store_and_settings(place: Path, results: dict[str, Any]) -> None:
    own = json.loads((results["out"] / "study.json").read_text())["own_arms"]
    assert own["better"]["recipe"] == open_store(place / "better").recipe.id
    assert own["still"] == {**own["still"], "shows": "frozen", "train": {"learning_rate": 1e-3}}
    assert own["draws"]["draws"] == 3
    assert {arm["world_tokens"] for arm in results["arms"].values()} == {24}
    plan = study(place, results["out"])
    assert plan.settings_of("better").store == place / "better"
    assert plan.settings_of("still").learning_rate == 1e-3
    assert plan.settings_of("rollout") == plan.settings


def test_an_arm_of_draws_averages_them_and_its_curve_is_in_the_results(results: dict[str, Any]) -> None:
    unit = json.loads((results["out"] / "units" / "draws-labels8-seed0.json").read_text())
    assert unit["answers"]["test"].keys() == {"draws"}
    assert set(unit["agreement"]["test"]) <= {1 / 3, 2 / 3, 1.0}
    assert results["abstention"].keys() == {"rollout", "better", "draws", "still"}
    for arm, points in results["abstention"].items():
        assert points[-1]["coverage"] == 1.0
        row = score_of(results, arm=arm, labels=8, type="temporal")
        assert row is not None
        assert points[-1]["accuracy"] == pytest.approx(row["value"])


def test_an_arm_may_learn_from_true_futures_and_answer_from_draws(place: Path, tmp_path: Path) -> None:
    arms = {"drawn": {"shows": "true", "draws": 3, "draws_store": place / "draws"}}
    plan = study(place, tmp_path, arms=("true", "drawn"), table=table(place, arms=arms, hypotheses={}))
    futures = plan.settings.model_copy(update={"futures": str(place / "futures")})
    run_study(dataclasses.replace(plan, settings=futures, seeds=1), jobs=1)
    learned, drawn = (
        json.loads((tmp_path / "units" / f"{arm}-labels8-seed0.json").read_text()) for arm in ("true", "drawn")
    )
    assert drawn["train"]["last_loss"] == learned["train"]["last_loss"]
    assert set(drawn["agreement"]["test"]) <= {1 / 3, 2 / 3, 1.0}
    assert not learned["agreement"]


def test_without_draws_the_answers_of_the_highest_probability_come_first(results: dict[str, Any]) -> None:
    unit = json.loads((results["out"] / "units" / "better-labels8-seed0.json").read_text())
    confidence = unit["confidence"]["test"]
    assert unit["confidence"].keys() == {"test"}
    assert all(0.5 <= share <= 1 for share in confidence), "of the likelier of two choices"
    assert unit["agreement"] == {}
    assert accuracy_by_coverage([((0.9,), True), ((0.6,), False), ((0.6,), True), ((0.5,), False)])[-6:] == [
        (0.75, 3, 2 / 3), (0.8, 4, 0.5), (0.85, 4, 0.5), (0.9, 4, 0.5), (0.95, 4, 0.5), (1.0, 4, 0.5)
    ]  # fmt: skip


def test_arms_that_train_alike_share_a_training_also_after_a_kill_between_their_answers(
    place: Path, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(run, "train", lambda config, **how: (trained.append(config.store.name), train(config, **how)))

    class Killed(BaseException):
        pass

    def kill_after_first(file: Path, text: str) -> None:
        write_json(file, text)
        raise Killed

    plan = study(place, tmp_path / "out", arms=("rollout", "draws"))
    monkeypatch.setattr(run, "write_json", kill_after_first)
    with pytest.raises(Killed):
        run_study(plan, jobs=1)
    assert (trained, list(stamps_of(plan.out))) == (["rollouts"], ["rollout-labels8-seed0.json"])
    monkeypatch.setattr(run, "write_json", write_json)
    units = run_study(plan, jobs=1)
    assert trained == ["rollouts"] * 2, "one training of each seed"
    assert list((plan.out / "runs").iterdir()) == []
    for unit in units:
        alone = json.loads((results["out"] / "units" / f"{unit.arm}-labels8-seed{unit.seed}.json").read_text())
        assert unit.model_dump(mode="json")["answers"]["test"][unit.arm] == alone["answers"]["test"][unit.arm]


def test_bytes_and_seconds_count_what_an_arm_reads(results: dict[str, Any]) -> None:
    arms = results["arms"]
    assert arms["rollout"]["bytes"] == arms["better"]["bytes"] == 4 * arms["still"]["bytes"]
    assert arms["draws"]["bytes"] == 10 * arms["still"]["bytes"]  # frame 0, and three frames of each draw
    assert arms["still"]["rollout_seconds"] == 0.0


def test_an_arm_that_reads_fewer_steps_or_draws_is_counted_so(place: Path, tmp_path: Path) -> None:
    save_mini_draws(tmp_path / "draws", scenes=SCENES, seconds=1.5)
    two = {"draws": 2, "draws_store": tmp_path / "draws"}
    arms: dict[str, Any] = {"short": {"train": {"steps": 1}}, "now": {"train": {"steps": 0}}, "two": two}
    plan = study(place, tmp_path, arms=("rollout", *arms), table=table(place, arms=arms, hypotheses={}))
    frame = price(plan, "rollout")["bytes"] // 4
    assert price(plan, "short")["bytes"] == 2 * frame
    assert price(plan, "now") == {"bytes": frame, "rollout_seconds": 0.0}
    assert price(plan, "two") == {"bytes": 7 * frame, "rollout_seconds": 1.0}  # of three draws two are used


def test_plots_against_a_cost_have_plain_numbers_at_their_axes(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "png", lambda figure: drawn.append(figure) or b"")
    costs = {"rollout": 0.05, "better": 0.0, "draws": 1.4, "still": 0.0}
    arms = {arm: {**facts, "rollout_seconds": costs[arm]} for arm, facts in results["arms"].items()}
    assert {"bytes.png", "seconds.png"} <= plots.draw({**results, "arms": arms}).keys()
    for figure in drawn:
        figure.draw_without_rendering()
        names = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
        assert names, "an axis without numbers"
        assert not any("$" in name for name in names), "a formula, which a plot shows as it is"
    seconds = next(figure for figure in drawn if "seconds" in figure.axes[0].get_xlabel())
    assert [label.get_text() for label in seconds.axes[0].get_xticklabels()] == ["0", "0.1", "1"]


@pytest.mark.parametrize(
    ("costs", "least", "ticks"),
    [
        ([0, 0.01, 1.4], 0.01, [0, 0.01, 0.1, 1]),
        ([2, 5, 9], 2, [2, 9]),
        ([0, 0.012, 0.05], 0.012, [0, 0.012, 0.05]),
        ([0, 3], 3, [0, 3]),
    ],
)
def test_an_axis_of_costs_has_numbers_whatever_they_are(costs: list[float], least: float, ticks: list[float]) -> None:
    assert cost_ticks(costs) == (least, pytest.approx(ticks))


def test_an_arm_that_a_file_states_has_a_color_of_its_own_on_the_page(results: dict[str, Any]) -> None:
    arms = ["rollout", "frozen", "noise", "shuffled", "true", "one", "two", "three", "four", "five", "six", "seven"]
    study = {"study": {**results["study"], "arms": arms}}
    assert len({page_color_of(study, arm) for arm in arms}) == len({plot_color_of(study, arm) for arm in arms}) == 12
    more = {"study": {**results["study"], "arms": [*arms, "eight"]}}  # than there are colors
    assert all(f".c{page_color_of(more, arm)} {{" in STYLE for arm in more["study"]["arms"])


def test_arms_that_a_file_states_can_be_told_apart_without_color(results: dict[str, Any]) -> None:
    arms = ["one", "two", "three", "four", "five", "six", "seven"]
    study = {"study": {**results["study"], "arms": arms}}
    assert (
        len({plot_marker_of(study, arm) for arm in arms}) == len({str(plot_line_of(study, arm)) for arm in arms}) == 7
    )
    inks = [page_color_of(study, arm) for arm in arms]
    # all at one place, so that only their shapes differ
    dots = plot("", "", [Curve("", [Point(0.5, 0.5)], ink, line=False) for ink in inks], x_label="")
    lines = plot("", "", [Curve("", [Point(0, 0), Point(1, 1)], ink, dots=False) for ink in inks], x_label="")
    assert len(set(re.findall(r'<g class="c\d+"><polygon class="fill" points="([^"]+)"', dots))) == 7
    assert len(set(re.findall(r'<polyline class="curve"[^>]* stroke-dasharray="([^"]+)"', lines))) == 7


def test_a_study_is_judged_on_the_hypotheses_it_states(results: dict[str, Any]) -> None:
    verdicts = {name: h["verdict"] for name, h in results["hypotheses"].items()}
    assert verdicts.keys() == {"S1", "S2", "S3", "S4", "S5"}
    assert verdicts["S4"] == "not tested"
    assert "no arm true" in results["hypotheses"]["S4"]["why"]
    assert results["hypotheses"]["S1"]["claim"] == "temporal: better > rollout"
    assert results["hypotheses"]["S2"]["claim"] == "temporal: draws > rollout - 50 points"
    assert results["hypotheses"]["S2"]["p_holm"] >= results["hypotheses"]["S2"]["p"]
    assert verdicts["S3"] == "supported"


def test_a_hypothesis_may_be_about_the_scenes_whose_rollout_ends_wrong(place: Path, results: dict[str, Any]) -> None:
    found = results["hypotheses"]["S5"]
    assert found["claim"] == "temporal, rollout ends wrong: better > still - 90 points"
    gain = results["by_outcome"]["wrong"]["better"]["value"] - results["by_outcome"]["wrong"]["still"]["value"]
    assert found["figures"]["gain"]["value"] == pytest.approx(gain)
    assert results["by_outcome"]["wrong"]["questions"] == 2
    plan = study(place, results["out"])
    unknown = find(plan, run_study(plan, jobs=1))
    assert unknown.results["hypotheses"]["S5"]["why"] == "no --outcomes were given"
    with pytest.raises(ValueError, match="ends is about how rollouts end"):
        table(place, hypotheses={"S": {"claim": "better", "arm": "a", "than": "b", "type": "static", "ends": "wrong"}})


def test_how_often_rollouts_must_end_right_weighs_what_they_gain_against_what_they_cost() -> None:
    right, wrong = np.array([0.4, 0.4, -0.1, 0.2, -0.1, 0.0]), np.array([-0.1, 0.1, -0.1, -0.2, 0.3, 0.0])
    assert share_needed(right, wrong).tolist() == pytest.approx([0.2, 0.0, np.inf, 0.5, 0.0, 0.0])


def test_an_arm_that_became_another_is_trained_again_and_the_others_are_kept(
    place: Path, results: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(results["out"], tmp_path / "evidence2")
    before = stamps_of(out)
    other = table(place, arms={"better": {"store": place / "rollouts"}}, hypotheses={})
    run_study(study(place, out, arms=("rollout", "better"), table=other), jobs=1)
    assert changed(before, out) == {"better-labels8-seed0.json", "better-labels8-seed1.json"}
    assert "comes from something else, and is trained again: store recipe" in caplog.text
    again = stamps_of(out)
    run_study(study(place, out, arms=("rollout", "better"), table=other), jobs=1)
    assert changed(again, out) == set()


def test_a_built_in_arm_that_is_given_a_table_is_trained_again_only_if_it_reads_something_else(
    place: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    out = shutil.copytree(results["out"], tmp_path / "evidence2")
    before = stamps_of(out)
    same = table(place, arms={"rollout": {}}, hypotheses={})
    run_study(study(place, out, arms=("rollout",), table=same), jobs=1)
    assert changed(before, out) == set()
    other = table(place, arms={"rollout": {"train": {"learning_rate": 1e-3}}}, hypotheses={})
    run_study(study(place, out, arms=("rollout",), table=other), jobs=1)
    assert changed(before, out) == {"rollout-labels8-seed0.json", "rollout-labels8-seed1.json"}


def test_answers_taken_elsewhere_make_the_same_page_without_training(
    place: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(results["out"] / "units", tmp_path / "evidence2" / "units")
    before = stamps_of(tmp_path / "evidence2")
    plan = study(place, tmp_path / "evidence2")
    findings = find(plan, run_study(plan, jobs=1), outcomes=OUTCOMES)
    assert changed(before, tmp_path / "evidence2") == set()
    ours = json.loads(findings.to_json())
    assert {name for name in ours if ours[name] != json.loads(json.dumps(results[name]))} <= {"created"}


def test_answers_to_other_questions_are_not_used(
    place: Path, results: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(results["out"] / "units", tmp_path / "evidence2" / "units")
    before = stamps_of(tmp_path / "evidence2")
    lines = (place / "questions.jsonl").read_text().splitlines(keepends=True)
    fewer = place / "fewer.jsonl"
    fewer.write_text("".join(lines[:-1]))
    plan = study(place, tmp_path / "evidence2", arms=("still",))
    plan = dataclasses.replace(plan, settings=plan.settings.model_copy(update={"questions": fewer}), seeds=1)
    run_study(plan, jobs=1)
    assert changed(before, tmp_path / "evidence2") == {"still-labels8-seed0.json"}
    assert "questions_sha256" in caplog.text
    assert "store keys_sha256" in caplog.text


def test_answers_of_an_earlier_version_are_set_aside_where_nothing_says_what_they_come_from(
    place: Path, results: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(results["out"], tmp_path / "evidence2")
    for file in (out / "units").iterdir():
        unit = json.loads(file.read_text())
        file.write_text(json.dumps({name: value for name, value in unit.items() if name != "provenance"}))
    before = stamps_of(out)
    run_study(study(place, out), jobs=1)
    assert changed(before, out) == set()  # study.json speaks for them
    other = table(place, arms={"rollout": {"train": {"learning_rate": 1e-3}}}, hypotheses={})
    run_study(study(place, out, arms=("rollout",), table=other), jobs=1)
    assert "rollout-labels8-seed0.json.old does not say what it comes from" in caplog.text
    assert json.loads((out / "units" / "rollout-labels8-seed0.json").read_text())["provenance"]


def test_arms_of_other_world_tokens_are_refused_before_anything_is_trained(place: Path, tmp_path: Path) -> None:
    wide = table(place, arms={"wide": {"train": {"patch": 1}}}, hypotheses={})
    with pytest.raises(ConfigError, match=r"world_tokens = 24, and these arms read another number: wide \d+\. Give"):
        run_study(study(place, tmp_path, arms=("rollout", "wide"), table=wide))
    fewer = table(place, arms={"draws": {"draws": 8, "draws_store": place / "draws"}}, hypotheses={})
    with pytest.raises(ConfigError, match=r"^\[study\.arms\.draws\]: .* holds 3 draws .* and 8 are asked for"):
        run_study(study(place, tmp_path, arms=("draws",), table=fewer))
    mixed = {"draws": {"store": place / "better", "draws": 2, "draws_store": place / "draws"}}
    with pytest.raises(StoreMismatchError, match="the arm draws was trained on latents of another recipe"):
        run_study(study(place, tmp_path, arms=("draws",), table=table(place, arms=mixed, hypotheses={})))
    lost = table(place, arms={"lost": {"store": place / "nowhere"}}, hypotheses={})
    with pytest.raises(StoreNotFoundError, match=r"^\[study\.arms\.lost\]: .*nowhere does not exist"):
        run_study(study(place, tmp_path, arms=("lost",), table=lost))
    assert list(tmp_path.iterdir()) == []


def test_a_hypothesis_about_an_arm_that_is_not_compared_is_told_before_the_training(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = table(place, hypotheses={"S9": {"claim": "better", "arm": "rollout", "than": "frozen"}})
    check_study(study(place, tmp_path, table=about), Progress.to_logger())
    assert "S9 (temporal: rollout > frozen) is not tested: no arm frozen in --arms" in caplog.text


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"arms": {"a": {"draws": 4}}}, "draws and draws_store go together"),
        ({"arms": {"a": {"shows": "dreams"}}}, "there is no arm 'dreams'"),
        ({"arms": {"a": {"train": {"seed": 1}}}}, "train sets seed, which the study decides"),
        ({"arms": {"a": {"train": {"max_bad": 1}}}}, "train sets max_bad, which the study decides"),
        ({"arms": {"questions": {}}}, "no arm can be called questions"),
        ({"hypotheses": {"S": {"claim": "better", "arm": "a", "than": "a"}}}, "a is compared with itself"),
        ({"hypotheses": {"S": {"claim": "better", "arm": "a", "than": "b", "margin": 0.1}}}, "leave margin out"),
        ({"arms": {"a": {"train": {"pach": 1}}}}, "train sets pach, which is no setting"),
        ({"arms": {"a/b": {}}}, "a name has small letters"),
        ({"arms": {"a": {"store": "/etc"}}}, r"study\.arms\.a.*only what lies in the working folder"),
        ({"arms": {"a": {"draws": 2, "draws_store": "../x"}}}, "only what lies in the working folder"),
        ({"claims": {}}, r"c\.toml, \[study\]"),
    ],
)
def test_a_wrong_table_says_where_and_what(stated: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_study_table(stated, where="c.toml")


def test_an_arm_without_a_table_must_be_a_built_in_one(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no arm 'dreams'"):
        study(place, tmp_path, arms=("dreams",))
    about = table(place, hypotheses={"S1": {"claim": "better", "arm": "rollout", "than": "dreams"}})
    with pytest.raises(ConfigError, match=r"study\.hypotheses\.S1.*no arm 'dreams'"):
        study(place, tmp_path, table=about)


def test_the_file_of_the_second_study_states_its_arms_at_equal_tokens_and_its_hypotheses() -> None:
    stated = parse_study_table(read_table(CONFIGS / "study2.toml", "study"), where="study2.toml")
    names = "frozen noise shuffled one rollout hidden16 hidden64 draws doubt regression true"
    assert stated.arms.keys() == set(names.split())
    assert stated.world_tokens == 36
    assert shown_of("one", stated.arms["one"]) == "rollout"
    assert shown_of("doubt", stated.arms["doubt"]) == "doubt"
    made = re.search(r"^ARMS2 := (.*)$", (CONFIGS.parent / "Makefile").read_text(), re.MULTILINE)
    assert made is not None
    assert made[1].split(",") == names.split(), "make evidence2 runs other arms"
    page = (CONFIGS.parent / "docs" / "hypotheses2.md").read_text()
    assert all(f"**{name}**" in page for name in stated.hypotheses)
    assert all(name in stated.arms for h in stated.hypotheses.values() for name in (h.arm, h.than))


def test_the_file_of_the_open_family_names_the_stores_and_arms_that_make_makes() -> None:
    stated = parse_study_table(read_table(CONFIGS / "open_family.toml", "study"), where="open_family.toml")
    makefile = (CONFIGS.parent / "Makefile").read_text().replace("$(OPEN)", "open")
    made = re.search(r"^ARMS_OPEN := (.*)$", makefile, re.MULTILINE)
    assert made is not None
    assert made[1].split(",") == list(stated.arms)
    stores = {place for arm in stated.arms.values() for place in (arm.store, arm.draws_store) if place}
    assert len(stores) == 3
    assert all(f"--cache {place}\n" in makefile for place in stores)


def test_the_command_takes_the_arms_of_the_file(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    config = tmp_path / "c.toml"
    lines = ["[train]", "batch_size = 4", "lora_rank = 2", "patch = 2", "max_world_steps = 4"]
    lines += ["[study.arms.better]", 'store = "better"', "[study.arms.frozen]"]
    config.write_text("\n".join(lines) + "\n")
    command = ["study", "rollouts", "--questions", "questions.jsonl", "--lm", "lm", "--device", "cpu", "--jobs", "1"]
    command += ["--labels", "4", "--seeds", "1", "--train-steps", "2", "--out", str(tmp_path / "out")]
    done = theworld(*command, "--config", str(config))
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "out" / "units").iterdir()}
    assert names == {"better-labels4-seed0.json", "frozen-labels4-seed0.json"}


def test_a_study_of_the_embedded_world_whose_latents_cannot_be_drawn_has_its_page_all_the_same(
    place: Path, tmp_path: Path
) -> None:
    world = resolve_world(None).identity
    own = create_store(tmp_path / "own", RECIPE.model_copy(update={"world": world}), SPEC, label="mini", shard_size=64)
    with own.new_shard() as shard:
        for number in range(SCENES):
            shard.add(key_of_bytes(f"picture {number}".encode()), blob_latents(place_of(number), number))
        shard.commit({})
    shutil.copytree(place, tmp_path / "scenes", ignore=shutil.ignore_patterns("lm"))
    (tmp_path / "scenes" / "scenes.jsonl").touch()
    command = ["study", str(tmp_path / "own"), "--questions", str(tmp_path / "scenes" / "questions.jsonl")]
    command += ["--lm", str(place / "lm"), "--device", "cpu", "--jobs", "1", "--arms", "rollout,frozen"]
    command += ["--labels", "4", "--seeds", "1", "--train-steps", "2", "--batch-size", "4", "--lora-rank", "2"]
    done = theworld(*command, "--patch", "2", "--max-world-steps", "4", "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "no scenes are drawn" in done.err
    assert (tmp_path / "out" / "index.html").exists()
