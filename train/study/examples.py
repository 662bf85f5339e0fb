"""Choose example scenes by a fixed rule: where the rollout helped most, and where it harmed most."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .answers import Answers
from .plan import TEST


def telling_scenes(
    answers: Answers, *, arm: str = "rollout", against: str = "frozen", each: int = 3
) -> dict[str, tuple[str, list[str]]]:
    """`win-1` … and `loss-1` …: a scene each, with the lines of its caption.

    Wins are the temporal questions of the test split that `arm` answers correctly in the most seeds more than
    `against`; losses are the reverse. Families take turns; among equals, the first in the file is taken. There are
    fewer if too few questions were won or lost, and none if an arm is missing.
    """
    labels = answers.study.primary
    if not (answers.has(arm, labels) and answers.has(against, labels)):
        return {}
    arm_counts, baseline_counts = (answers.right(name, labels).sum(axis=0) for name in (arm, against))
    questions = answers.splits[TEST].questions
    temporal = answers.splits[TEST].mask(type="temporal")
    seeds = answers.study.seeds
    scene_by_name: dict[str, tuple[str, list[str]]] = {}
    for name, gain in (("win", arm_counts - baseline_counts), ("loss", baseline_counts - arm_counts)):
        scenes_by_family: Counter[str] = Counter()
        gain = np.where(temporal, gain, 0)
        for number in range(1, each + 1):
            chosen_scenes = {scene for scene, _ in scene_by_name.values()}
            candidates = [n for n in np.nonzero(gain > 0)[0] if questions[n].scene_id not in chosen_scenes]
            if not candidates:
                break
            best = min(candidates, key=lambda n: (scenes_by_family[questions[n].family or ""], -gain[n], n))
            question = questions[best]
            scenes_by_family[question.family or ""] += 1
            scene_by_name[f"{name}-{number}"] = (
                question.scene_id,
                [
                    f"{question.question} {question.answer}",
                    f"correct with {arm} in {arm_counts[best]} of {seeds} seeds, "
                    f"with {against} in {baseline_counts[best]}",
                ],
            )
    return scene_by_name
