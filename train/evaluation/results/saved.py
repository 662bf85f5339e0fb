"""The answers of one run to one split, counted: the record, its file in the run folder, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError
from rich.table import Table

from ....pipeline.errors import RunError
from ....pipeline.files.atomic import replace
from ....pipeline.files.limits import MAX_RESULT_BYTES
from ....pipeline.files.places.local import file_name
from ....pipeline.files.plain import read_json_text
from ....pipeline.messages import command, list_problems
from ...config import ShowChoices
from ...runs.meta import RunMeta
from ..abstention import REPORTED, Abstention
from ..metrics import Balanced, Calibration, Figure, Prediction, Score
from ..own_words import RULES

EVALUATION = "evaluation.json"


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
        return table_of([self])


def read_evaluation(run: Path) -> Evaluation:
    """The saved evaluation of a run.

    Raises:
        RunError: there is none, or it is not what we write.
    """
    return read_saved(run, run / EVALUATION)


def read_saved(run: Path, path: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(read_json_text(path, MAX_RESULT_BYTES, within=run))
    except OSError as error:
        raise RunError(f"{run} has not been evaluated: run `{command('evaluate', run)}` first") from error
    except ValueError as error:
        why = list_problems(error) if isinstance(error, ValidationError) else error
        raise RunError(
            f"{path} is not an evaluation that theworld wrote: {why}. Make it again: {command('evaluate', run)}"
        ) from error


def save_evaluation(run: Path, evaluation: Evaluation, meta: RunMeta) -> None:
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


def table_of(evaluations: Sequence[Evaluation]) -> Table:
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
