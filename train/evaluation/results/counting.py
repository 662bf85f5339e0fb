"""Judge the responses to questions, and count all figures that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...questions.record import UNTYPED, Question
from ..abstention import abstentions
from ..answering.many import Response
from ..draws import DrawnResponses
from ..metrics import (
    Prediction,
    accuracy,
    alarms,
    balance,
    calibrate,
    generation,
    group_by_type,
    pairs,
)
from ..own_words import is_right, is_same


def prediction_of(question: Question, response: Response, key: str) -> Prediction:
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


def single_draw_accuracy(questions: Sequence[Question], drawn: DrawnResponses) -> dict[str, float]:
    """Mean accuracy over draws of all questions and of each type."""
    right: dict[str, list[bool]] = {"all": []}
    for question, *responses in zip(questions, *drawn.by_draw, strict=True):
        correct = [is_right(question, response.text) for response in responses]
        right["all"] += correct
        right.setdefault(question.type or UNTYPED, []).extend(correct)
    return {kind: sum(flags) / len(flags) for kind, flags in right.items()}


def count_predictions(
    predictions: tuple[Prediction, ...], outcomes: Mapping[str, bool] | None, *, arm: str = "rollout"
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
        "alarms": alarms(predictions, arm=arm),
        "abstention": abstentions(predictions),
    }


def _without_none(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figure for name, figure in figures.items() if figure is not None}


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())
