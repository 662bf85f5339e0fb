"""One reader, several numbers of steps: every layout trains and comes back, and ways of choosing steps are compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from tests.miniatures.lm import RECIPE, SMALL_TRAINING, SPEC, blob_latents, save_mini_lm, save_mini_store
from tests.miniatures.study import place_of, save_mini_study
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, QuestionError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.store.folder import create_store, open_store
from theworld.train.config import TrainConfig
from theworld.train.evaluation.answer import ask
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.evaluation.live_answer import answer_live
from theworld.train.evaluation.policies.adaptive import ADAPTIVE, Adaptive, Policy, compare_policies
from theworld.train.evaluation.policies.gates import parse_rule
from theworld.train.reader.layouts import LAYOUTS
from theworld.train.runs.folder import load_run
from theworld.train.runs.meta import read_meta
from theworld.train.training.schedule import draw_steps
from theworld.train.training.train import train

RULE = "static=0"


def settings(place: Path, **changes: object) -> TrainConfig:
    chosen: dict[str, object] = {
        "store": place / "rollouts",
        "questions": place / "questions.jsonl",
        "lm": str(place / "lm"),
        "train_steps": 2,
        **SMALL_TRAINING,
        **changes,
    }
    return TrainConfig.model_validate(chosen)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts of 16 training and 16 test scenes, and two futures of each image; one learned 8 of the former."""
    folder = tmp_path_factory.mktemp("house")
    save_mini_lm(folder / "lm")
    save_mini_study(folder, train=16, test=16, ood=0)
    recipe = RECIPE.model_copy(update={"kind": "samples", "draws": 2, "rollout_steps": 6})
    store = create_store(folder / "draws", recipe, SPEC, label="mini", shard_size=64)
    with store.new_shard() as shard:
        for number in range(32):
            end = place_of(number)
            one, two = blob_latents(end, number), blob_latents((end + number // 4 % 2) % 2, number)
            shard.add(key_of_bytes(f"picture {number}".encode()), np.concatenate([one, two[:, 1:]], 1))
        shard.commit({})
    train(settings(folder, steps="0,3", labels=8, train_steps=60, learning_rate=5e-3, out=folder / "run"))
    return folder


@pytest.fixture(scope="module")
def compared(place: Path) -> Adaptive:
    return compare_policies(place / "run", parse_rule(RULE), draws=place / "draws", device="cpu")


def policy(found: Adaptive, name: str) -> Policy:
    return next(one for one in found.policies if one.name.startswith(name))


def test_a_run_of_mixed_steps_was_fed_what_its_seed_and_updates_say(place: Path) -> None:
    train(settings(place, steps="0,3", train_steps=6, out=place / "mixed"))
    metrics, meta = json.loads((place / "mixed" / "metrics.json").read_text()), read_meta(place / "mixed")
    assert (meta.config["steps_drawn"], meta.reader.num_world_steps) == ([0, 3], 3)
    train(settings(place, steps=0, train_steps=6, out=place / "still"))
    still = json.loads((place / "still" / "metrics.json").read_text())
    longer = [draw_steps((0, 3), 0, update) for update in range(6)].count(3)
    assert 0 < longer < 6
    assert metrics["tokens"] - still["tokens"] == longer * 4 * 18  # rows, and the tokens of three frames of 6
    assert metrics["supervised_tokens"] == still["supervised_tokens"]


def test_the_comparison_says_what_it_is_of(place: Path, compared: Adaptive) -> None:
    meta = read_meta(place / "run")
    assert (compared.run, compared.split, compared.rule) == (str(place / "run"), "test", RULE)
    assert (compared.steps, compared.trained_steps) == (meta.reader.num_world_steps, (0, 3))
    assert len(compared.questions) == len(set(compared.questions)) == 32
    assert compared.notes == ()


def test_never_and_always_are_what_an_evaluation_at_these_steps_says(place: Path, compared: Adaptive) -> None:
    always, never = evaluate(place / "run", device="cpu"), evaluate(place / "run", steps=0, device="cpu")
    assert policy(compared, "always").overall == always.overall
    assert policy(compared, "never").overall == never.overall
    assert policy(compared, "always").by_type == always.by_type


def test_a_rule_takes_each_type_s_answers_from_its_steps_and_pays_for_no_more(compared: Adaptive) -> None:
    rule, always, never = (policy(compared, name) for name in ("rule", "always", "never"))
    assert rule.by_type["temporal"] == always.by_type["temporal"]
    assert rule.by_type["static"] == never.by_type["static"]
    assert (never.world_tokens, rule.world_tokens, always.world_tokens) == (6, 15, 24)
    assert (never.rollouts, rule.rollouts, always.rollouts, compared.images) == (0, 16, 16, 16)
    assert dict(zip(compared.questions, rule.steps, strict=True))["test-16-now"] == 0


def test_no_choice_between_the_two_beats_the_oracle_and_it_reads_only_what_helps(compared: Adaptive) -> None:
    oracle = policy(compared, "oracle")
    assert all(one.overall.correct <= oracle.overall.correct for one in compared.policies)
    assert oracle.lost_to_always == 0
    assert sum(k > 0 for k in oracle.steps) == oracle.overall.correct - policy(compared, "never").overall.correct


def test_gates_are_calibrated_on_scenes_that_were_neither_learned_nor_asked(compared: Adaptive) -> None:
    assert compared.calibration == "8 scenes of split train that the training did not use"
    for name in ("confidence", "agreement"):
        gate = policy(compared, name).gate
        assert gate is not None
        assert gate.questions == 16
        assert gate.gated >= max(gate.never, gate.always if name == "confidence" else 0)
    assert policy(compared, "agreement").rollouts == 2 * 16  # both futures of each image are judged
    assert {policy(compared, "agreement").steps[n] for n, name in enumerate(compared.questions) if "now" in name} == {0}


def test_the_comparison_lies_beside_the_run_and_the_command_prints_it(place: Path, compared: Adaptive) -> None:
    assert Adaptive.model_validate_json((place / "run" / ADAPTIVE).read_bytes()) == compared
    words = ["policies", str(place / "run"), "--rule", RULE, "--device", "cpu"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for piece in ("never", "always", "rule static=0", "confidence", "oracle", "16 of 16"):
        assert piece in done.stdout
    assert "no gate on agreement" in done.stderr
    as_json = json.loads(CliRunner().invoke(app, [*words, "--draws", str(place / "draws"), "--json"]).stdout)
    assert as_json == [compared.model_dump(mode="json")]


def test_what_cannot_be_compared_is_refused_with_what_can(place: Path) -> None:
    for words, told in (
        (["--rule", "static=9"], "at most 3"),
        (["--rule", "static"], "static=0"),
        (["--calibrate", "test"], "flatters itself"),
        (["--draws", str(place / "rollouts")], "--kind samples"),
    ):
        done = CliRunner().invoke(app, ["policies", str(place / "run"), "--device", "cpu", *words])
        assert isinstance(done.exception, ConfigError), words
        assert told in str(done.exception)


def test_questions_that_cannot_be_asked_are_left_out_up_to_max_bad(place: Path, tmp_path: Path) -> None:
    lines = (place / "questions.jsonl").read_text().splitlines()
    gone = {**json.loads(lines[-1]), "id": "gone", "image": "gone.png", "image_sha256": None, "split": "test"}
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join([*lines, json.dumps(gone), "no question"]))
    words = ["policies", str(place / "run"), "--rule", RULE, "--device", "cpu", "--questions", str(file), "--json"]
    (place / "run" / ADAPTIVE).rename(tmp_path / ADAPTIVE)
    try:
        refused = CliRunner().invoke(app, words)
        assert isinstance(refused.exception, QuestionError)
        assert "--max-bad 1" in str(refused.exception)
        done = CliRunner().invoke(app, [*words, "--max-bad", "1"])
        assert done.exit_code == 0, (done.output, done.exception)
        [said] = json.loads(done.stdout)
        assert "gone" not in said["questions"]
        assert said["questions"]
    finally:
        (tmp_path / ADAPTIVE).replace(place / "run" / ADAPTIVE)


class Eyes:
    """Latents of one test scene, and how far they were asked for."""

    def __init__(self, place: Path) -> None:
        store = open_store(place / "rollouts")
        self.latents = torch.from_numpy(store.read(store.keys[20:21]))
        self.asked: list[int] = []

    def __call__(self, steps: int) -> torch.Tensor:
        self.asked.append(steps)
        return self.latents[:, :, : 1 + steps]


CHOICES = ("left", "right")


def with_threshold(run: Path, compared: Adaptive, threshold: float | None) -> None:
    """As if calibration had found this one."""
    policies = tuple(
        one.model_copy(update={"gate": one.gate.model_copy(update={"reads_up_to": threshold})})
        if one.gate is not None and one.name == "confidence"
        else one
        for one in compared.policies
    )
    (run / ADAPTIVE).write_text(compared.model_copy(update={"policies": policies}).model_dump_json())


@pytest.mark.parametrize(("threshold", "asked"), [(None, [0]), (0.0, [0]), (1.0, [0, 3])])
def test_a_gate_rolls_out_only_where_the_answer_without_is_not_sure(
    place: Path, compared: Adaptive, threshold: float | None, asked: list[int]
) -> None:
    with_threshold(place / "run", compared, threshold)
    try:
        loaded, eyes = load_run(place / "run", device="cpu"), Eyes(place)
        done = answer_live(loaded, eyes, "where will the ball land?", CHOICES, adaptive="gate")
        assert eyes.asked == asked
        assert done.steps == asked[-1] == done.latents.shape[2] - 1
        assert done.answer == ask(loaded, eyes.latents, "where will the ball land?", CHOICES, steps=done.steps)
        assert done.why is not None
        assert ("never" if threshold is None else f"up to {threshold:.3f}") in done.why
        own_words = answer_live(loaded, Eyes(place), "where will the ball land?", adaptive="gate")
        assert own_words.steps == (0 if threshold is None else 3)
    finally:
        (place / "run" / ADAPTIVE).write_text(compared.model_dump_json())


def test_a_rule_says_the_steps_of_a_question_by_its_type(place: Path) -> None:
    loaded = load_run(place / "run", device="cpu")
    for kind, asked in (("static", 0), ("temporal", 3), (None, 3)):
        eyes = Eyes(place)
        done = answer_live(loaded, eyes, "what color is the ball?", CHOICES, adaptive=RULE, type=kind)
        assert (eyes.asked, done.steps) == ([asked], asked)
        assert f"of type {kind or 'untyped'}" in (done.why or "")


def test_a_run_without_a_gate_says_how_to_make_one(place: Path) -> None:
    train(settings(place, out=place / "ungated"))
    loaded = load_run(place / "ungated", device="cpu")
    with pytest.raises(ConfigError, match=r"holds no gate.*theworld policies .*ungated --rule"):
        answer_live(loaded, Eyes(place), "where?", CHOICES, adaptive="gate")
    for words, told in (
        ({"adaptive": "gate", "steps": 0}, "leave out --steps"),
        ({"adaptive": "static=9", "type": "static"}, "at most 3"),
        ({"type": "static"}, "add --adaptive"),
        ({"adaptive": "gate", "type": "static"}, "Leave it out"),
    ):
        with pytest.raises(ConfigError, match=told):
            answer_live(loaded, Eyes(place), "where?", CHOICES, **words)


@pytest.mark.parametrize(
    ("kind", "pool_steps", "told"),
    [("draws", 2, "2 draws of 3 steps.*divisor of 3"), ("views", 3, "views of one picture.*--pool-steps 1")],
)
def test_what_does_not_follow_one_another_is_not_pooled(
    place: Path, tmp_path: Path, kind: str, pool_steps: int, told: str
) -> None:
    store, questions = place / "draws", place / "questions.jsonl"
    if kind == "views":
        recipe = RECIPE.model_copy(update={"kind": "views", "views": "zoom"})
        made, questions = save_mini_store(tmp_path / "views", recipe=recipe)
        store = made.path
    with pytest.raises(ConfigError, match=told):
        train(settings(place, store=store, questions=questions, pool_steps=pool_steps, max_world_steps=6))
    if kind == "draws":
        train(settings(place, store=store, pool_steps=3, max_world_steps=6, out=tmp_path / "run"))


def test_a_reader_that_never_saw_so_few_steps_is_told_and_one_without_held_out_scenes_has_no_gates(
    place: Path,
) -> None:
    train(settings(place, out=place / "plain"))
    found = compare_policies(place / "plain", parse_rule(RULE), device="cpu")
    assert [one.name for one in found.policies] == ["never", "always", "rule static=0", "oracle"]
    assert any("never read 0" in note and "--steps 0,3" in note for note in found.notes)
    assert any("--calibrate" in note for note in found.notes)
    with pytest.raises(ConfigError, match=r"all scenes of split 'train', none is left"):
        compare_policies(place / "plain", parse_rule(RULE), calibrate="train", device="cpu")
    of_some = compare_policies(place / "run", parse_rule(RULE), calibrate="train", device="cpu")
    assert of_some.calibration == "8 scenes of split train that the training did not use"


def test_questions_in_a_folder_are_asked_and_as_many_left_out_as_in_an_evaluation(place: Path) -> None:
    lines = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    rows = [{name: line[name] for name in ("id", "question", "answer", "choices", "type", "split")} for line in lines]
    rows = [{**row, "image": str(place / line["image"])} for row, line in zip(rows, lines, strict=True)]
    (place / "tables").mkdir()
    gone = {**rows[-1], "id": "gone", "image": "gone.png"}
    Dataset.from_list([gone, *rows]).to_parquet(place / "tables" / "a.parquet")
    train(settings(place, questions=place / "tables", labels=8, max_bad=1, out=place / "of-tables"))
    with pytest.raises(QuestionError, match=r"1 of 33 questions .*gone\.png"):
        compare_policies(place / "of-tables", parse_rule(RULE), max_bad=0, device="cpu")
    found = compare_policies(place / "of-tables", parse_rule(RULE), device="cpu")
    assert (len(found.questions), found.calibration) == (32, "8 scenes of split train that the training did not use")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reader_of_every_layout_trains_saves_and_answers_from_its_folder(place: Path, layout: str) -> None:
    out = place / layout
    summary = train(settings(place, layout=layout, patch=1, queries=5, steps="0,3", out=out))
    count = {"spatial": 96, "patch": 96, "pooled": 72, "hierarchical": 54, "channel": 64, "resampler": 5}[layout]
    assert summary.world_tokens == count
    loaded, store = load_run(out, device="cpu"), open_store(place / "rollouts")
    latents = torch.from_numpy(store.read(store.keys[:1]))
    for steps in (0, 3):
        assert ask(loaded, latents, "where will the ball land?", ["left", "right"], steps=steps).text
