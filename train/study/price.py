"""What an arm costs: world tokens, bytes and rollout seconds of an image; and what abstaining gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...pipeline.store.folder import open_store
from ..evaluation.abstention import COVERAGES, accuracy_by_coverage
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
    channels, _, height, width = store.sample_shape
    frame_bytes = channels * height * width * (4 if store.recipe.dtype == "float32" else 2)
    recipe = open_store(settings.store).recipe
    steps = arm.steps(arm.stored_steps(recipe) if settings.steps is None else settings.steps)
    frame_0 = arm.kind in _FRAME_0 or not steps
    read = 0 if arm.kind == "text" else 1 if frame_0 else 1 + arm.needed_steps(steps, recipe)
    seconds = 0.0 if frame_0 else None if arm.kind == "true" else rollout_seconds(store)
    if table is not None and table.draws is not None and table.draws_store is not None:
        samples = open_store(table.draws_store)
        read = 1 + table.draws * steps
        seconds = rollout_seconds(samples)
        seconds = None if seconds is None else float(f"{seconds * table.draws / samples.recipe.draws:.4g}")
    return {"bytes": read * frame_bytes, "rollout_seconds": seconds}


def cost_ticks(costs: Sequence[float]) -> tuple[float, list[float]]:
    """The least cost above 0, up to which an axis of costs is linear, and where it has numbers.

    These are 0, where a cost is 0, and powers of 10; with fewer than two powers, the least and the largest cost.
    """
    least, largest = min(cost for cost in costs if cost > 0), max(costs)
    powers = [10.0**n for n in range(math.ceil(math.log10(least)), math.floor(math.log10(largest)) + 1)]
    return least, [*([0.0] if min(costs) == 0 else []), *(powers if len(powers) > 1 else sorted({least, largest}))]


def abstention_of(answers: Answers, units: Sequence[UnitAnswers]) -> dict[str, Any]:
    """By arm: accuracy of temporal questions by coverage, the mean over seeds, primary labels.

    The most certain are answered first: by the agreement of draws, where there are several, then by the probability of
    the answer. Arms that say neither are left out.
    """
    primary, temporal = answers.study.primary, np.flatnonzero(answers.splits[TEST].mask(type="temporal"))
    by_arm: dict[str, list[list[float]]] = {}
    for unit in units:
        certainties = [each[TEST] for each in (unit.agreement, unit.confidence) if TEST in each]
        if unit.labels != primary or not certainties or not len(temporal):
            continue
        right = answers.right(unit.arm, primary)[unit.seed]
        points = accuracy_by_coverage(
            [(tuple(certainty[n] for certainty in certainties), bool(right[n])) for n in temporal]
        )
        by_arm.setdefault(unit.arm, []).append([accuracy for _, _, accuracy in points])
    return {
        arm: [
            {"coverage": coverage, "accuracy": float(value)}
            for coverage, value in zip(COVERAGES, np.mean(seeds, 0), strict=True)
        ]
        for arm, seeds in by_arm.items()
    }
