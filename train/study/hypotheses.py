"""The hypotheses of a study, stated before its first run, and a verdict on each.

All are about the study's primary label count and the test split:

    H1  temporal questions: rollout is better than frozen
    H2  static questions: rollout and frozen differ by less than 3 points
    H3  rollout gains more over frozen on temporal questions than on static ones
    H4  temporal questions: true is better than rollout, and rollout better than shuffled
    H5  rollout reaches 80 % of the temporal questions with fewer labels than steps0
    H6  rollout gains more over steps0 where its outcome is correct than where it is wrong; there, less than 3 points

A study whose file states hypotheses of its own (arms.py) is judged on those, and not on H1 to H6.

Supported: significant in the stated direction at 5 %, after Holm's adjustment for multiple tests. Not supported:
significant in the other direction. Undecided: neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..evaluation.statistics import Floats, holm, p_of_equivalence, p_of_sign
from .answers import Answers, Mean
from .arms import HypothesisTable
from .plan import TEST

MARGIN = 0.03
"""Smaller differences count as none."""
GOAL = 0.80
"""The accuracy of H5."""
ALPHA = 0.05


def judge(answers: Answers, outcomes: Mapping[str, bool] | None) -> dict[str, Any]:
    """A verdict on each: supported, not supported, undecided, or not tested; p-values with Holm's adjustment."""
    tests = _stated(answers, outcomes) or _built_in(answers, outcomes)
    verdicts: dict[str, _Verdict] = {}
    for name, (_, arms, kinds, test) in tests.items():
        absent = [f"arm {arm}" for arm in arms if not answers.has(arm, answers.study.primary)]
        absent += [f"question of type {kind}" for kind in kinds if not answers.splits[TEST].mask(type=kind).any()]
        verdicts[name] = _Verdict({}, math.nan, False, f"no {', no '.join(absent)}") if absent else test()
    tested = [name for name, verdict in verdicts.items() if not math.isnan(verdict.p)]
    adjusted = dict(zip(tested, holm([verdicts[name].p for name in tested]), strict=True))
    return {
        name: {
            "claim": tests[name][0],
            "verdict": _word(verdict, adjusted.get(name)),
            "why": verdict.why,
            "p": verdict.p if name in adjusted else None,
            "p_holm": adjusted.get(name),
            "figures": verdict.figures,
        }
        for name, verdict in verdicts.items()
    }


_Tests = dict[str, tuple[str, tuple[str, ...], tuple[str, ...], Callable[[], "_Verdict"]]]
"""By name: the claim, the arms and the question types it needs, and the test."""


def _stated(answers: Answers, outcomes: Mapping[str, bool] | None) -> _Tests:
    """The hypotheses that the study's file states."""
    return {
        name: (table.text(), (table.arm, table.than), (table.type,), partial(_judge_stated, answers, table, outcomes))
        for name, table in answers.study.table.hypotheses.items()
    }


def _judge_stated(answers: Answers, table: HypothesisTable, outcomes: Mapping[str, bool] | None) -> _Verdict:
    split, primary = answers.splits[TEST], answers.study.primary
    mask = split.mask(type=table.type)
    if table.ends is not None:
        if not outcomes:
            return _Verdict({}, math.nan, False, _without_outcomes(outcomes))
        mask = split.ends(outcomes, table.ends == "right")
        if not mask.any():
            return _Verdict({}, math.nan, False, f"no rollout of the test split ends {table.ends}")
    gain = answers.mean(table.arm, primary, mask) - answers.mean(table.than, primary, mask)
    figures: dict[str, Any] = {"gain": gain.to_json()}
    if table.claim == "better":
        return _Verdict(figures, *_greater(gain), gain.points())
    figures["margin"] = table.margin
    estimate = gain.estimate()
    if table.claim == "equivalent":
        outside = estimate.low > table.margin or estimate.high < -table.margin
        why = f"{gain.points()}; 90 % [{100 * estimate.low90:+.1f}, {100 * estimate.high90:+.1f}]"
        p = p_of_equivalence(gain.replicates, table.margin)
        return _Verdict(figures, p, outside, f"{why} against ±{100 * table.margin:g}")
    valid = gain.replicates[~np.isnan(gain.replicates)]
    p = (int((valid <= -table.margin).sum()) + 1) / (len(valid) + 1)  # one-sided: no loss as large as the margin
    return _Verdict(figures, p, estimate.high < -table.margin, f"{gain.points()} against -{100 * table.margin:g}")


def _built_in(answers: Answers, outcomes: Mapping[str, bool] | None) -> _Tests:
    """H1 to H6, which need questions of both types."""
    both = ("temporal", "static")
    tests: dict[str, tuple[str, tuple[str, ...], Callable[[], _Verdict]]] = {
        "H1": ("temporal: rollout > frozen", ("rollout", "frozen"), lambda: _h1(answers)),
        "H2": ("static: |rollout - frozen| < 3 points", ("rollout", "frozen"), lambda: _h2(answers)),
        "H3": ("gain on temporal > gain on static", ("rollout", "frozen"), lambda: _h3(answers)),
        "H4": ("temporal: true > rollout > shuffled", ("true", "rollout", "shuffled"), lambda: _h4(answers)),
        "H5": ("80 % with fewer labels than steps0", ("rollout", "steps0"), lambda: _h5(answers)),
        "H6": (
            "gain follows the rollout's own outcome",
            ("rollout", "steps0"),
            lambda: _h6(answers, outcomes),
        ),
    }
    return {name: (claim, arms, both, test) for name, (claim, arms, test) in tests.items()}


@dataclass(frozen=True, slots=True)
class _Verdict:
    figures: dict[str, Any]
    p: float
    """p-value of the claim; NaN if it could not be tested."""
    against: bool
    """Whether the claim is significantly wrong."""
    why: str


def _word(verdict: _Verdict, p_holm: float | None) -> str:
    if p_holm is None:
        return "not tested"
    if p_holm < ALPHA and not verdict.against:
        return "supported"
    return "not supported" if verdict.against else "undecided"


def _gain(answers: Answers, kind: str, arm: str, baseline: str) -> Mean:
    mask, primary = answers.splits[TEST].mask(type=kind), answers.study.primary
    return answers.mean(arm, primary, mask) - answers.mean(baseline, primary, mask)


def _greater(gain: Mean) -> tuple[float, bool]:
    """p-value of no gain, and whether there is a significant loss."""
    estimate = gain.estimate()
    return (estimate.p if gain.value > 0 else 1.0), estimate.high < 0


def _h1(answers: Answers) -> _Verdict:
    gain = _gain(answers, "temporal", "rollout", "frozen")
    return _Verdict({"gain": gain.to_json()}, *_greater(gain), gain.points())


def _h2(answers: Answers) -> _Verdict:
    gain = _gain(answers, "static", "rollout", "frozen")
    estimate = gain.estimate()
    outside = estimate.low > MARGIN or estimate.high < -MARGIN
    p = p_of_equivalence(gain.replicates, MARGIN)
    why = f"{gain.points()}; 90 % [{100 * estimate.low90:+.1f}, {100 * estimate.high90:+.1f}] against ±3"
    return _Verdict({"gain": gain.to_json(), "margin": MARGIN}, p, outside, why)


def _h3(answers: Answers) -> _Verdict:
    extra = _gain(answers, "temporal", "rollout", "frozen") - _gain(answers, "static", "rollout", "frozen")
    return _Verdict({"difference": extra.to_json()}, *_greater(extra), extra.points())


def _h4(answers: Answers) -> _Verdict:
    upper, lower = _gain(answers, "temporal", "true", "rollout"), _gain(answers, "temporal", "rollout", "shuffled")
    (p_upper, against_upper), (p_lower, against_lower) = _greater(upper), _greater(lower)
    figures = {"true - rollout": upper.to_json(), "rollout - shuffled": lower.to_json()}
    why = f"true over rollout {upper.points()}, rollout over shuffled {lower.points()}"
    return _Verdict(figures, max(p_upper, p_lower), against_upper or against_lower, why)  # both must hold


def _h5(answers: Answers) -> _Verdict:
    counts = [n for n in sorted(answers.study.labels) if answers.has("rollout", n) and answers.has("steps0", n)]
    if len(counts) < 2:
        return _Verdict({}, math.nan, False, "needs rollout and steps0 at two label counts or more")
    mask = answers.splits[TEST].mask(type="temporal")
    needed_by_arm: dict[str, tuple[float, Floats]] = {}
    for arm in ("rollout", "steps0"):
        means = [answers.mean(arm, labels, mask) for labels in counts]
        value = labels_needed(counts, np.array([[mean.value for mean in means]]))
        replicates = labels_needed(counts, np.stack([mean.replicates for mean in means], 1))
        needed_by_arm[arm] = float(value[0]), replicates
    rollout_labels, rollout_draws = needed_by_arm["rollout"]
    steps0_labels, steps0_draws = needed_by_arm["steps0"]
    labels_by_arm = {arm: _labels(value, counts) for arm, (value, _) in needed_by_arm.items()}
    why = f"rollout {labels_by_arm['rollout']}, steps0 {labels_by_arm['steps0']}"
    if rollout_labels == steps0_labels:  # both at the first count, or neither at any
        return _Verdict({"labels": labels_by_arm}, 1.0, False, f"{why}: the label counts do not tell them apart")
    fewer = np.sign(np.nan_to_num(steps0_draws, posinf=1e9) - np.nan_to_num(rollout_draws, posinf=1e9))
    p = p_of_sign(fewer)
    is_wrong = rollout_labels > steps0_labels and p < ALPHA
    return _Verdict({"labels": labels_by_arm}, p if rollout_labels < steps0_labels else 1.0, is_wrong, why)


def labels_needed(counts: Sequence[int], accuracies: Floats, goal: float = GOAL) -> Floats:
    """(R,) labels at which accuracy first reaches a goal, interpolated in log labels; inf if it never does.

    Args:
        counts: label counts, rising.
        accuracies: (R, len(counts)).
    """
    needed = np.full(len(accuracies), np.inf)
    for index in reversed(range(len(counts))):
        reached = accuracies[:, index] >= goal
        if index == 0:
            needed[reached] = counts[0]
            break
        before, after = accuracies[:, index - 1], accuracies[:, index]
        rising = reached & (before < goal)
        share = (goal - before[rising]) / (after - before)[rising]
        low, high = math.log(counts[index - 1]), math.log(counts[index])
        needed[rising] = np.exp(low + share * (high - low))
    return needed


def _labels(value: float, counts: Sequence[int]) -> str:
    if math.isinf(value):
        return f"not with {counts[-1]} labels"
    return f"with {counts[0]} labels or fewer" if value <= counts[0] else f"with about {value:.0f} labels"


def _without_outcomes(outcomes: Mapping[str, bool] | None) -> str:
    return "no --outcomes were given" if outcomes is None else "--outcomes names no scene of the test split"


def _h6(answers: Answers, outcomes: Mapping[str, bool] | None) -> _Verdict:
    if not outcomes:
        return _Verdict({}, math.nan, False, _without_outcomes(outcomes))
    split, primary = answers.splits[TEST], answers.study.primary
    gains: list[Mean] = []
    for ends_right in (True, False):
        mask = split.ends(outcomes, ends_right)
        if not mask.any():
            end = "right" if ends_right else "wrong"
            return _Verdict({}, math.nan, False, f"no rollout of the test split ends {end}")
        gains.append(answers.mean("rollout", primary, mask) - answers.mean("steps0", primary, mask))
    right, wrong = gains
    p_more, against_more = _greater(right - wrong)
    valid = wrong.replicates[~np.isnan(wrong.replicates)]
    p_none = (int((valid >= MARGIN).sum()) + 1) / (len(valid) + 1)  # one-sided: no gain beyond the margin
    helps = wrong.estimate().low > MARGIN
    figures = {"right": right.to_json(), "wrong": wrong.to_json(), "difference": (right - wrong).to_json()}
    why = f"outcome right {right.points()}, outcome wrong {wrong.points()}"
    return _Verdict(figures, max(p_more, p_none), against_more or helps, why)
