"""Ranking and own words are the same however questions are packed, and a reader can be shown something else."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.command_line import theworld
from tests.miniatures.lm import WORDS, save_mini_lm
from tests.miniatures.study import save_mini_study
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, QuestionError, RunError
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import open_store
from theworld.train.config import AnswerConfig, TrainConfig
from theworld.train.data.arms import open_arm, parse_arm
from theworld.train.data.batches import encode, pad_rows
from theworld.train.evaluation.answer import ask
from theworld.train.evaluation.answering import many
from theworld.train.evaluation.answering.many import Response, answer_all
from theworld.train.evaluation.draws import ask_draws
from theworld.train.evaluation.evaluate import evaluate, evaluate_shown
from theworld.train.evaluation.live_answer import answer_live
from theworld.train.evaluation.results.compare import compare_evaluations
from theworld.train.evaluation.results.rescore import rescored
from theworld.train.evaluation.results.saved import Evaluation, read_evaluation
from theworld.train.evaluation.session import _without_letters
from theworld.train.language.lm import LanguageModel
from theworld.train.questions.record import Question, read_questions, select_split
from theworld.train.runs.folder import load_run
from theworld.train.runs.meta import META, read_meta
from theworld.train.training.train import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, and a reader of its rollouts."""
    folder = tmp_path_factory.mktemp("house")
    save_mini_lm(folder / "lm")
    save_mini_study(folder, train=8, test=8, ood=8)
    config = {"store": folder / "rollouts", "questions": folder / "questions.jsonl", "lm": str(folder / "lm")}
    sizes = {"train_steps": 20, "batch_size": 4, "lora_rank": 2, "patch": 2, "max_world_steps": 4, "device": "cpu"}
    train(TrainConfig.model_validate({**config, **sizes, "futures": folder / "futures", "out": folder / "run"}))
    return folder


def said(place: Path, *, batch_size: int = 5, arm: str = "rollout") -> list[Response]:
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    asked = select_split(read_questions(file), "test", file)
    keys, images = open_arm(parse_arm(arm), store, asked, asked, file, rollout_steps=3)
    loaded = load_run(place / "run", device="cpu")
    return answer_all(loaded, asked, keys, images, batch_size=batch_size, progress=Progress.silent(), generate=True)


@pytest.mark.parametrize("arm", ["rollout", "text"])
def test_packing_changes_no_answer(place: Path, monkeypatch: pytest.MonkeyPatch, arm: str) -> None:
    packed = said(place, batch_size=64, arm=arm)
    monkeypatch.setattr(many, "_PACK", 1)
    monkeypatch.setattr(many, "_PACK_CHOICES", 1)
    alone = said(place, batch_size=3, arm=arm)
    assert [(one.text, one.generated) for one in packed] == [(one.text, one.generated) for one in alone]
    for one, other in zip(packed, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_choice_is_as_probable_as_its_tokens_and_the_end_together(place: Path) -> None:
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    asked = select_split(read_questions(file), "test", file)
    keys, _ = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
    loaded = load_run(place / "run", device="cpu")
    for question, one in zip(asked, said(place), strict=True):
        if not question.id.endswith("now"):  # the others' choices are single tokens, ranked by these alone
            continue
        row = encode(question, "", loaded.lm, answer=None)
        latents = torch.from_numpy(store.read([keys[question.id]]))
        sums = [
            float(loaded.model.log_likelihood(
                **pad_rows([[replace(row, answer=tuple(loaded.lm.answer_ids(choice)))]], 0), latents=latents
            ))
            for choice in question.choices or ()
        ]  # fmt: skip
        assert one.probabilities == pytest.approx(torch.tensor(sums).softmax(0).tolist(), abs=1e-5)


def test_a_question_asked_alone_has_the_probabilities_it_has_among_many(place: Path) -> None:
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    asked = select_split(read_questions(file), "test", file)
    keys, _ = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
    loaded = load_run(place / "run", device="cpu")
    for question, one in zip(asked, said(place), strict=True):
        latents = torch.from_numpy(store.read([keys[question.id]]))
        alone = ask(loaded, latents, question.question, question.choices)
        of = {choice.choice: choice.probability for choice in alone.ranked}
        assert alone.text == one.text
        assert [of[choice] for choice in question.choices or ()] == pytest.approx(one.probabilities, abs=1e-6)


def test_likelihoods_that_are_no_numbers_choose_nothing(place: Path) -> None:
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    asked = select_split(read_questions(file), "test", file)
    keys, images = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
    loaded = load_run(place / "run", device="cpu")
    with torch.no_grad():
        next(loaded.model.reader.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match=r"finds no likelihood for the choices of .*not finite"):
        answer_all(loaded, asked, keys, images, batch_size=4, progress=Progress.silent())


def a_word_a_token(_: LanguageModel, ids: Sequence[int]) -> str:
    """Control tokens included, which decoding leaves out."""
    return " ".join(map(str, ids))


def test_own_words_have_room_for_the_longest_answer_that_is_right(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    [first, *_] = select_split(read_questions(file), "test", file)
    loaded = load_run(place / "run", device="cpu")
    monkeypatch.setattr(LanguageModel, "end_ids", frozenset({-1}))  # it goes on and on
    monkeypatch.setattr(LanguageModel, "decode", a_word_a_token)
    for right, words in (("left", 16), ("left " * 30, 33)):
        asked = [first.model_copy(update={"choices": None, "answer": right.strip()})]
        keys, images = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
        [one] = answer_all(loaded, asked, keys, images, batch_size=4, progress=Progress.silent())
        assert len(one.text.split()) == words


def test_own_words_are_what_the_model_generates(place: Path) -> None:
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    asked = select_split(read_questions(file), "test", file)
    keys, images = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
    open_ended = [question.model_copy(update={"choices": None}) for question in asked]
    loaded = load_run(place / "run", device="cpu")
    free = answer_all(loaded, open_ended, keys, images, batch_size=4, progress=Progress.silent())
    for one, other in zip(said(place), free, strict=True):
        assert one.generated is not None
        assert other.text.startswith(one.generated)  # one that does not end is cut where it is no choice any more
    assert sum(one.generated == other.text for one, other in zip(said(place), free, strict=True)) > 2


def test_both_figures_are_reported_with_what_stands_behind_them(place: Path) -> None:
    outcomes = {f"test-{number}": number % 4 != 0 for number in range(8, 16)}
    result = evaluate(place / "run", device="cpu", outcomes=outcomes)
    assert result.generated is not None
    assert result.generated.total == result.overall.total == 16
    assert result.generated.correct == sum(bool(p.generated_correct) for p in result.predictions)
    assert set(result.calibration) == {"all", "rollout right", "rollout wrong"}
    assert (result.calibration["rollout right"].questions, result.calibration["rollout wrong"].questions) == (6, 2)
    assert (result.world_tokens, result.rollout_seconds) == (4 * 6, None)  # this store's records say no seconds
    assert result.pairs is not None
    assert result.pairs.total == 4
    assert result.balanced["temporal"].chance == 0.5
    saved = json.loads((place / "run" / "evaluation.json").read_text())
    assert saved["predictions"][0]["probabilities"]
    assert saved["version"] == 2


def test_own_words_are_left_out_where_nobody_wants_them(place: Path) -> None:
    both = evaluate(place / "run", device="cpu")
    words = ["evaluate", str(place / "run"), "--no-generate", "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    [ranked] = json.loads(done.stdout)
    assert (ranked["generated"], ranked["generated_by_type"]) == (None, {})
    assert {one["generated"] for one in ranked["predictions"]} == {None}
    for one, other in zip(ranked["predictions"], both.predictions, strict=True):
        assert (one["predicted"], one["probabilities"]) == (other.predicted, list(other.probabilities))


@pytest.mark.parametrize("words", [["evaluate"], ["ask", "photo.png", "where?"]])
def test_a_gpu_too_small_for_the_run_is_refused_before_weights_load(
    place: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("photo.png")
    command = [words[0], str(place / "run"), *words[1:], "--device", "cpu", "--memory", "0.6"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, ConfigError)
    assert "a GPU of 0.6 GiB is too small for" in str(done.exception)


def test_a_reader_is_shown_one_thing_after_another_without_training(place: Path) -> None:
    found = evaluate_shown(place / "run", [None, "frozen", "shuffled", "text", "true"], device="cpu")
    assert [(one.arm, one.is_swap) for one in found] == [
        ("rollout", False), ("frozen", True), ("shuffled", True), ("text", True), ("true", True)
    ]  # fmt: skip
    assert [one.world_tokens for one in found] == [24, 24, 24, 0, 24]
    assert [one.rollout_seconds for one in found] == [None, 0.0, None, 0.0, None]
    assert (place / "run" / "evaluation-shuffled.json").is_file()
    with pytest.raises(ConfigError, match=r"reads all its frames.*Train a reader on `last`"):
        evaluate_shown(place / "run", ["last"], device="cpu")
    one_frame = evaluate_shown(place / "run", [None, "frozen", "noise", "text"], steps=0, device="cpu")
    assert [one.arm for one in one_frame] == ["rollout", "text"]  # with one frame, the others are no different


def test_the_command_writes_a_page_also_where_nothing_can_be_drawn(place: Path) -> None:
    page = place / "pages" / "report.html"
    command = ["evaluate", str(place / "run"), "--shown", "frozen,noise", "--report", str(page), "--device", "cpu"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "160"})
    assert result.exit_code == 0, (result.output, result.exception)
    for words in ["ablations", "all, generated", "calibration error", f"report: {page}", "no pictures"]:
        assert words in result.output, words
    assert "frozen" in page.read_text()


def test_several_questions_on_a_scene_widen_the_interval_by_scene(place: Path) -> None:
    """Two questions on each of eight scenes, four minimal pairs: what was drawn by chance are the pairs."""
    result = evaluate(place / "run", device="cpu")
    overall = result.overall
    assert (overall.total, overall.clusters) == (16, 4)
    assert overall.cluster_low is not None
    assert overall.cluster_high is not None
    assert overall.cluster_low <= overall.low <= overall.high <= overall.cluster_high
    done = CliRunner().invoke(app, ["evaluate", str(place / "run"), "--rescore"], env={"COLUMNS": "160"})
    assert f"[{overall.cluster_low:.3f}, {overall.cluster_high:.3f}] by 4 clusters" in done.output


def test_saved_answers_are_judged_again_without_a_model(place: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    fresh = evaluate(place / "run", device="cpu")
    (run / "adapter_model.safetensors").unlink()  # nothing is loaded
    old = json.loads((place / "run" / "evaluation.json").read_text())
    for name in ("rules", "show_choices", "max_new_tokens"):
        del old[name]
    for prediction in old["predictions"]:
        prediction["generated_correct"] = not prediction["generated_correct"]  # as wrong rules might have it
    old["overall"] = {name: old["overall"][name] for name in ("correct", "total", "accuracy", "low", "high")}
    (run / "evaluation.json").write_text(json.dumps(old))
    assert read_evaluation(run).rules == 1
    told = compare_evaluations([read_evaluation(run)])[0]
    assert "1, today 2: --rescore" in [cell for column in told.columns for cell in column.cells]

    done = CliRunner().invoke(app, ["evaluate", str(run), "--rescore", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    results = [Evaluation.model_validate(one) for one in json.loads(done.stdout)]
    [result] = [one for one in results if (one.arm, one.steps) == ("rollout", 3)]
    kept = {"answer_seconds": result.answer_seconds, "run": result.run}
    assert result == fresh.model_copy(update=kept)
    assert read_evaluation(run) == result
    refused = CliRunner().invoke(app, ["evaluate", str(run), "--rescore", "--steps", "0"])
    assert "--rescore judges the answers that are saved" in str(refused.exception)


def test_an_answer_in_own_words_is_judged_by_what_it_says(place: Path) -> None:
    """Of a question without choices, the predicted answer is in own words, too."""
    said = [("caf\u00e9", "cafe\u0301", True), ("1/2", "1.2", False), ("left", "left", True)]
    evaluation = evaluate(place / "run", device="cpu")
    [like] = evaluation.predictions[:1]
    open_ended = tuple(
        like.model_copy(update={
            "id": str(n), "choices": None, "probabilities": (), "predicted": one, "answer": other, "correct": not same,
            "generated": None, "generated_correct": None,
        })
        for n, (one, other, same) in enumerate(said)
    )  # fmt: skip
    judged = rescored(evaluation.model_copy(update={"predictions": open_ended, "rules": 1}))
    assert [one.correct for one in judged.predictions] == [same for *_, same in said]
    assert (judged.overall.correct, judged.overall.total, judged.rules) == (2, 3, 2)
    first = rescored(evaluation.model_copy(update={"predictions": open_ended, "version": 1}))
    assert (first.overall.correct, first.generated) == (2, evaluation.generated)


@pytest.mark.parametrize("show", ["list", "letters"])
def test_shown_choices_are_part_of_the_training_and_of_the_evaluation(place: Path, tmp_path: Path, show: str) -> None:
    lm = tmp_path / "lm"
    save_mini_lm(lm, words=(*"ABC", *WORDS))
    plain = TrainConfig.model_validate(read_meta(place / "run").config)
    train(plain.model_copy(update={"lm": str(lm), "out": tmp_path / "run", "show_choices": show}))
    assert read_meta(tmp_path / "run").show_choices == show
    result = evaluate(tmp_path / "run", device="cpu")
    assert result.show_choices == show
    assert all(one.predicted in (one.choices or ()) for one in result.predictions)  # never a letter
    assert all(one.question.startswith("where") for one in result.predictions)  # as the file has it
    assert (tmp_path / "run" / "evaluation.json").is_file()
    other = evaluate(tmp_path / "run", device="cpu", show_choices="none")
    assert (other.show_choices, read_evaluation(tmp_path / "run").show_choices) == ("none", show)
    assert (tmp_path / "run" / "evaluation-choices-none.json").is_file()
    assert other.predictions != result.predictions

    # `ask` follows the training
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    asked = select_split(read_questions(file), "test", file)
    keys, _ = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
    loaded = load_run(tmp_path / "run", device="cpu")
    for question, one in zip(asked[:4], result.predictions, strict=False):
        latents = torch.from_numpy(store.read([keys[question.id]]))
        alone = ask(loaded, latents, question.question, question.choices)
        of = {choice.choice: choice.probability for choice in alone.ranked}
        assert alone.text == one.predicted
        assert [of[choice] for choice in question.choices or ()] == pytest.approx(one.probabilities, abs=1e-5)


def test_letters_that_the_model_writes_are_their_choices() -> None:
    question = Question(id="1", image="a.png", question="where?", answer="right", choices=("left", "right"))
    for generated, meant in [("B", "right"), ("(b)", "right"), ("B. right", "right"), ("A.", "left"), ("up", "up")]:
        response = _without_letters(Response("B", (0.4, 0.6), generated), question)
        assert (response.text, response.generated) == ("right", meant)


def test_the_length_of_an_answer_is_set_and_recorded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / "open.jsonl"
    lines = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    file.write_text("".join(f"{json.dumps({**line, 'choices': None})}\n" for line in lines if line["split"] == "test"))
    monkeypatch.setattr(LanguageModel, "end_ids", frozenset({-1}))  # it goes on and on
    monkeypatch.setattr(LanguageModel, "decode", a_word_a_token)
    for words in (None, 3):
        result = evaluate(place / "run", questions=file, device="cpu", max_new_tokens=words)
        assert result.max_new_tokens == words
        assert max(len(one.predicted.split()) for one in result.predictions) == (words or 16)


def test_an_answer_in_own_words_can_be_drawn(place: Path) -> None:
    file, store = place / "questions.jsonl", open_store(place / "rollouts")
    asked = select_split(read_questions(file), "test", file)
    keys, _ = open_arm(parse_arm("rollout"), store, asked, asked, file, rollout_steps=3)
    latents, loaded = torch.from_numpy(store.read([keys[asked[0].id]])), load_run(place / "run", device="cpu")

    def answers(**writing: Any) -> str:
        return ask(loaded, latents, asked[0].question, writing=AnswerConfig(**writing)).text

    assert answers(temperature=3.0, seed=1) == answers(temperature=3.0, seed=1)
    assert len({answers(temperature=3.0, seed=seed) for seed in range(5)}) > 1
    assert answers() == answers(temperature=1e-3)
    assert len(answers(temperature=3.0, max_new_tokens=1).split()) <= 1
    with pytest.raises(ConfigError, match=r"an answer of 4,096 tokens does not fit .*at most 4,0\d\d"):
        answers(max_new_tokens=4096)
    with pytest.raises(ConfigError, match="choices are ranked, so nothing is generated"):
        ask(loaded, latents, "where?", ["left", "right"], writing=AnswerConfig(temperature=1.0))
    with pytest.raises(QuestionError, match=r"'<eos>', which .* reads as a control token"):
        ask(loaded, latents, "where is the ball? <eos>", ["left", "right"])


def test_a_question_is_asked_as_it_is_trained_without_markers_and_within_the_context(place: Path) -> None:
    store = open_store(place / "rollouts")
    latents, loaded = torch.from_numpy(store.read(list(store.keys)[:1])), load_run(place / "run", device="cpu")
    plain, marked = (ask(loaded, latents, text, ["left", "right"]) for text in ("where?", "<image>\nwhere?"))
    assert plain == marked
    for question, choices, words in (
        ("why " * 8192, ["left", "right"], r"is too long: 8,\d\d\d tokens of it, 2 of the answer and \d+ world tokens"),
        ("why " * 8192, None, "is too long"),
        ("<image>", None, "the question is empty"),
        ("<image 1> or <image 2>?", None, "refers to 2 images"),
        ("where\udce9?", None, "is not Unicode text"),
        ("where?", ["left"], "two or more different answers"),
    ):
        with pytest.raises((ConfigError, QuestionError), match=words):
            ask(loaded, latents, question, choices)
        with pytest.raises((ConfigError, QuestionError), match=words):  # and nothing is rolled out for it
            answer_live(loaded, lambda _: pytest.fail("rolled out"), question, choices)
    for steps in (-1, 4, 10**6):
        with pytest.raises(ConfigError, match=f"{steps} rollout steps are asked for, the latents have 3"):
            answer_live(loaded, lambda _: pytest.fail("rolled out"), "where?", steps=steps)
        if steps > 0:
            with pytest.raises(ConfigError, match=f"{steps} rollout steps are asked for, the latents have 3"):
                ask_draws(loaded, lambda *_: pytest.fail("rolled out"), "where?", draws=2, steps=steps)


def test_a_run_whose_language_model_has_moved_is_evaluated_with_its_new_place(place: Path, tmp_path: Path) -> None:
    run, lm = Path(shutil.copytree(place / "run", tmp_path / "run")), shutil.copytree(place / "lm", tmp_path / "moved")
    about = json.loads((run / META).read_text())
    about["lm"]["source"] = "lm"  # as a run says that was pushed
    (run / META).write_text(json.dumps(about))
    for command in ("evaluate", "policies"):
        gone = CliRunner().invoke(app, [command, str(run), "--device", "cpu"])
        assert "Say where it lies now: --lm PLACE" in str(gone.exception)
        found = CliRunner().invoke(app, [command, str(run), "--device", "cpu", "--lm", str(lm), "--json"])
        assert found.exit_code == 0, (found.output, found.exception)
    assert read_evaluation(run).predictions == evaluate(place / "run", device="cpu").predictions


def test_a_run_and_an_evaluation_of_an_earlier_version_are_read(place: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    about = json.loads((run / META).read_text())
    del about["lm"]["content"], about["config"]["show_choices"]
    (run / META).write_text(json.dumps(about))
    assert (read_meta(run).show_choices, read_meta(run).lm.content) == ("none", None)
    assert evaluate(run, device="cpu").predictions == evaluate(place / "run", device="cpu").predictions
    about["config"]["show_choices"] = "roman"
    (run / META).write_text(json.dumps(about))
    with pytest.raises(RunError, match="show_choices = 'roman'; there are none, list, letters"):
        evaluate(run, device="cpu")


def test_ask_says_what_it_loads_before_anything_else(place: Path) -> None:
    done = theworld("ask", place / "run", place / "train-0.png", "where is the ball now?", "--device", "cpu")
    assert done.err.startswith(f"loading {place / 'run'} …\n")
