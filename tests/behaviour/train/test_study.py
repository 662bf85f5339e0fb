"""A study trains every arm under one budget, asks it once, and goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.command_line import theworld
from tests.miniatures.lm import SMALL_TRAINING, save_mini_lm
from tests.miniatures.study import save_mini_study
from theworld.pipeline.errors import ConfigError, QuestionError, RunError, StoreLockedError
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import open_store
from theworld.train.config import TrainConfig
from theworld.train.data.arms import open_arm, parse_arm
from theworld.train.data.batches import encode, pad_rows
from theworld.train.evaluation.answering.many import answer_all
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.evaluation.results.compare import require_one_file
from theworld.train.evaluation.results.saved import read_evaluation
from theworld.train.questions.record import read_questions, select_split
from theworld.train.runs.folder import load_run
from theworld.train.runs.meta import read_meta
from theworld.train.study.folder import claim
from theworld.train.study.plan import Study, Unit
from theworld.train.study.run import run_study
from theworld.train.training.train import train


def settings(place: Path, **changes: object) -> TrainConfig:
    chosen: dict[str, object] = {
        "store": place / "rollouts",
        "futures": place / "futures",
        "questions": place / "questions.jsonl",
        "lm": str(place / "lm"),
        "train_steps": 2,
        **SMALL_TRAINING,
        **changes,
    }
    return TrainConfig.model_validate({name: value for name, value in chosen.items() if value is not None})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    save_mini_lm(folder / "lm")
    save_mini_study(folder, train=8, test=8, ood=8)
    return folder


def study(place: Path, out: Path, *, arms: tuple[str, ...] = ("steps0", "rollout"), **changes: object) -> Study:
    return Study(arms=arms, labels=(4,), seeds=1, settings=settings(place, **changes), out=out)


def units_of(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "units").iterdir()}


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evidence")
    run_study(study(place, out), jobs=1)
    return out


def test_a_study_leaves_answers_and_no_run_folders(place: Path, finished: Path) -> None:
    assert units_of(finished).keys() == {"steps0-labels4-seed0.json", "rollout-labels4-seed0.json"}
    assert list((finished / "runs").iterdir()) == []
    [steps0, rollout] = run_study(study(place, finished), jobs=1)
    assert steps0.answers.keys() == rollout.answers.keys() == {"test", "ood"}
    assert steps0.answers["test"].keys() == {"steps0"}
    assert rollout.answers["test"].keys() == {"rollout", "frozen", "shuffled", "true", "noise", "reversed"}
    assert rollout.answers["ood"].keys() == {"rollout"}
    assert all(len(said) == 16 for said in rollout.answers["test"].values())
    assert (rollout.train["train_steps"], rollout.train["world_tokens"], steps0.train["world_tokens"]) == (2, 24, 6)
    assert rollout.train["train_steps"] == steps0.train["train_steps"]


def test_a_second_run_trains_only_what_is_missing_and_gives_the_same_answers(place: Path, finished: Path) -> None:
    before, answers = units_of(finished), run_study(study(place, finished), jobs=1)
    (finished / "units" / "steps0-labels4-seed0.json").unlink()
    again = run_study(study(place, finished), jobs=1)
    assert [unit.answers for unit in again] == [unit.answers for unit in answers]
    after = units_of(finished)
    assert {name for name in after if after[name] != before[name]} == {"steps0-labels4-seed0.json"}


def test_a_folder_belongs_to_one_study(place: Path, finished: Path) -> None:
    with pytest.raises(RunError, match=r"another study: budget .*'train_steps': 2.*'train_steps': 3.*another --out"):
        run_study(study(place, finished, train_steps=3))


def test_a_study_older_than_a_setting_goes_on_with_its_default(place: Path, finished: Path) -> None:
    before, file = units_of(finished), finished / "study.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "budget": {k: v for k, v in facts["budget"].items() if k != "max_bad"}}))
    run_study(study(place, finished), jobs=1)
    assert units_of(finished) == before
    assert json.loads(file.read_text()) == facts


@pytest.mark.parametrize(("said", "words"), [("answer", "has no token for .*purple"), ("question", "too long")])
def test_a_study_whose_test_questions_cannot_be_answered_is_refused_before_it_trains(
    place: Path, tmp_path: Path, said: str, words: str
) -> None:
    lines = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if line["split"] == "test")
    wrong = {"answer": "purple", "choices": ["purple", "mauve"]} if said == "answer" else {"question": "left " * 4100}
    last |= wrong
    file = place / f"{said}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(QuestionError, match=words):
        run_study(study(place, tmp_path, questions=file))
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_work_in_one_folder(place: Path, finished: Path) -> None:
    import fcntl

    with (finished / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError, match="another"):
            run_study(study(place, finished))


def test_what_a_late_unit_would_stumble_over_is_found_before_the_first(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no arm 'futur'"):
        study(place, tmp_path, arms=("rollout", "futur"))
    with pytest.raises(ConfigError, match="--futures"):
        run_study(study(place, tmp_path, arms=("rollout", "true"), futures=None))
    with pytest.raises(QuestionError, match="9 labelled scenes are asked for, the questions have 8"):
        run_study(Study(arms=("rollout",), labels=(4, 9), seeds=1, settings=settings(place), out=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_labels_are_the_first_scenes_of_the_training_split_and_all_they_ask(place: Path, tmp_path: Path) -> None:
    summary = train(settings(place, labels=3, arm="last", out=tmp_path / "run"))
    assert (summary.questions, summary.world_tokens) == (6, 12)
    meta = read_meta(tmp_path / "run")
    assert (meta.config["arm"], meta.config["labels"], meta.reader.frames) == ("last", 3, (0, 3))
    assert evaluate(tmp_path / "run", device="cpu").arm == "last"


def test_a_reader_of_text_alone_says_the_same_of_every_scene(place: Path, tmp_path: Path) -> None:
    assert train(settings(place, arm="text", out=tmp_path / "run")).world_tokens == 0
    predictions = evaluate(tmp_path / "run", device="cpu").predictions
    assert len({p.predicted for p in predictions if p.id.endswith("land")}) == 1
    other = evaluate(tmp_path / "run", arm="text", split="ood", device="cpu")
    assert (tmp_path / "run" / "evaluation-ood.json").is_file()
    assert len(other.predictions) == 16


def test_choices_of_one_token_are_ranked_by_that_token_alone(place: Path, tmp_path: Path) -> None:
    train(settings(place, train_steps=20, out=tmp_path / "run"))
    loaded = load_run(tmp_path / "run", device="cpu")
    store, file = open_store(place / "rollouts"), place / "questions.jsonl"
    asked = select_split(read_questions(file), "test", file)
    keys, images = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
    said = answer_all(loaded, asked, keys, images, batch_size=5, progress=Progress.silent())
    for question, answer in zip(asked, said, strict=True):
        if not question.id.endswith("land"):  # one of the others' choices has three tokens
            continue
        scores: dict[str, float] = {}
        for choice in question.choices or ():
            row = encode(question, "", loaded.lm, answer=None)
            batch = pad_rows([[replace(row, answer=tuple(loaded.lm.answer_ids(choice)[:1]))]], 0)
            latents = torch.from_numpy(store.read([keys[question.id]]))
            scores[choice] = float(loaded.model.log_likelihood(**batch, latents=latents))
        assert answer.text == max(scores, key=lambda choice: scores[choice])


def test_the_middle_label_count_is_the_one_hypotheses_speak_of(place: Path, tmp_path: Path) -> None:
    def of(*labels: int) -> Study:
        return Study(arms=("rollout",), labels=labels, seeds=2, settings=settings(place), out=tmp_path)

    assert [of(4000, 250, 1000).primary, of(250, 1000).primary, of(7).primary] == [1000, 1000, 7]
    assert of(1, 2).units()[:3] == [
        Unit(arm="rollout", labels=1, seed=0),
        Unit(arm="rollout", labels=2, seed=0),
        Unit(arm="rollout", labels=1, seed=1),
    ]
    asked = of(1, 2).asked(Unit(arm="rollout", labels=1, seed=0), ["test", "ood"])
    assert asked == [("test", "rollout"), ("ood", "rollout")]


def test_arms_off_the_curve_are_trained_at_the_primary_label_count_alone(place: Path, tmp_path: Path) -> None:
    def of(*curve: str) -> Study:
        arms, labels = ("text", "rollout"), (250, 1000, 4000)
        return Study(arms=arms, labels=labels, curve=curve, seeds=1, settings=settings(place), out=tmp_path)

    assert [(unit.arm, unit.labels) for unit in of("rollout").units()] == [
        ("rollout", 250),
        ("text", 1000),
        ("rollout", 1000),
        ("rollout", 4000),
    ]
    with pytest.raises(ConfigError, match=r"frozen.*add to --arms"):
        of("frozen")


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_and_ends_as_one_that_is_not(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[train]\nbatch_size = 4\nlora_rank = 2\npatch = 2\nmax_world_steps = 4\n")
    command = ["study", "--arms", "text,frozen,rollout,true,true@0.5"]
    command += [str(place / "rollouts"), "--futures", str(place / "futures"), "--labels", "4,8"]
    command += ["--curve", "rollout,true"]
    command += ["--questions", str(place / "questions.jsonl"), "--seeds", "1", "--train-steps", "2"]
    command += ["--config", str(config), "--lm", str(place / "lm"), "--device", "cpu", "--out", str(tmp_path / "out")]
    process = [sys.executable, "-m", "theworld.pipeline.cli", *command, "--jobs", "2"]
    first = subprocess.Popen(process, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(4000):
            if len(list((tmp_path / "out" / "units").glob("*.json"))) >= 2:
                break
            time.sleep(0.1)
    finally:
        first.kill()  # the parent alone: its workers must not go on without it
        first.wait()
    kept = units_of(tmp_path / "out")
    assert 2 <= len(kept) < 7
    for _ in range(300):
        try:
            os.killpg(first.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(first.pid, signal.SIGKILL)
        pytest.fail("workers outlived the process that started them")
    done = theworld(*command, "--jobs", "1")  # in this process, which has loaded what it needs
    assert done.code == 0, done.err
    assert "of 7 units are there already" in done.err
    after = units_of(tmp_path / "out")
    assert len(after) == 7
    assert all(after[name] == stamp for name, stamp in kept.items() if name in after)
    assert "H1" in done.out
    assert "index.html" in done.out
    whole = run_study(
        Study(arms=("true",), labels=(8,), seeds=1, settings=settings(place), out=tmp_path / "alone"), jobs=1
    )
    resumed = json.loads((tmp_path / "out" / "units" / "true-labels8-seed0.json").read_text())
    assert [list(said) for said in whole[0].answers["test"].values()] == list(resumed["answers"]["test"].values())


def test_a_study_begun_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    now = {"budget": {"train_steps": 5, "pool": "minmax", "steps_drawn": None}, "futures": None}
    (tmp_path / "study.json").write_text(json.dumps({**now, "budget": {"train_steps": 5}}))
    claim(tmp_path, now)
    with pytest.raises(RunError, match="another study: budget"):
        claim(tmp_path, {**now, "budget": {**now["budget"], "pool": "mean"}})  # type: ignore[dict-item]


def test_a_reader_of_the_last_frame_reads_no_other(place: Path, tmp_path: Path) -> None:
    train(settings(place, arm="last", futures=None, out=tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"reads frames 0, 3 of a rollout and no others: pass --steps 3, or 0"):
        evaluate(tmp_path / "run", steps=2, device="cpu")
    assert evaluate(tmp_path / "run", steps=0, device="cpu").overall.total == 16


def test_steps_that_are_drawn_are_those_an_arm_can_show(place: Path, tmp_path: Path) -> None:
    summary = train(settings(place, arm="steps0", steps=[0, 3], futures=None, out=tmp_path / "run"))
    assert summary.train_steps == 2


def test_answers_to_other_questions_stand_beside_those_to_the_runs_own(place: Path, tmp_path: Path) -> None:
    for run in ("one", "other"):
        train(settings(place, out=tmp_path / run))
    some = place / "some.jsonl"
    some.write_text("".join((place / "questions.jsonl").read_text().splitlines(keepends=True)[:-4]))
    try:
        evaluate(tmp_path / "one", device="cpu")
        fewer = evaluate(tmp_path / "one", questions=some, split="ood", device="cpu")
        assert read_evaluation(tmp_path / "one").overall.total == 16
        [beside] = (tmp_path / "one").glob("evaluation-some-*-ood.json")
        assert fewer.questions_sha256.startswith(beside.stem.split("-")[2])
        train(settings(place, questions=some, out=tmp_path / "third"))
        require_one_file([tmp_path / "one", tmp_path / "other"])
        with pytest.raises(
            RunError, match=r"one learned from .*questions\.jsonl, .*third from .*some\.jsonl.*--questions"
        ):
            require_one_file([tmp_path / "one", tmp_path / "third"])
    finally:
        some.unlink()


def test_a_run_finds_its_futures_from_any_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    train(settings(place, arm="true", futures=Path("futures"), out=tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    assert evaluate(tmp_path / "run", device="cpu").overall.total == 16


def test_a_run_is_evaluated_in_the_dtype_it_was_trained_in(place: Path, tmp_path: Path) -> None:
    train(settings(place, dtype="bfloat16", out=tmp_path / "run"))
    assert load_run(tmp_path / "run", device="cpu").lm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    widened = load_run(tmp_path / "run", device="cpu", dtype="float32")
    assert widened.lm.model.get_input_embeddings().weight.dtype == torch.float32


def test_a_study_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(RunError, match="no JSON object"):
        claim(tmp_path, {})
