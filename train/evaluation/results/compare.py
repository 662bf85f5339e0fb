"""Evaluations of several runs side by side: only of answers to the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ....pipeline.errors import RunError
from ...questions.readers import digest_of
from ...runs.meta import read_meta
from .saved import Evaluation, read_evaluation, table_of


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
        return [table_of(evaluations)]
    kinds = sorted({kind for evaluation in evaluations for kind in evaluation.by_type})
    ablations = Table("run", "shown", *kinds, "all", title="ablations")
    compared = {e.run for e in evaluations if e.is_swap}
    for e in (e for e in evaluations if e.run in compared):
        ablations.add_row(e.run, e.arm, *(str(e.by_type.get(kind, "-")) for kind in kinds), str(e.overall))
    return [table_of(runs), ablations]


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
