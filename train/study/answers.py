"""The answers of a study as arrays of correct and wrong, and their means with bootstrap replicates.

Axes:  S seed   Q question of a split   R bootstrap replicate
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.progress import Progress
from ..evaluation.own_words import is_right
from ..evaluation.statistics import Bootstrap, Estimate, Floats
from ..questions.record import UNTYPED, Question, read_questions, select_split
from .folder import UnitAnswers
from .plan import TEST, Study, splits_of

Right = NDArray[np.bool_]
"""(S, Q)"""
QuestionMask = NDArray[np.bool_]
"""(Q,)"""


@dataclass(frozen=True, slots=True)
class Split:
    """The questions of a split, and one bootstrap for all figures of it."""

    questions: tuple[Question, ...]
    bootstrap: Bootstrap
    _fields: dict[str, NDArray[np.str_]] = field(default_factory=dict)

    def mask(self, **fields: str) -> QuestionMask:
        """The questions whose fields have these values; an empty value matches all."""
        chosen = np.ones(len(self.questions), bool)
        for name, value in fields.items():
            if value:
                if name not in self._fields:
                    self._fields[name] = np.array([getattr(question, name) or "" for question in self.questions])
                chosen &= self._fields[name] == value
        return chosen

    def ends(self, outcomes: Mapping[str, bool], right: bool) -> QuestionMask:
        """The temporal questions of scenes whose rollout ends correctly, or wrongly."""
        ends = np.array([outcomes.get(question.scene_id) is right for question in self.questions])
        return self.mask(type="temporal") & ends


class Answers:
    """Whether answers are correct, (S, Q), by arm trained, arm shown, labels and split."""

    def __init__(self, study: Study, units: Sequence[UnitAnswers]) -> None:
        self.study = study
        settings, file = study.settings, study.settings.questions
        # silent: run_study has warned of wrong rows
        silent = Progress.silent()
        questions_read = read_questions(file, columns=settings.columns, max_bad=settings.max_bad, progress=silent)
        everything = tuple(q if q.type else q.model_copy(update={"type": UNTYPED}) for q in questions_read)
        self.splits: dict[str, Split] = {}
        for name in splits_of(everything):
            questions = select_split(everything, name, file)
            clusters = [question.cluster for question in questions]
            self.splits[name] = Split(questions, Bootstrap(clusters, study.seeds))
        rows: dict[tuple[str, str, int, str], list[list[bool]]] = {}
        for unit in sorted(units, key=lambda unit: unit.seed):
            for split, answers_by_arm in unit.answers.items():
                for arm, answers in answers_by_arm.items():
                    row = list(map(is_right, self.splits[split].questions, answers))
                    rows.setdefault((unit.arm, arm, unit.labels, split), []).append(row)
        self._right = {name: np.array(seeds) for name, seeds in rows.items()}
        self._means: dict[tuple[str, str, int, str, bytes], Mean] = {}

    def has(self, arm: str, labels: int, *, shown_arm: str | None = None, split: str = TEST) -> bool:
        return (arm, shown_arm or arm, labels, split) in self._right

    def right(self, arm: str, labels: int, *, shown_arm: str | None = None, split: str = TEST) -> Right:
        return self._right[arm, shown_arm or arm, labels, split]

    def mean(
        self, arm: str, labels: int, mask: QuestionMask, *, shown_arm: str | None = None, split: str = TEST
    ) -> Mean:
        name = (arm, shown_arm or arm, labels, split, mask.tobytes())
        if name not in self._means:  # tables and comparisons ask for the same means
            right = self.right(arm, labels, shown_arm=shown_arm, split=split)
            value, replicates = self.splits[split].bootstrap.mean(right, mask)
            self._means[name] = Mean(value, replicates, right[:, mask].mean(1).tolist())
        return self._means[name]


@dataclass(frozen=True, slots=True)
class Mean:
    """A share of correct answers, or a difference of shares, paired by scene and seed."""

    value: float
    replicates: Floats
    seeds: list[float]

    def __sub__(self, other: Mean) -> Mean:
        seeds = [a - b for a, b in zip(self.seeds, other.seeds, strict=True)]
        return Mean(self.value - other.value, self.replicates - other.replicates, seeds)

    def estimate(self) -> Estimate:
        """The mean with its intervals."""
        return Estimate.of(self.value, self.replicates)

    def points(self) -> str:
        """As text: percentage points with the 95 % interval."""
        estimate = self.estimate()
        return f"{100 * self.value:+.1f} points [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"

    def to_json(self) -> dict[str, Any]:
        """As plain values, None in place of NaN, which JSON does not have."""
        values: dict[str, float] = asdict(self.estimate())
        without_nan = {name: None if math.isnan(value) else value for name, value in values.items()}
        return {**without_nan, "seeds": self.seeds}
