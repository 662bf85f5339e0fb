"""Ask a trained run the questions of a split, save what it answered, and compare runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from rich.table import Table

from ...pipeline.errors import ConfigError, RunError
from ...pipeline.files.atomic import replace
from ...pipeline.files.limits import MAX_RESULT_BYTES
from ...pipeline.files.places.local import file_name
from ...pipeline.files.plain import read_json_text
from ...pipeline.machine import DeviceName
from ...pipeline.messages import command, list_problems
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.records import origins_of
from ..config import ShowChoices
from ..data.arms import Arm, parse_arm
from ..questions.readers import digest_of, place_of
from ..questions.record import UNTYPED, Question, select_split
from ..runs.hub import EVALUATIONS
from ..runs.meta import RunMeta, read_meta, versions
from .abstention import REPORTED, Abstention, abstentions
from .answer import Response, check_steps
from .answer import ask as ask
from .draws import DrawnResponses, RollOutDraws, answer_draws, require_drawn_arm, steps_of_a_draw
from .metrics import (
    Balanced,
    Calibration,
    Figure,
    Prediction,
    accuracy,
    alarms,
    balance,
    calibrate,
    generation,
    group_by_type,
    pairs,
)
from .metrics import Score as Score
from .own_words import RULES
from .own_words import normalised as normalised
from .session import AnswerSession, OpenedArm

EVALUATION = "evaluation.json"
_WITHOUT_ROLLOUT = ("text", "steps0", "frozen", "noise")  # arms that need no rollout


class Evaluation(Figure):
    """The answers of one run to one split, counted."""

    run: str
    split: str | None
    steps: int
    """K, the rollout steps that were read."""
    trained_steps: int
    arm: str = "rollout"
    """What was shown in place of a rollout; see arms.py."""
    trained_arm: str = "rollout"
    lm: str
    recipe_id: str
    questions: str
    questions_sha256: str
    overall: Score
    by_type: dict[str, Score]
    predicted: dict[str, dict[str, int]]
    """Per type, how often each answer was given: shows a model that always answers the same."""
    answers: dict[str, dict[str, int]]
    """Per type, how often each answer was the correct one."""
    predictions: tuple[Prediction, ...]

    # Since version 2; an older file has none of it, and a page says so.
    version: int = 1
    generated: Score | None = None
    """Of the questions with choices, those whose greedily generated answer is correct after `normalised`."""
    generated_by_type: dict[str, Score] = Field(default_factory=dict[str, Score])
    balanced: dict[str, Balanced] = Field(default_factory=dict[str, Balanced])
    """By type, where there are choices."""
    pairs: Score | None = None
    """Minimal pairs with both halves correct."""
    calibration: dict[str, Calibration] = Field(default_factory=dict[str, Calibration])
    """Of `all` questions with choices; where it is known how rollouts end, also of the temporal ones whose scene's
    rollout ends `rollout right` and `rollout wrong`."""
    alarms: tuple[str, ...] = ()
    world_tokens: int | None = None
    """Of a question."""
    rollout_seconds: float | None = None
    """Wall seconds that a worker needed for the rollout of an image; 0 where no rollout is shown, None where the store
    does not say or true futures were shown."""
    answer_seconds: float | None = None
    """Of all questions, ranking and generation together."""
    created_with: dict[str, str] = Field(default_factory=dict[str, str])
    left_out: int | None = None
    """Questions of the split that were not asked, being too long or without latents; no figure here counts them. None
    in files written before it was noted."""
    rules: int = 1
    """Version of the rules (`own_words.RULES`) by which answers in own words were compared. Others than today's:
    `rescore`."""
    show_choices: ShowChoices = "none"
    """Whether and how the prompts showed the choices."""
    max_new_tokens: int | None = None
    """Most tokens of an answer to a question without choices; None is 16, or more where the correct one needs it."""

    draws: int | None = None
    """Futures of each image that the answers are averaged over; None is the one of the run's recipe."""
    single_draw: dict[str, float] = Field(default_factory=dict[str, float])
    """Mean accuracy of the draws, each answering alone; of `all` questions and by type."""
    abstention: dict[str, Abstention] = Field(default_factory=dict[str, Abstention])
    """Accuracy by the share of questions that are answered, those first on which most draws agree; of `all` questions
    and by type."""

    @property
    def is_swap(self) -> bool:
        """Whether this is an ablation: the run was shown another input than it was trained on."""
        return self.arm != self.trained_arm or self.steps != self.trained_steps

    def table(self) -> Table:
        """The figures as a table for a terminal."""
        return _table([self])


def evaluate(run: Path | str, *, arm: str | None = None, **settings: Any) -> Evaluation:
    """Answer all questions of a split, and save the result as `evaluation.json` in the run folder.

    Args:
        arm: what is shown in place of a rollout (arms.py); by default what the run was trained on.
        settings: as of `evaluate_shown`.
    """
    return evaluate_shown(Path(run), [arm], **settings)[0]


def evaluate_shown(
    run: Path,
    arms: Sequence[str | None],
    *,
    store: Path | str | None = None,
    questions: Path | None = None,
    split: str | None = "test",
    steps: int | None = None,
    batch_size: int = 64,
    futures: Path | str | None = None,
    images: Path | None = None,
    lm: str | None = None,
    device: DeviceName = "auto",
    memory: float | None = None,
    outcomes: Mapping[str, bool] | None = None,
    generate: bool = True,
    max_new_tokens: int | None = None,
    show_choices: ShowChoices | None = None,
    max_bad: int | None = None,
    draws: int | None = None,
    live: Callable[[LatentStore], RollOutDraws] | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Answer all questions of a split once for each arm shown, and save each result in the run folder.

    Args:
        arms: what is shown in place of a rollout (arms.py); None is what the run was trained on. An arm that
            would show the same as an earlier one is left out: with one frame, `frozen` is no different.
        store, questions: by default those the run was trained on.
        split: None asks all questions.
        steps: K, rollout steps to read; by default those it was trained with. Another number is another experiment and
            is saved beside the first, as `evaluation-steps<K>.json`; another split, arm, questions file or way to show
            choices likewise.
        batch_size: rows (a question, or one of its choices) at a time; changes speed only.
        futures: a store of true futures, for the arm `true`; by default the one it was trained with.
        images: folder that the questions' image names are relative to; by default the one it was trained with.
        lm: where the base language model lies now, if it has moved.
        outcomes: scene -> whether its rollout ends as the true scene does.
        generate: also generate answers to the questions that have choices; doubles the time.
        max_new_tokens: of an answer to a question without choices; None is 16, or more where the correct one needs it.
        show_choices: whether and how prompts show the choices; by default as in training.
        max_bad: how many wrong rows, questions without latents and questions that are too long may be left out with a
            warning, of each; by default as many as in training.
        draws: average the answers over so many futures of each image. `store` is then of kind `samples`. The result is
            saved as `evaluation-draws<N>.json`.
        live: makes what rolls the draws out again, of the run's own store; none is then read.
    Raises:
        RunError: no run folder, or another base model.
        StoreMismatchError: latents of another recipe.
        QuestionError: no such split, or more than `max_bad` wrong records, questions without latents or too long ones.
        ConfigError: more steps than the store has, an arm that cannot be shown to this reader, or too few draws.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    session = AnswerSession.open(
        run,
        store=store,
        questions=questions,
        futures=futures,
        max_bad=max_bad,
        images=images,
        show_choices=show_choices,
        lm=lm,
        device=device,
        memory=memory,
        draws=None if live is not None else draws,
        progress=progress,
    )
    meta, trained_arm, file = session.loaded.meta, session.trained_arm, session.questions_file
    arms_shown = [_can_be_shown(parse_arm(arm or trained_arm), trained_arm, run) for arm in arms]
    recipe = session.store.recipe
    stored_steps = recipe.rollout_steps if draws is None else steps_of_a_draw(recipe)
    steps = check_steps(session.loaded, stored_steps, steps, session.progress)
    if draws is not None:
        for arm in arms_shown:
            require_drawn_arm(arm, steps, draws)
    split_questions = select_split(session.read_questions(), split, file)
    answerable = session.answerable(split_questions, steps=steps)
    arm_by_input: dict[str, Arm] = {}
    for arm in arms_shown:
        arm_by_input.setdefault(arm.name if arm.steps(steps) or arm.kind == "text" else "steps0", arm)
    opened_arms = [session.open_arm(arm, answerable, steps=steps) for arm in arm_by_input.values()]
    evaluations: list[Evaluation] = []
    for opened in opened_arms:
        arm, started = opened.arm, time.perf_counter()
        how: dict[str, Any] = {"batch_size": batch_size, "generate": generate, "max_new_tokens": max_new_tokens}
        drawn = None if draws is None else _answer_draws(session, opened, steps, draws, live, how)
        responses = session.answer(opened, **how) if drawn is None else drawn.averaged
        seconds = time.perf_counter() - started - (drawn.total_seconds if drawn else 0.0)
        predictions = tuple(map(_predicted, answerable, responses, (opened.keys[q.id] for q in answerable)))
        evaluation = Evaluation(
            run=str(run),
            split=split,
            steps=arm.steps(steps),
            trained_steps=meta.reader.num_world_steps,
            arm=arm.name,
            trained_arm=trained_arm,
            lm=meta.lm.identity,
            recipe_id=meta.recipe_id,
            questions=place_of(file),
            questions_sha256=digest_of(file),
            **_counted(predictions, outcomes, shown=arm.name),
            **_price(session, arm, steps if opened.images is not None else None, draws, drawn),
            draws=draws,
            single_draw={} if drawn is None else _single_draw(answerable, drawn),
            answer_seconds=round(seconds, 3),
            version=2,
            created_with=versions(),
            left_out=len(split_questions) - len(answerable),
            rules=RULES,
            show_choices=session.show_choices,
            max_new_tokens=max_new_tokens,
        )
        _save(run, evaluation, meta)
        evaluations.append(evaluation)
    return evaluations


def _can_be_shown(arm: Arm, trained: str, run: Path) -> Arm:
    if arm.kind == "last" and trained != "last":
        raise ConfigError(
            f"{run} was trained on {trained} and reads all its frames; which frames are read is fixed in training. "
            "Train a reader on `last` to compare with"
        )
    return arm


def _predicted(question: Question, response: Response, key: str) -> Prediction:
    generated = response.generated
    return Prediction(
        id=question.id,
        type=question.type or UNTYPED,
        predicted=response.text,
        answer=question.answer,
        correct=is_right(question, response.text),
        generated=generated,
        generated_correct=None if generated is None else is_same(generated, question.answer),
        choices=question.choices,
        probabilities=tuple(round(p, 6) for p in response.probabilities),
        question=question.question,
        image=question.image,
        key=key,
        scene=question.scene or "",
        about=" ".join(filter(None, (question.family, question.about))),
        pair=question.pair or "",
        agreement=response.agreement,
    )


def _answer_draws(
    session: AnswerSession,
    opened: OpenedArm,
    steps: int,
    draws: int,
    live: Callable[[LatentStore], RollOutDraws] | None,
    how: Mapping[str, Any],
) -> DrawnResponses:
    assert opened.images is not None, "the arm shows a rollout"
    return answer_draws(
        lambda images: session.answer(replace_fields(opened, images=images), **how),
        opened.questions,
        session.store,
        opened.images.keys,
        steps=steps,
        draws=draws,
        live=None if live is None else live(session.store),
        progress=session.progress,
    )


def _single_draw(questions: Sequence[Question], drawn: DrawnResponses) -> dict[str, float]:
    """Mean accuracy over draws of all questions and of each type."""
    right: dict[str, list[bool]] = {"all": []}
    for question, *responses in zip(questions, *drawn.by_draw, strict=True):
        correct = [is_right(question, response.text) for response in responses]
        right["all"] += correct
        right.setdefault(question.type or UNTYPED, []).extend(correct)
    return {kind: sum(flags) / len(flags) for kind, flags in right.items()}


def _counted(
    predictions: tuple[Prediction, ...], outcomes: Mapping[str, bool] | None, *, shown: str = "rollout"
) -> dict[str, Any]:
    """All figures that follow from the predictions of an arm."""
    by_type = group_by_type(predictions)
    temporal = by_type.get("temporal", []) if outcomes is not None else []
    predictions_by_group = {
        "all": predictions,
        **{
            f"rollout {word}": [p for p in temporal if (outcomes or {}).get(p.scene or p.image) is ends]
            for word, ends in (("right", True), ("wrong", False))
        },
    }
    return {
        "overall": accuracy(predictions),
        "by_type": {kind: accuracy(group) for kind, group in by_type.items()},
        "predicted": {kind: _counts(p.predicted for p in group) for kind, group in by_type.items()},
        "answers": {kind: _counts(p.answer for p in group) for kind, group in by_type.items()},
        "predictions": predictions,
        "generated": generation(predictions),
        "generated_by_type": _without_none({kind: generation(group) for kind, group in by_type.items()}),
        "balanced": _without_none({kind: balance(group) for kind, group in by_type.items()}),
        "pairs": pairs(predictions),
        "calibration": _without_none({name: calibrate(group) for name, group in predictions_by_group.items()}),
        "alarms": alarms(predictions, shown=shown),
        "abstention": abstentions(predictions),
    }


def _price(
    session: AnswerSession, arm: Arm, steps: int | None, draws: int | None, drawn: DrawnResponses | None
) -> dict[str, Any]:
    """World tokens per question and rollout seconds per image, those of all draws; `steps` is None where no world is
    shown."""
    if steps is None:
        return {"world_tokens": 0, "rollout_seconds": 0.0}
    read_steps = arm.steps(steps)
    tokens = session.world_tokens(read_steps)
    if arm.kind in _WITHOUT_ROLLOUT or not read_steps:
        return {"world_tokens": tokens, "rollout_seconds": 0.0}
    seconds = None if arm.kind == "true" else rollout_seconds(session.store)
    if draws is None or drawn is None:
        return {"world_tokens": tokens, "rollout_seconds": seconds}
    if drawn.rollout_seconds is not None:
        seconds = drawn.rollout_seconds
    elif seconds is not None:  # of all draws in the store
        seconds = float(f"{seconds * draws / session.store.recipe.draws:.4g}")
    return {"world_tokens": draws * tokens, "rollout_seconds": seconds}


def rollout_seconds(store: LatentStore) -> float | None:
    """Mean wall seconds that a worker needed to roll out, or to encode, an image of a store; None if not recorded."""
    rows = seconds = 0.0
    for record in store.records():
        for origin in origins_of(record):
            if origin.work_seconds is not None:
                rows, seconds = rows + origin.rows, seconds + origin.work_seconds
    return float(f"{seconds / rows:.4g}") if rows else None  # not to 4 decimals: small worlds take less


def _without_none(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figure for name, figure in figures.items() if figure is not None}


def compare(runs: Sequence[Path]) -> Table:
    """Saved evaluations of several runs side by side.

    Raises:
        RunError: a run has not been evaluated, or on other questions than the first.
    """
    return compare_evaluations([read_evaluation(run) for run in runs])[0]


def compare_evaluations(evaluations: Sequence[Evaluation]) -> list[Table]:
    """A table of runs side by side, and one of their ablations if there are any; raises as `require_same_questions`."""
    require_same_questions(evaluations)
    runs = [e for e in evaluations if not e.is_swap]
    if not runs or len(runs) == len(evaluations):
        return [_table(evaluations)]
    kinds = sorted({kind for evaluation in evaluations for kind in evaluation.by_type})
    ablations = Table("run", "shown", *kinds, "all", title="ablations")
    compared = {e.run for e in evaluations if e.is_swap}
    for e in (e for e in evaluations if e.run in compared):
        ablations.add_row(e.run, e.arm, *(str(e.by_type.get(kind, "-")) for kind in kinds), str(e.overall))
    return [_table(runs), ablations]


def require_one_file(runs: Sequence[Path]) -> None:
    """Refuse runs that were trained on different questions files, since each would be asked those of its own file.

    Raises:
        RunError: names the two that differ.
        QuestionError: a file is gone.
    """
    metas = [read_meta(run) for run in runs]
    digests = {path: digest_of(Path(path)) for path in dict.fromkeys(meta.questions.path for meta in metas)}
    for run, meta in zip(runs, metas, strict=True):
        if digests[meta.questions.path] != digests[metas[0].questions.path]:
            raise RunError(
                f"{runs[0]} learned from {metas[0].questions.path}, {run} from {meta.questions.path}: not the same "
                "questions. Name the file that all runs are to answer: --questions FILE"
            )


def require_same_questions(evaluations: Sequence[Evaluation]) -> None:
    """Refuse to compare answers to different questions.

    Raises:
        RunError: names the two that differ.
    """
    first = evaluations[0]
    for evaluation in evaluations[1:]:
        if (evaluation.questions_sha256, evaluation.split) != (first.questions_sha256, first.split):
            raise RunError(
                f"{evaluation.run} answered split {evaluation.split!r} of {evaluation.questions}, "
                f"{first.run} split {first.split!r} of {first.questions}, as these files were "
                "then: not the same questions. Evaluate both again"
            )


def read_evaluation(run: Path) -> Evaluation:
    """The saved evaluation of a run.

    Raises:
        RunError: there is none, or it is not what we write.
    """
    return _read(run, run / EVALUATION)


def rescore(run: Path) -> list[Evaluation]:
    """Judge the saved answers of a run by today's rules for own words, without a model, and save the figures.

    All evaluations in the run folder are counted again. Calibration stays: it is of choices, which no rule changes.

    Raises:
        RunError: there is none, or one is not what we write.
    """
    paths = sorted(run.glob(EVALUATIONS)) or [run / EVALUATION]
    evaluations = [rescored(_read(run, path)) for path in paths]
    for path, evaluation in zip(paths, evaluations, strict=True):
        replace(run, path, f"{evaluation.model_dump_json(indent=1)}\n".encode())
    return evaluations


def rescored(evaluation: Evaluation) -> Evaluation:
    """An evaluation whose answers are judged by today's rules."""
    predictions = tuple(map(_judged, evaluation.predictions))
    figures = _counted(predictions, None, shown=evaluation.arm)
    figures |= {"calibration": evaluation.calibration, "rules": RULES}
    if evaluation.version < 2:  # it does not hold what these are counted from
        figures = {name: figures[name] for name in ("overall", "by_type", "predictions", "rules")}
    return evaluation.model_copy(update=figures)


def _judged(prediction: Prediction) -> Prediction:
    said, answer, generated = prediction.predicted, prediction.answer, prediction.generated
    correct = said == answer or (not prediction.choices and is_same(said, answer))
    generated_correct = None if generated is None else is_same(generated, answer)
    return prediction.model_copy(update={"correct": correct, "generated_correct": generated_correct})


def _read(run: Path, path: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(read_json_text(path, MAX_RESULT_BYTES, within=run))
    except OSError as error:
        raise RunError(f"{run} has not been evaluated: run `{command('evaluate', run)}` first") from error
    except ValueError as error:
        why = list_problems(error) if isinstance(error, ValidationError) else error
        raise RunError(
            f"{path} is not an evaluation that theworld wrote: {why}. Make it again: {command('evaluate', run)}"
        ) from error


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer is correct; without choices, case, punctuation and articles do not count."""
    return answer == question.answer if question.choices else is_same(answer, question.answer)


def is_same(said: str, answer: str) -> bool:
    """Whether an answer in own words is the correct one, by the rules of own_words.py."""
    return normalised(said) == normalised(answer)


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _save(run: Path, evaluation: Evaluation, meta: RunMeta) -> None:
    name = EVALUATION.removesuffix(".json")
    trained_questions = meta.questions
    if evaluation.questions != trained_questions.path and evaluation.questions_sha256 != trained_questions.sha256:
        name += f"-{Path(evaluation.questions).stem}-{evaluation.questions_sha256[:8]}"
    if evaluation.split != "test":
        name += f"-{evaluation.split or 'all'}"
    if evaluation.arm != evaluation.trained_arm:
        name += f"-{evaluation.arm}"
    if evaluation.steps != evaluation.trained_steps:
        name += f"-steps{evaluation.steps}"
    if evaluation.show_choices != meta.show_choices:
        name += f"-choices-{evaluation.show_choices}"
    if evaluation.draws is not None:
        name += f"-draws{evaluation.draws}"
    replace(run, run / f"{file_name(name)}.json", f"{evaluation.model_dump_json(indent=1)}\n".encode())


def _table(evaluations: Sequence[Evaluation]) -> Table:
    heads = [
        f"{e.run}, steps {e.steps}"
        + (f", {e.arm}" if e.arm != "rollout" else "")
        + (f", choices shown ({e.show_choices})" if e.show_choices != "none" else "")
        + (f", {e.draws} draws" if e.draws is not None else "")
        for e in evaluations
    ]
    table = Table("type", *heads, title=f"split {evaluations[0].split or 'all'}")
    for kind in sorted({kind for evaluation in evaluations for kind in evaluation.by_type}):
        _add_score(table, kind, [evaluation.by_type.get(kind) for evaluation in evaluations])
    _add_score(table, "all", [evaluation.overall for evaluation in evaluations])
    table.add_section()
    if any(evaluation.generated for evaluation in evaluations):
        _add_score(table, "all, generated", [evaluation.generated for evaluation in evaluations])
    more: dict[str, list[object]] = {}
    for kind in sorted({kind for evaluation in evaluations for kind in evaluation.balanced}):
        figures = [evaluation.balanced.get(kind) for evaluation in evaluations]
        more[f"{kind}, balanced"] = [f and f"{f.accuracy:.3f}, chance {f.chance:.3f}" for f in figures]
    more["minimal pairs"] = [evaluation.pairs for evaluation in evaluations]
    for name in dict.fromkeys(name for evaluation in evaluations for name in evaluation.calibration):
        calibrations = [evaluation.calibration.get(name) for evaluation in evaluations]
        more[f"calibration error, {name}"] = [c and f"{c.ece:.3f}, confidence {c.confidence:.3f}" for c in calibrations]
    for name in dict.fromkeys(name for evaluation in evaluations for name in evaluation.abstention):
        more[f"one draw alone, {name}"] = [
            f"{evaluation.single_draw[name]:.3f}" if name in evaluation.single_draw else None
            for evaluation in evaluations
        ]
        curves = [evaluation.abstention.get(name) for evaluation in evaluations]
        more[f"answering {REPORTED:.0%}, {name}"] = [c and f"{c.accuracy_at(REPORTED):.3f}" for c in curves]
    if any(evaluation.left_out for evaluation in evaluations):
        more["questions left out"] = [evaluation.left_out for evaluation in evaluations]
    more["world tokens"] = [evaluation.world_tokens for evaluation in evaluations]
    more["rollout seconds per image"] = [
        None if e.rollout_seconds is None else f"{e.rollout_seconds:,.4g}" for e in evaluations
    ]
    if any(e.rules != RULES for e in evaluations):
        more["rules for own words"] = [f"{e.rules}, today {RULES}: --rescore" for e in evaluations]
    for name, figures in more.items():
        if any(figure is not None for figure in figures):
            table.add_row(name, *("-" if figure is None else str(figure) for figure in figures))
    return table


def _add_score(table: Table, name: str, scores: Sequence[Score | None]) -> None:
    """A row of shares with their plain intervals; below it those by cluster, where clusters have several questions."""
    table.add_row(name, *("-" if score is None else str(score) for score in scores))
    by_cluster = [score and score.by_cluster for score in scores]
    if any(by_cluster):
        table.add_row("", *(interval or "-" for interval in by_cluster))
