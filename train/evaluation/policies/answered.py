"""Questions answered at several numbers of rollout steps, so that each policy picks among the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....pipeline.store.folder import LatentStore
from ...data.arms import parse_arm
from ...questions.record import Question, resolve_keys
from ..answering.many import Response
from ..own_words import is_right
from ..session import AnswerSession
from .gates import Flags, Floats, Rule, disagreement, margin

Steps = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AnsweredBySteps:
    """Questions answered at several numbers of steps."""

    questions: tuple[Question, ...]
    keys: Mapping[str, str]
    answers: Mapping[int, Sequence[Response]]
    """By steps; each in the order of the questions."""

    def by_rule(self, rule: Rule, all_steps: int) -> Steps:
        """Steps of each question."""
        return np.array([rule.steps(question, all_steps) for question in self.questions], np.int64)

    def images(self, steps: Steps) -> set[str]:
        """Keys of the images of which some question reads a step."""
        return {self.keys[q.id] for q, k in zip(self.questions, steps, strict=True) if k > 0}

    def right_with(self, steps: Steps) -> Flags:
        """(Q,) whether each question is answered correctly, at its number of steps."""
        right = {length: self.right(length) for length in self.answers}
        return np.array([right[int(k)][n] for n, k in enumerate(steps)], np.bool_)

    def right(self, steps: int) -> Flags:
        """(Q,) whether each question is answered correctly, all at one number of steps."""
        answers = zip(self.questions, self.answers[steps], strict=True)
        return np.array([is_right(question, response.text) for question, response in answers], np.bool_)

    def margins(self) -> Floats:
        """(Q,) how far the likeliest choice leads the next without any rollout; 0 for questions without choices."""
        return np.array([margin(response.probabilities) for response in self.answers[0]])


def answer_by_steps(
    session: AnswerSession,
    questions: Sequence[Question],
    lengths: Sequence[int],
    batch_size: int,
) -> AnsweredBySteps:
    """The questions that can be answered, answered at each of these numbers of steps."""
    questions = session.answerable(questions, steps=max(lengths))
    arm = parse_arm(session.trained_arm)
    opened_by_steps = {steps: session.open_arm(arm, questions, steps=steps) for steps in lengths}
    responses = {steps: session.answer(opened, batch_size=batch_size) for steps, opened in opened_by_steps.items()}
    return AnsweredBySteps(questions, opened_by_steps[0].keys, responses)


def disagreement_of_futures(answered: AnsweredBySteps, futures: LatentStore, file: Path, images: Path | None) -> Floats:
    """(Q,) how far the futures of each question's image disagree."""
    coverage = resolve_keys(answered.questions, file, futures, images=images)
    coverage.require_complete()
    keys = list(dict.fromkeys(coverage.keys.values()))
    spread = dict(zip(keys, disagreement(futures, keys), strict=True))
    return np.array([spread[coverage.keys[question.id]] for question in answered.questions])
