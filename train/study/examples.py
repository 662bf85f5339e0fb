"""Which scenes to look at: where the rollout helped most, and where it harmed most, by a rule that chooses nothing.

Elsewhere: who was right where (study_answers.py), drawing the scenes (whoever has the world model).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from .answers import Answers
from .run import TEST


def telling_scenes(
    answers: Answers, *, arm: str = "rollout", against: str = "frozen", each: int = 3
) -> dict[str, tuple[str, list[str]]]:
    """`win-1` … and `loss-1` …: a scene each, and what to write below it.

    Wins are the temporal questions of the test split on which `arm` is right in most seeds more than `against`, losses
    the other way round. Families take turns; within one, the first in the file among equals. Where nothing was won, or
    nothing lost, there are fewer. Empty where an arm is missing.
    """
    labels = answers.study.primary
    if not (answers.has(arm, labels) and answers.has(against, labels)):
        return {}
    ours, theirs = (answers.right(name, labels).sum(axis=0) for name in (arm, against))
    questions = answers.splits[TEST].questions
    temporal = answers.splits[TEST].which(type="temporal")
    seeds = answers.study.seeds
    told: dict[str, tuple[str, list[str]]] = {}
    for name, gain in (("win", ours - theirs), ("loss", theirs - ours)):
        used: Counter[str] = Counter()
        gain = np.where(temporal, gain, 0)
        for number in range(1, each + 1):
            taken = {scene for scene, _ in told.values()}
            left = [n for n in np.nonzero(gain > 0)[0] if questions[n].scene_id not in taken]
            if not left:
                break
            best = min(left, key=lambda n: (used[questions[n].family or ""], -gain[n], n))
            question = questions[best]
            used[question.family or ""] += 1
            told[f"{name}-{number}"] = (
                question.scene_id,
                [
                    f"{question.question} {question.answer}",
                    f"right with the {arm} in {ours[best]} of {seeds} seeds, with {against} in {theirs[best]}",
                ],
            )
    return told
