"""The plots of the evaluation page: accuracy against cost, calibration, distribution of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ..pages.intervals import error_bar
from ..pages.plotting import png, tidy
from .evaluate import Evaluation
from .metrics import Score

_INKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b52ab", "#000000")
"""Okabe and Ito's colors, one a run."""
_LONGEST = 40  # letters of a name
_TITLES = {
    "all": "all questions",
    "rollout right": "temporal, rollout ends correctly",
    "rollout wrong": "temporal, rollout ends wrongly",
}
"""Of the panels, by the name of a calibration."""
_WORDS = 12  # answers of a type that a histogram shows; the rest are rare

Named = Sequence[tuple[str, Evaluation]]
"""Evaluations and what a page calls them."""


def ink(number: int) -> str:
    """The color of the n-th run, the same in every picture."""
    return _INKS[number % len(_INKS)]


def price_plot(runs: Named, kind: str, price: str, label: str) -> bytes | None:
    """Accuracy of a question type against a cost, as PNG; None for fewer than three runs, which a table shows as well.

    A line joins the runs that no other one is both better and cheaper than.

    Args:
        kind: a question type, "" for all.
        price: field of `Evaluation`. label: of the axis.
    """
    costs = [(n, name, getattr(e, price), accuracy_of(e, kind)) for n, (name, e) in enumerate(runs)]
    points = [(n, name, float(x), y) for n, name, x, y in costs if x is not None and y is not None]
    if len(points) < 3:
        return None
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot()
    front = pareto([(x, y.accuracy) for _, _, x, y in points])
    line = sorted((points[index][2], points[index][3].accuracy) for index in front)
    axes.plot(*zip(*line, strict=True), color="#999999", linewidth=1, zorder=1)
    for index, (n, name, x, y) in enumerate(points):
        filled = ink(n) if index in front else "white"
        interval = error_bar(y.accuracy, y.low, y.high)
        marker: dict[str, Any] = {"marker": "o", "markerfacecolor": filled, "linestyle": ""}
        axes.errorbar(x, y.accuracy, yerr=interval, color=ink(n), label=_plain(name), **marker)
    axes.set_xlabel(label)
    axes.set_ylabel(f"accuracy, {kind or 'all'} questions")
    axes.margins(x=0.1)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    return png(figure)


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """The places of those (price, accuracy) that no other one is at least as good as in both and better in one."""
    return {
        n
        for n, (price, accuracy) in enumerate(points)
        if not any(
            p <= price and a >= accuracy and (p, a) != (price, accuracy) for p, a in (*points[:n], *points[n + 1 :])
        )
    }


def calibration_plot(runs: Named) -> bytes | None:
    """Accuracy against confidence, as PNG; where known, apart for rollouts that end correctly and wrongly.

    None where no question has choices.
    """
    calibrated = [(n, name, e.calibration) for n, (name, e) in enumerate(runs) if e.calibration]
    if not calibrated:
        return None
    panels = [title for title in _TITLES if any(title in calibration for _, _, calibration in calibrated)]
    figure = Figure(figsize=(3.6 * len(panels) + 0.6, 3.6))
    for column, title in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle=":")
        for n, name, calibration in calibrated:
            if title in calibration:
                bins = calibration[title].bins
                sizes = [12 + 60 * b.questions / calibration[title].questions for b in bins]
                x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
                axes.plot(x, y, color=ink(n), linewidth=1, label=_plain(name))
                axes.scatter(x, y, s=sizes, color=ink(n))
        axes.set_xlim(0, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("probability of the answer")
        axes.set_title(_TITLES[title], fontsize=10)
        if not column:
            axes.set_ylabel("share that is correct")
            axes.legend(frameon=False, fontsize=8, loc="lower right")
        tidy(axes)
    return png(figure)


def abstention_plot(runs: Named, kind: str) -> bytes | None:
    """Accuracy against the share of questions answered, as PNG; None where no run answered from several draws.

    A cross marks what one draw alone reaches on all questions.

    Args:
        kind: a question type, or `all`.
    """
    curves = [(n, name, e, e.abstention[kind]) for n, (name, e) in enumerate(runs) if kind in e.abstention]
    if not curves:
        return None
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot()
    for n, name, e, curve in curves:
        x, y = [point.coverage for point in curve.points], [point.accuracy for point in curve.points]
        axes.plot(x, y, color=ink(n), linewidth=1.5, label=_plain(name))
        axes.plot(1.0, e.single_draw[kind], "x", color=ink(n))
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("coverage: share of questions answered, those of most agreement first")
    axes.set_ylabel(f"accuracy, {kind} questions")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    return png(figure)


def answers_plot(runs: Named, kind: str) -> bytes:
    """How often each answer to a type of question is correct, and how often each run gives it, as PNG."""
    first_run = runs[0][1]
    given_answers = (word for _, e in runs for word in e.predicted.get(kind, {}))
    words = list(dict.fromkeys([*first_run.answers.get(kind, {}), *given_answers]))[:_WORDS]
    figure = Figure(figsize=(7, 0.9 + 0.14 * len(words) * (len(runs) + 1)))
    axes = figure.add_subplot()
    width = 0.8 / (len(runs) + 1)
    bars = [("correct answer", first_run.answers.get(kind, {}), "#bbbbbb")]
    bars += [(name, e.predicted.get(kind, {}), ink(n)) for n, (name, e) in enumerate(runs)]
    for number, (name, counts, color) in enumerate(bars):
        places = [-row - number * width for row in range(len(words))]
        axes.barh(places, [counts.get(word, 0) for word in words], width * 0.92, color=color, label=_plain(name))
    axes.set_yticks([-row - 0.4 + width / 2 for row in range(len(words))], [_plain(word) for word in words])
    axes.set_xlabel(f"{kind} questions")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    return png(figure)


def accuracy_of(evaluation: Evaluation, kind: str) -> Score | None:
    """The score of a question type, None where there are no such questions; "" is all."""
    return evaluation.by_type.get(kind) if kind else evaluation.overall


def _plain(text: str) -> str:
    """Text on one line; its end where it is long. A legend would leave out what begins with `_`."""
    text = " ".join(text.split())
    return (text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}").lstrip("_")
