"""What an arm costs: world tokens, bytes and rollout seconds of an image; and what abstaining by its draws gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...pipeline.store.folder import open_store
from ..evaluation.abstention import COVERAGES, abstain
from ..evaluation.metrics import Prediction
from ..evaluation.own_words import is_right
from ..evaluation.price import rollout_seconds
from .answers import Answers
from .folder import UnitAnswers
from .plan import TEST, Study

_FRAME_0 = ("text", "steps0", "frozen", "noise")  # of the store they read frame 0 at the most, and no rollout


def price(study: Study, name: str) -> dict[str, Any]:
    """Bytes that an arm reads of an image, as stored, and seconds that a worker needed for it; None where unknown.

    Draws count each. An arm that reads frame 0 alone needs no rollout, and neither do true futures.
    """
    table, settings, arm = study.table.arms.get(name), study.settings_of(name), study.arm_of(name)
    place = settings.futures if arm.kind == "true" and settings.futures is not None else settings.store
    store = open_store(place)
    channels, frames, height, width = store.sample_shape
    frame_bytes = channels * height * width * (4 if store.recipe.dtype == "float32" else 2)
    read = 0 if arm.kind == "text" else 1 if arm.kind in _FRAME_0 else frames
    seconds = 0.0 if arm.kind in _FRAME_0 else None if arm.kind == "true" else rollout_seconds(store)
    if table is not None and table.draws is not None and table.draws_store is not None:
        samples = open_store(table.draws_store)
        steps = samples.recipe.steps_of_a_draw
        read = 1 + table.draws * steps
        seconds = rollout_seconds(samples)
        seconds = None if seconds is None else float(f"{seconds * table.draws / samples.recipe.draws:.4g}")
    return {"bytes": read * frame_bytes, "rollout_seconds": seconds}


def abstention_of(answers: Answers, units: Sequence[UnitAnswers]) -> dict[str, Any]:
    """By arm with several draws: accuracy of temporal questions by coverage, the mean over seeds, primary labels."""
    questions, primary = answers.splits[TEST].questions, answers.study.primary
    by_arm: dict[str, list[list[float]]] = {}
    for unit in units:
        if unit.labels != primary or TEST not in unit.agreement:
            continue
        given, agreement = unit.answers[TEST][unit.arm], unit.agreement[TEST]
        predictions = [
            Prediction(
                id=question.id,
                type=question.type or "",
                predicted=text,
                answer=question.answer,
                correct=is_right(question, text),
                scene=question.scene_id,
                agreement=share,
            )
            for question, text, share in zip(questions, given, agreement, strict=True)
            if question.type == "temporal"
        ]
        if (curve := abstain(predictions)) is not None:
            by_arm.setdefault(unit.arm, []).append([point.accuracy for point in curve.points])
    return {
        arm: [
            {"coverage": coverage, "accuracy": float(value)}
            for coverage, value in zip(COVERAGES, np.mean(seeds, 0), strict=True)
        ]
        for arm, seeds in by_arm.items()
    }
