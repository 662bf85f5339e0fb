"""Abstention: answer only the questions on which several draws of the rollout agree, and how accurate that is.

A curve of accuracy against coverage, the share of questions that are answered: they are answered in the order of their
draws' agreement, and of equal agreement in that of the averaged probability of the answer.

Source: Y. Geifman, R. El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from .metrics import Figure, Prediction, Score, accuracy, group_by_type

COVERAGES = tuple(round(0.05 * n, 2) for n in range(1, 21))
"""Of the points of a curve."""
REPORTED = 0.7
"""The coverage that tables name."""


class CoveragePoint(Figure):
    """The accuracy on the share of questions with the most agreement."""

    coverage: float
    questions: int
    accuracy: float
    agreement: float
    """The lowest among the questions that are answered."""


class AgreementLevel(Figure):
    """The questions on which the same share of draws gives the averaged answer."""

    agreement: float
    score: Score


class Abstention(Figure):
    """Accuracy by coverage, of questions that were answered from several draws."""

    questions: int
    points: tuple[CoveragePoint, ...]
    """By rising coverage, up to all questions."""
    levels: tuple[AgreementLevel, ...]
    """By falling agreement."""

    def accuracy_at(self, coverage: float) -> float:
        """The accuracy at the first point of at least this coverage."""
        return next(point.accuracy for point in self.points if point.coverage >= coverage - 1e-9)


def abstain(predictions: Sequence[Prediction]) -> Abstention | None:
    """The curve of some answers; None if none was answered from several draws."""
    drawn = [p for p in predictions if p.agreement is not None]
    if not drawn:
        return None
    ordered = sorted(drawn, key=_certainty, reverse=True)
    points = [
        CoveragePoint(
            coverage=coverage, questions=answered, accuracy=share, agreement=ordered[answered - 1].agreement or 0.0
        )
        for coverage, answered, share in accuracy_by_coverage([(_certainty(p), p.correct) for p in drawn])
    ]
    levels = tuple(
        AgreementLevel(agreement=agreement or 0.0, score=accuracy(list(group)))
        for agreement, group in groupby(ordered, key=lambda p: p.agreement)
    )
    return Abstention(questions=len(ordered), points=tuple(points), levels=levels)


def accuracy_by_coverage(answers: Sequence[tuple[tuple[float, ...], bool]]) -> list[tuple[float, int, float]]:
    """Coverage, questions answered and accuracy of each point of a curve.

    Args:
        answers: how certain each is, and whether it is right.
    """
    ordered = sorted(answers, key=lambda answer: answer[0], reverse=True)
    right: list[float] = []
    for _, group in groupby(ordered, key=lambda answer: answer[0]):  # of equal certainty none comes before another
        tied = [is_right for _, is_right in group]
        right += [sum(tied) / len(tied)] * len(tied)
    counts = [(coverage, max(1, math.ceil(coverage * len(right) - 1e-9))) for coverage in COVERAGES]
    return [(coverage, answered, math.fsum(right[:answered]) / answered) for coverage, answered in counts]


def abstentions(predictions: Sequence[Prediction]) -> dict[str, Abstention]:
    """The curves of `all` questions and of each type; empty if they were not answered from several draws."""
    groups: Iterable[tuple[str, Sequence[Prediction]]] = {"all": predictions, **group_by_type(predictions)}.items()
    return {name: curve for name, group in groups if (curve := abstain(group)) is not None}


def _certainty(prediction: Prediction) -> tuple[float, float]:
    return prediction.agreement or 0.0, prediction.confidence or 0.0
