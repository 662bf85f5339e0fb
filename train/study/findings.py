"""The results of a study: accuracies, differences, ablations, the break-even curve, a verdict on each hypothesis.

All are plain values in results.json, from which alone the page can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ...pipeline.errors import ConfigError
from ...pipeline.files.limits import MAX_RESULT_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.store.folder import open_store
from ..data.arms import future_is_right, parse_arm
from ..evaluation.metrics import minimal_pairs
from ..evaluation.statistics import Floats, paired_p_value, wilson
from ..pages.intervals import as_share
from ..questions.record import Question, resolve_keys
from .answers import Answers, Mean, QuestionMask, Split
from .folder import UnitAnswers
from .hypotheses import judge
from .plan import TEST, Study
from .price import abstention_of, price

PAIR = "pair"
"""Stands among the question types for minimal pairs with both halves correct."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of a study."""

    results: dict[str, Any]
    """The content of results.json."""

    def to_json(self) -> str:
        """The text of results.json."""
        return json.dumps(self.results, indent=1, allow_nan=False)

    def tables(self) -> list[Table]:
        """The main figures as tables for a terminal."""
        study = self.results["study"]
        kinds = self.results["types"]
        seeds = f"{study['seeds']} seed{'s' * (study['seeds'] != 1)}"
        title = f"{study['primary']:,} labelled scenes, {seeds}, {study['budget']['train_steps']:,} updates"
        arms = Table("arm", "world tokens", *kinds, title=title)
        for arm in study["arms"]:
            row = [score_of(self.results, arm=arm, labels=study["primary"], type=kind) for kind in kinds]
            arms.add_row(arm, str(self.results["arms"][arm]["world_tokens"]), *map(text_of, row))
        verdicts = Table("hypothesis", "verdict", "why", title="hypotheses, stated before the runs")
        for name, hypothesis in self.results["hypotheses"].items():
            verdicts.add_row(f"{name} {hypothesis['claim']}", hypothesis["verdict"], hypothesis["why"])
        return [arms, verdicts]


def score_of(results: Mapping[str, Any], **fields: Any) -> dict[str, Any] | None:
    """The row of `scores` with these fields; fields that are not named are those of the whole test split."""
    fields = {"shown": fields["arm"], "split": TEST, "family": "", "about": "", "shift": "", **fields}
    return next((row for row in results["scores"] if all(row[name] == value for name, value in fields.items())), None)


def text_of(row: Mapping[str, Any] | None) -> str:
    """A share with its interval, or `-`."""
    return "-" if row is None or row["low"] is None else as_share(row["value"], row["low"], row["high"])


def read_outcomes(path: Path) -> dict[str, bool]:
    """Scene -> whether its rollout ends as the true scene does, from a JSON file.

    Raises:
        ConfigError: the file cannot be read or is something else.
    """
    try:
        outcomes = read_json(path, MAX_RESULT_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--outcomes {path} cannot be read: {error}") from error
    if not isinstance(outcomes, dict) or not all(isinstance(value, bool) for value in outcomes.values()):
        raise ConfigError(f'--outcomes {path} must hold one JSON object of scenes: {{"scene": true, …}}')
    return outcomes


def find(study: Study, units: Sequence[UnitAnswers], *, outcomes: Mapping[str, bool] | None = None) -> Findings:
    """All figures of the results page.

    Args:
        units: all of the study's, from `run_study`.
        outcomes: scene -> whether its rollout ends as the true scene does; for H6 and the break-even curve.
    """
    answers = Answers(study, units)
    facts: dict[str, Any] = read_json(study.out / "study.json", MAX_RESULT_BYTES)
    store = open_store(study.settings.store)
    tests = answers.splits[TEST].questions
    known_outcomes = (
        None if outcomes is None else {q.scene_id: outcomes[q.scene_id] for q in tests if q.scene_id in outcomes}
    )
    results: dict[str, Any] = {
        "format": 2,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": {
            "arms": list(study.arms),
            "labels": sorted(study.labels),
            "primary": study.primary,
            "seeds": study.seeds,
            "store": str(study.settings.store),
            "images": len(store),
            "futures_store": None if study.settings.futures is None else str(study.settings.futures),
            "questions": str(study.settings.questions),
            "asked": {
                name: {"questions": len(split.questions), "scenes": len({q.scene_id for q in split.questions})}
                for name, split in answers.splits.items()
            },
            **facts,
        },
        "types": [*sorted({str(q.type) for q in tests}, reverse=True), *([PAIR] if minimal_pairs(tests) else [])],
        "families": sorted({q.family or "" for q in tests} - {""}),
        "arms": {arm: {**_cost(arm, units), **price(study, arm)} for arm in study.arms},
        "abstention": abstention_of(answers, units),
        "scores": _scores(answers),
        "differences": _differences(answers),
        "heuristic": _heuristic(tests),
        "break_even": _break_even(answers, known_outcomes),
        "by_outcome": None if known_outcomes is None else _by_outcome(answers, known_outcomes),
        "hypotheses": judge(answers, known_outcomes),
    }
    return Findings(results)


def _cost(arm: str, units: Sequence[UnitAnswers]) -> dict[str, Any]:
    arm_units = [unit for unit in units if unit.arm == arm]
    return {
        "world_tokens": arm_units[0].train["world_tokens"],
        "updates": arm_units[0].train["train_steps"],
        "train_seconds": round(float(np.mean([unit.train["seconds"] for unit in arm_units])), 1),
        "last_loss": round(float(np.mean([unit.train["last_loss"] for unit in arm_units])), 4),
    }


def _cells(split: Split) -> list[dict[str, str]]:
    """The cells of accuracy: types, families and questions of each; in a shifted split also kinds of shift."""
    fields = ("type", "family", "about", "shift")
    cells: dict[tuple[str, ...], None] = {}
    for question in split.questions:
        kind, family, about, shift = ((getattr(question, name) or "") for name in fields)
        for cell in ((kind, "", "", ""), (kind, family, "", ""), (kind, family, about, ""), (kind, "", "", shift)):
            cells[cell] = None
    return [dict(zip(fields, cell, strict=True)) for cell in sorted(cells)]


def _scores(answers: Answers) -> list[dict[str, Any]]:
    study, rows = answers.study, []
    for unit in study.units():
        if unit.seed:
            continue
        for split_name, shown_arm in study.asked(unit, list(answers.splits)):
            split = answers.splits[split_name]
            head = {"arm": unit.arm, "shown": shown_arm, "labels": unit.labels, "split": split_name}
            swapped = shown_arm != unit.arm
            for cell in _cells(split):
                if not (swapped and (cell["about"] or cell["shift"])):
                    mask = split.mask(**cell)
                    mean = answers.mean(unit.arm, unit.labels, mask, shown_arm=shown_arm, split=split_name)
                    total = int(mask.sum())
                    intervals = [wilson(round(share * total), total) for share in mean.seeds]
                    rows.append({**head, **cell, "questions": total, **mean.to_json(), "wilson_by_seed": intervals})
            if pairs := minimal_pairs(split.questions):
                right = answers.right(unit.arm, unit.labels, shown_arm=shown_arm, split=split_name)
                both_right = np.zeros_like(right)
                for first, second in pairs:
                    both_right[:, first] = right[:, first] & right[:, second]
                mask = np.isin(np.arange(right.shape[1]), [first for first, _ in pairs])
                mean = Mean(*split.bootstrap.mean(both_right, mask), both_right[:, mask].mean(1).tolist())
                cell = {"type": PAIR, "family": "", "about": "", "shift": ""}
                rows.append({**head, **cell, "questions": len(pairs), **mean.to_json()})
    return rows


def _differences(answers: Answers) -> list[dict[str, Any]]:
    """Rollout against frozen and steps0 in every cell, gains and losses alike."""
    study, rows = answers.study, []
    for labels in sorted(study.labels):
        for against in ("frozen", "steps0"):
            for name, split in answers.splits.items():
                if not (answers.has("rollout", labels, split=name) and answers.has(against, labels, split=name)):
                    continue
                for cell in _cells(split):
                    mask = split.mask(**cell)
                    gain = answers.mean("rollout", labels, mask, split=name) - answers.mean(
                        against, labels, mask, split=name
                    )
                    rollout_right = answers.right("rollout", labels, split=name)[:, mask]
                    baseline_right = answers.right(against, labels, split=name)[:, mask]
                    clusters = [
                        question.cluster for question, selected in zip(split.questions, mask, strict=True) if selected
                    ]
                    exact = [
                        paired_p_value(zip(clusters, a.tolist(), b.tolist(), strict=True))
                        for a, b in zip(rollout_right, baseline_right, strict=True)
                    ]
                    head = {"against": against, "labels": labels, "split": name, **cell}
                    rows.append({**head, "questions": int(mask.sum()), **gain.to_json(), "p_by_seed": exact})
    return rows


def _heuristic(questions: Sequence[Question]) -> float | None:
    """The accuracy of the rule of thumb on temporal questions; None if no question has one."""
    correct = [q.heuristic == q.answer for q in questions if q.heuristic and q.type == "temporal"]
    return float(np.mean(correct)) if correct else None


def _break_even(answers: Answers, outcomes: Mapping[str, bool] | None) -> dict[str, Any] | None:
    """Accuracy against the share of futures that end correctly, and the share at which steps0 is as accurate."""
    study, split = answers.study, answers.splits[TEST]
    arms = [parse_arm(name) for name in study.arms if name not in study.table.arms and "true" in name]
    arms = [arm for arm in arms if arm.kind == "true"]
    if len(arms) < 2:
        return None
    file = study.settings.questions
    store, folder = open_store(study.settings.store), study.settings.images
    images = resolve_keys(split.questions, file, store, images=folder).keys
    temporal = split.mask(type="temporal")
    points: list[dict[str, Any]] = []
    for labels in sorted(study.labels):
        trained_arms = [arm for arm in arms if answers.has(arm.name, labels)]
        for arm in trained_arms if len(trained_arms) > 1 else ():
            correctness = future_is_right(arm, split.questions, images)
            outcome = float(np.mean([correctness[q.id] for q in split.questions if q.type == "temporal"]))
            mean = answers.mean(arm.name, labels, temporal)
            points.append({"arm": arm.name, "labels": labels, "outcome": outcome, **mean.to_json()})
    crossings: dict[str, float | None] = {}
    for labels in sorted(study.labels):
        if answers.has("steps0", labels) and any(point["labels"] == labels for point in points):
            line = answers.mean("steps0", labels, temporal).value
            curve = sorted((p["outcome"], p["value"]) for p in points if p["labels"] == labels)
            crossings[str(labels)] = crossing(curve, line)
    world = float(np.mean(list(outcomes.values()))) if outcomes else None
    return {"points": points, "needed": crossings, "world": world}


def crossing(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """The x at which a curve of (x, y), sorted by x, last rises through a level; None if it never does."""
    for (x0, y0), (x1, y1) in reversed(list(pairwise(curve))):
        if y0 <= level < y1:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return None


def _by_outcome(answers: Answers, outcomes: Mapping[str, bool]) -> dict[str, Any]:
    """Accuracy on temporal questions whose rollout ends correctly, and on those whose rollout ends wrongly; and how
    often it would have to end correctly for an arm to do as well as `frozen`, or else `steps0`."""
    split, primary = answers.splits[TEST], answers.study.primary
    by_outcome: dict[str, Any] = {}
    for name, ends_right in (("right", True), ("wrong", False)):
        mask = split.ends(outcomes, ends_right)
        by_outcome[name] = {"questions": int(mask.sum())}
        if mask.any():
            for arm in answers.study.arms:
                by_outcome[name][arm] = answers.mean(arm, primary, mask).to_json()
    baseline = next((arm for arm in ("frozen", "steps0") if arm in answers.study.arms), None)
    masks = [split.ends(outcomes, ends_right) for ends_right in (True, False)]
    if baseline is not None and all(mask.any() for mask in masks):
        against = {arm: _needed_share(answers, arm, baseline, masks) for arm in answers.study.arms if arm != baseline}
        by_outcome["needed"] = {"against": baseline, "share": against}
    return by_outcome


def _needed_share(answers: Answers, arm: str, baseline: str, masks: Sequence[QuestionMask]) -> dict[str, Any]:
    primary = answers.study.primary
    right, wrong = (answers.mean(arm, primary, mask) - answers.mean(baseline, primary, mask) for mask in masks)
    replicates = share_needed(right.replicates, wrong.replicates)
    known = replicates[~np.isnan(replicates)]  # none where so few scenes never show both ends in one replicate
    low, high = np.quantile(known, [0.025, 0.975], method="inverted_cdf") if len(known) else (np.nan, np.nan)
    shares = {"value": float(share_needed(np.array(right.value), np.array(wrong.value))), "low": low, "high": high}
    return {name: float(share) if np.isfinite(share) else None for name, share in shares.items()}


def share_needed(gain_right: Floats, gain_wrong: Floats) -> Floats:
    """The least share p of rollouts that must end correctly for p right + (1 - p) wrong = 0: 0 where wrong ones gain,
    too, inf where right ones gain nothing either.

    Args:
        gain_right, gain_wrong: over a baseline, where rollouts end correctly and where they do not.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = -gain_wrong / (gain_right - gain_wrong)
    needed = np.where(gain_wrong >= 0, 0.0, needed)
    return np.where((gain_wrong < 0) & (gain_right <= 0), np.inf, needed)
