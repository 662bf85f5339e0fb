"""Confidence intervals, tests, and one bootstrap that all comparisons share, on plain arrays.

The random units are clusters of questions (a scene, or a minimal pair of scenes) and training seeds. Several questions
of a cluster, or several seeds on one question, are never treated as independent.

Axes:  S seed   Q question   C cluster   R bootstrap replicate
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z = 1.959964  # two-sided 95 % of a normal
_CHUNK = 256  # replicates at a time, to save memory

Floats = NDArray[np.float64]


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, which stays within 0 and 1.

    It treats questions as independent, which several questions on one image are not.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927), without continuity correction.
    """
    return _wilson(correct / total, total, _Z)


def _wilson(share: float, total: float, z: float) -> tuple[float, float]:
    weight = z**2 / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered(correct: Sequence[bool], clusters: Sequence[str]) -> tuple[float, float]:
    """The 95 % interval of a share where questions of a cluster are not independent.

    It is Wilson's, with as many questions as independent ones would have the variance that is measured between
    clusters, and Student's t for the normal quantile, as the variance is known from few clusters. Never narrower than
    `wilson`. A single cluster says nothing about others: 0 to 1.

    Args:
        clusters: of each answer, in their order.

    Source: K.-Y. Liang, S. L. Zeger, Biometrika 73 (1986) for the variance, with the factor G / (G - 1);
    E. L. Korn, B. I. Graubard, Survey Methodology 24 (1998) for the effective number of questions; N. Dean,
    M. Pagano, J. Surv. Stat. Methodol. 3 (2015) for Wilson's interval with both.
    """
    right, totals = Counter[str](), Counter(clusters)
    for cluster, is_right in zip(clusters, correct, strict=True):
        right[cluster] += int(is_right)
    total, groups = len(correct), len(totals)
    if groups < 2:
        return 0.0, 1.0
    share = sum(right.values()) / total
    variance = sum((right[name] - share * count) ** 2 for name, count in totals.items())
    variance *= groups / (groups - 1) / total**2
    independent = share * (1 - share) / variance if variance else total
    if share in (0.0, 1.0):  # no cluster differs from another: then each may be one answer, given many times
        independent = groups
    return _wilson(share, min(independent, total), _student(groups - 1))


def _student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t.

    Source: M. Abramowitz, I. A. Stegun, Handbook of Mathematical Functions (1964), 26.7.5; exact values below 5.
    """
    if freedom < 5:
        return (12.7062, 4.30265, 3.18245, 2.77645)[freedom - 1]
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def sign_flips(differences: Iterable[int]) -> float:
    """Exact two-sided p-value that two readers of the same questions are equally good.

    If they are, the difference in each scene is as likely with the opposite sign. With one question per scene this is
    McNemar's exact test; with more, McNemar's p-values would be too small, since answers in a scene are dependent.

    Args:
        differences: for each scene, the number of correct answers of the first less that of the second.

    Source: R. A. Fisher, The Design of Experiments (1935), section 21: the randomization test of paired differences;
    Q. McNemar, Psychometrika 12 (1947).
    """
    nonzero = [difference for difference in differences if difference]
    sizes = list(map(abs, nonzero))
    largest, observed = sum(sizes), abs(sum(nonzero))
    if not observed:
        return 1.0
    probabilities = np.zeros(1 + largest)  # of each sum of the differences with sign +
    probabilities[0] = 1.0
    for size in sizes:
        probabilities /= 2
        probabilities[size:] += probabilities[:-size].copy()
    return min(1.0, 2 * float(probabilities[(largest + observed) // 2 :].sum()))


def paired_p_value(answers: Iterable[tuple[str, bool, bool]]) -> float:
    """`sign_flips` of two readers' answers to the same questions.

    Args:
        answers: for each question its cluster, and whether the first and the second reader answered correctly.
    """
    differences = Counter[str]()
    for cluster, first, second in answers:
        differences[cluster] += int(first) - int(second)
    return sign_flips(differences.values())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple tests, in the order given: at .05 the family-wise error rate is at most 5 %.

    Source: S. Holm, Scand. J. Statist. 6 (1979).
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its bootstrap intervals over scenes and seeds."""

    value: float
    low: float
    high: float
    """95 % interval."""
    low90: float
    high90: float
    p: float
    """Two-sided p-value that it is zero; only meaningful for a difference."""

    @classmethod
    def of(cls, value: float, replicates: Floats) -> Estimate:
        """A figure with the percentile intervals of its bootstrap replicates; NaN replicates are left out."""
        valid = replicates[~np.isnan(replicates)]
        if not len(valid):
            return cls(value, math.nan, math.nan, math.nan, math.nan, math.nan)
        low, low90, high90, high = np.quantile(valid, [0.025, 0.05, 0.95, 0.975]).tolist()
        return cls(value, low, high, low90, high90, p_of_sign(valid))

    def within(self, margin: float) -> bool:
        """Whether the figure is equivalent to zero: the 90 % interval lies inside the margin, both 5 % tests at once.

        Source: D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), TOST.
        """
        return -margin < self.low90 and self.high90 < margin


def p_of_sign(replicates: Floats) -> float:
    """Two-sided bootstrap p-value that a figure is zero: twice the smaller share of replicates on the other side.

    With R replicates it is at least 2 / (R + 1). NaN replicates are left out.
    """
    replicates = replicates[~np.isnan(replicates)]
    beyond = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(replicates) + 1))


def p_of_equivalence(replicates: Floats, margin: float) -> float:
    """p-value of TOST: the larger of the two one-sided tests against -margin and +margin. NaN is left out."""
    replicates = replicates[~np.isnan(replicates)]
    beyond = max(int((replicates <= -margin).sum()), int((replicates >= margin).sum()))
    return min(1.0, (beyond + 1) / (len(replicates) + 1))


class Bootstrap:
    """R draws of clusters and of seeds, with replacement; all comparisons share the draws.

    So the difference of two figures, or of two differences, is paired: take it replicate by replicate. n - 1 of n units
    are drawn, so that the variance is unbiased also for few seeds (n of n would give four fifths of it at five). A
    single seed is kept as it is: intervals are then over scenes alone. Variance that comes neither from scenes nor from
    seeds is counted up to three times, so intervals are rather too wide than too narrow.

    Source: J. N. K. Rao, C. F. J. Wu, J. Am. Stat. Assoc. 83 (1988), with n - 1 draws; A. B. Owen, Ann. Appl. Stat. 1
    (2007) for drawing both crossed factors.
    """

    def __init__(self, clusters: Sequence[str], seeds: int, *, replicates: int = 2000, seed: int = 0) -> None:
        """
        Args:
            clusters: of each question, in their order.
            seeds: S.
            replicates: R.
            seed: of the draws.
        """
        names, self._cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self._clusters, self._replicates = len(names), replicates
        rng = np.random.default_rng(seed)
        self._cluster_draws = _draws(rng, len(names), replicates)
        self._seed_draws = _draws(rng, seeds, replicates).astype(np.float64)

    def mean(self, right: NDArray[np.bool_], which: NDArray[np.bool_]) -> tuple[float, Floats]:
        """The share of correct answers among some questions, and its replicates (R,).

        Args:
            right: (S, Q), whether an answer is correct.
            which: (Q,), the questions that count.
        """
        values, cluster = right[:, which].astype(np.float64), self._cluster[which]
        if not values.size:
            return math.nan, np.full(self._replicates, np.nan)
        counts = np.bincount(cluster, minlength=self._clusters).astype(np.float32)
        cluster_sums = [np.bincount(cluster, weights=row, minlength=self._clusters) for row in values]
        sums = np.stack(cluster_sums).astype(np.float32)
        shares: list[Floats] = []
        for start in range(0, self._replicates, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            cluster_counts, seeds = self._cluster_draws[chunk].astype(np.float32), self._seed_draws[chunk]
            correct_counts = (cluster_counts @ sums.T).astype(np.float64)  # whole numbers: float32 holds them
            with np.errstate(invalid="ignore"):  # 0 / 0: none of these questions was drawn
                shares.append(
                    (correct_counts * seeds).sum(1) / ((cluster_counts @ counts).astype(np.float64) * seeds.sum(1))
                )
        return float(values.mean()), np.concatenate(shares)


def _draws(rng: np.random.Generator, units: int, replicates: int) -> NDArray[np.uint8]:
    """(R, units) how often each unit is drawn; more than 255 times is too improbable to matter."""
    if units == 1:
        return np.ones((replicates, 1), np.uint8)
    draw_counts = np.empty((replicates, units), np.uint8)
    for row in draw_counts:
        row[:] = np.bincount(rng.integers(units, size=units - 1), minlength=units)
    return draw_counts
