"""Ask a trained run the questions of a split, and count honestly.

Lives here: accuracy by question type with intervals, what was answered how often, tables.
Elsewhere: how an answer is found (answer.py), training (trainer.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from ..pipeline.commit import replace
from ..pipeline.config import DeviceName
from ..pipeline.errors import ConfigError, RunError
from ..pipeline.progress import Progress
from ..pipeline.store import open_store
from .answer import answer_all, check_steps
from .answer import ask as ask
from .arms import open_arm, parse_arm
from .batches import check_answers
from .checkpoint import load_run, require_same_recipe
from .lm import merge_adapters
from .pictures import open_pictures
from .question_checks import require_room
from .question_files import digest_of, place_of
from .questions import UNTYPED, Question, read_questions, select_split
from .statistics import wilson

EVALUATION = "evaluation.json"

_ARTICLES = re.compile(r"\b(a|an|the)\b")


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Result):
    """How many of a kind were right, with the Wilson 95 % interval of the share."""

    correct: int
    total: int
    accuracy: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.total}"


class Prediction(_Result):
    """What was answered to one question."""

    id: str
    type: str
    predicted: str
    answer: str
    correct: bool


class Evaluation(_Result):
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
    """Per type, how often each answer was given: a model that always says the same shows here."""
    answers: dict[str, dict[str, int]]
    """Per type, how often each answer was the right one."""
    predictions: tuple[Prediction, ...]

    def table(self) -> Table:
        """A small table for a terminal."""
        return _table([self])


def evaluate(
    run: Path,
    *,
    store: Path | None = None,
    questions: Path | None = None,
    split: str | None = "test",
    steps: int | None = None,
    batch_size: int = 64,
    arm: str | None = None,
    futures: Path | None = None,
    lm: str | None = None,
    device: DeviceName = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Answer all questions of a split, and save the result as `evaluation.json` in the run folder.

    Args:
        store, questions: by default those the run was trained on.
        split: None asks all questions.
        steps: K, rollout steps to read; by default those it was trained with. Another number is another experiment and
            is saved beside the first, as `evaluation-steps<K>.json`; another split or arm likewise.
        batch_size: rows (a question, or one of its choices) at a time; changes speed only.
        arm: what is shown in place of a rollout (arms.py); by default what it was trained on.
        futures: a store of true futures, for the arm `true`; by default the one it was trained with.
        lm: where the base language model lies now, if it has moved.
    Raises:
        RunError: no run folder, or another base model.
        StoreMismatchError: latents of another recipe.
        QuestionError: a wrong record, no such split, a question without latents.
        ConfigError: more steps than the store has.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    loaded = load_run(run, lm=lm, device=device)
    meta = loaded.meta
    latents = open_store(store or Path(meta.store.path))
    require_same_recipe(meta, run, latents)
    trained_arm, trained_futures = meta.config.get("arm", "rollout"), meta.config.get("futures")
    shown = parse_arm(arm or trained_arm)
    steps = shown.steps(check_steps(loaded, latents.recipe.rollout_steps, steps))
    file = questions or Path(meta.questions.path)
    trained: dict[str, Any] = {name: meta.config[name] for name in ("columns", "max_bad") if name in meta.config}
    asked = select_split(read_questions(file, **trained), split, file)
    check_answers(asked, loaded.lm)
    world_tokens = loaded.model.reader.count(1 + steps, *meta.reader.latent_shape[1:])
    require_room(asked, loaded.lm, world_tokens=world_tokens)
    if futures is None and trained_futures is not None:
        futures = Path(trained_futures)
    keys, images = open_arm(shown, latents, asked, asked, file, rollout_steps=steps, futures=futures)
    merge_adapters(loaded.lm)
    quiet = progress or Progress.silent()
    pictures = open_pictures(loaded.lm, asked, keys, file)
    said = answer_all(loaded, asked, keys, images, batch_size=batch_size, progress=quiet, pictures=pictures)
    predictions = tuple(
        Prediction(
            id=question.id,
            type=question.type or UNTYPED,
            predicted=text,
            answer=question.answer,
            correct=is_right(question, text),
        )
        for question, text in zip(asked, said, strict=True)
    )
    types = sorted({prediction.type for prediction in predictions})
    evaluation = Evaluation(
        run=str(run),
        split=split,
        steps=steps,
        trained_steps=meta.reader.num_world_steps,
        arm=shown.name,
        trained_arm=trained_arm,
        lm=meta.lm.identity,
        recipe_id=meta.recipe_id,
        questions=place_of(file),
        questions_sha256=digest_of(file),
        overall=_score(predictions),
        by_type={kind: _score([p for p in predictions if p.type == kind]) for kind in types},
        predicted={kind: _counts(p.predicted for p in predictions if p.type == kind) for kind in types},
        answers={kind: _counts(p.answer for p in predictions if p.type == kind) for kind in types},
        predictions=predictions,
    )
    _save(run, evaluation)
    return evaluation


def compare(runs: Sequence[Path]) -> Table:
    """Saved evaluations of several runs side by side.

    Raises:
        RunError: a run has not been evaluated, or on other questions than the first.
    """
    evaluations = [read_evaluation(run) for run in runs]
    first = evaluations[0]
    for other in evaluations[1:]:
        if (other.questions_sha256, other.split) != (first.questions_sha256, first.split):
            raise RunError(
                f"{other.run} answered split {other.split!r} of {other.questions}, {first.run} split {first.split!r} "
                f"of {first.questions}, as these files were then: not the same questions. Evaluate both again"
            )
    return _table(evaluations)


def read_evaluation(run: Path) -> Evaluation:
    """The saved evaluation of a run.

    Raises:
        RunError: there is none, or it is not what we write.
    """
    try:
        return Evaluation.model_validate_json((run / EVALUATION).read_bytes())
    except OSError as error:
        raise RunError(f"{run} has not been evaluated: run `theworld evaluate {run}` first") from error
    except ValidationError as error:
        raise RunError(f"{run / EVALUATION} is not an evaluation we wrote: evaluate {run} again") from error


def is_right(question: Question, said: str) -> bool:
    """Whether an answer is the right one; without choices, but for case, punctuation and articles."""
    return said == question.answer if question.choices else normalised(said) == normalised(question.answer)


def normalised(text: str) -> str:
    """An answer without case, punctuation, articles and extra spaces."""
    return " ".join(_ARTICLES.sub(" ", re.sub(r"[^\w\s]", " ", text.casefold())).split())


def _score(predictions: Sequence[Prediction]) -> Score:
    correct, total = sum(prediction.correct for prediction in predictions), len(predictions)
    low, high = wilson(correct, total)
    return Score(correct=correct, total=total, accuracy=correct / total, low=low, high=high)


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _save(run: Path, evaluation: Evaluation) -> None:
    name = EVALUATION.removesuffix(".json")
    if evaluation.split != "test":
        name += f"-{evaluation.split or 'all'}"
    if evaluation.arm != evaluation.trained_arm:
        name += f"-{evaluation.arm}"
    if evaluation.steps != evaluation.trained_steps:
        name += f"-steps{evaluation.steps}"
    replace(run, run / f"{name}.json", f"{evaluation.model_dump_json(indent=1)}\n".encode())


def _table(evaluations: Sequence[Evaluation]) -> Table:
    heads = [f"{e.run}, steps {e.steps}" + (f", {e.arm}" if e.arm != "rollout" else "") for e in evaluations]
    table = Table("type", *heads, title=f"split {evaluations[0].split}")
    for kind in sorted({kind for evaluation in evaluations for kind in evaluation.by_type}):
        table.add_row(kind, *(str(evaluation.by_type.get(kind, "-")) for evaluation in evaluations))
    table.add_row("all", *(str(evaluation.overall) for evaluation in evaluations))
    return table
