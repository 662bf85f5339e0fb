"""Judge the saved answers of a run by today's rules for own words, without a model."""

from __future__ import annotations

from pathlib import Path

from ....pipeline.files.atomic import replace
from ...runs.hub import EVALUATIONS
from ..metrics import Prediction
from ..own_words import RULES, is_same
from .counting import count_predictions
from .saved import EVALUATION, Evaluation, read_saved


def rescore(run: Path) -> list[Evaluation]:
    """Judge the saved answers of a run by today's rules for own words, without a model, and save the figures.

    All evaluations in the run folder are counted again. Calibration stays: it is of choices, which no rule changes.

    Raises:
        RunError: there is none, or one is not what we write.
    """
    paths = sorted(run.glob(EVALUATIONS)) or [run / EVALUATION]
    evaluations = [rescored(read_saved(run, path)) for path in paths]
    for path, evaluation in zip(paths, evaluations, strict=True):
        replace(run, path, f"{evaluation.model_dump_json(indent=1)}\n".encode())
    return evaluations


def rescored(evaluation: Evaluation) -> Evaluation:
    """An evaluation whose answers are judged by today's rules."""
    predictions = tuple(map(_judged, evaluation.predictions))
    figures = count_predictions(predictions, None, arm=evaluation.arm)
    figures |= {"calibration": evaluation.calibration, "rules": RULES}
    if evaluation.version < 2:  # it does not hold what these are counted from
        figures = {name: figures[name] for name in ("overall", "by_type", "predictions", "rules")}
    return evaluation.model_copy(update=figures)


def _judged(prediction: Prediction) -> Prediction:
    predicted, answer, generated = prediction.predicted, prediction.answer, prediction.generated
    correct = predicted == answer or (not prediction.choices and is_same(predicted, answer))
    generated_correct = None if generated is None else is_same(generated, answer)
    return prediction.model_copy(update={"correct": correct, "generated_correct": generated_correct})
