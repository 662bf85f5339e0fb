"""Ask a trained run the questions of a split, and save its answers with all figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError
from ...pipeline.machine import DeviceName
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ..config import ShowChoices
from ..data.arms import Arm, parse_arm
from ..questions.readers import digest_of, place_of
from ..questions.record import select_split
from ..runs.meta import versions
from .answer import check_steps
from .draws import DrawnResponses, RollOutDraws, answer_draws, arm_of_answers, require_drawn_arm
from .own_words import RULES
from .price import price_of_arm
from .results.counting import count_predictions, prediction_of, single_draw_accuracy
from .results.saved import Evaluation, save_evaluation
from .session import AnswerSession, OpenedArm


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
    own = parse_arm(trained_arm) if draws is None else arm_of_answers(parse_arm(trained_arm))
    arms_shown = [_can_be_shown(parse_arm(arm) if arm else own, trained_arm, run) for arm in arms]
    recipe = session.store.recipe
    stored_steps = parse_arm(trained_arm).stored_steps(recipe) if draws is None else recipe.steps_of_a_draw
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
        predictions = tuple(map(prediction_of, answerable, responses, (opened.keys[q.id] for q in answerable)))
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
            **count_predictions(predictions, outcomes, arm=arm.name),
            **price_of_arm(session, arm, steps if opened.images is not None else None, draws, drawn),
            draws=draws,
            single_draw={} if drawn is None else single_draw_accuracy(answerable, drawn),
            answer_seconds=round(seconds, 3),
            version=2,
            created_with=versions(),
            left_out=len(split_questions) - len(answerable),
            rules=RULES,
            show_choices=session.show_choices,
            max_new_tokens=max_new_tokens,
        )
        save_evaluation(run, evaluation, meta)
        evaluations.append(evaluation)
    return evaluations


def _can_be_shown(arm: Arm, trained: str, run: Path) -> Arm:
    if arm.kind == "last" and trained != "last":
        raise ConfigError(
            f"{run} was trained on {trained} and reads all its frames; which frames are read is fixed in training. "
            "Train a reader on `last` to compare with"
        )
    return arm


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
