"""The figures of the evaluation page: accuracy, ablations, accuracy against cost, calibration, answers."""

from __future__ import annotations

from collections.abc import Sequence

from ..pages import intervals
from ..pages.charts import Bar, Curve, Point, bars, plot
from ..pages.html import Html
from .metrics import Score
from .results.saved import Evaluation

TITLES = {
    "all": "all questions",
    "rollout right": "temporal, rollout ends correctly",
    "rollout wrong": "temporal, rollout ends wrongly",
}
"""What a page calls a calibration, by its name in an evaluation."""
_INPUTS = {
    "rollout": "the predicted future",
    "frozen": "the first frame, repeated",
    "shuffled": "another scene's future",
    "reversed": "the future, backwards",
    "noise": "noise as the future",
    "true": "the true future",
    "steps0": "the first frame alone",
    "text": "no image",
}
"""What the reader is shown, by arm."""
_FEW = 5  # answers in a bin of a calibration, below which its accuracy says nothing
_WORDS = 12  # answers of a type that a figure shows; the rest are rare

Named = Sequence[tuple[str, Evaluation]]
"""Evaluations and what a page calls them."""


def accuracy_figure(runs: Named, kinds: Sequence[str]) -> Html:
    """Accuracy by type of question, a bar for each run."""
    groups: list[tuple[str, list[Bar]]] = []
    for kind in kinds:
        scores = [(n, name, e.by_type.get(kind)) for n, (name, e) in enumerate(runs)]
        groups.append((f"{kind} questions", [_bar(name, score, n) for n, name, score in scores if score is not None]))
    alt = f"Accuracy of {len(runs)} runs by question type; the table in the details has the values"
    return bars("Accuracy by question type, with 95 % intervals", alt, [group for group in groups if group[1]])


def ablation_figure(trained: Sequence[Evaluation], swaps: Sequence[Evaluation], kind: str) -> Html:
    """Accuracy of each run with its own input and with others in place of it; nothing without ablations."""
    groups: list[tuple[str, list[Bar]]] = []
    for n, e in enumerate(trained):
        compared = [e, *(swap for swap in swaps if swap.run == e.run)]
        members = [
            _bar(_input_of(evaluation, e), score, n)
            for evaluation in compared
            if (score := accuracy_of(evaluation, kind)) is not None
        ]
        if len(members) > 1:
            groups.append((e.run, members))
    if not groups:
        return Html("")
    title = f"Ablations: the same run, shown another input ({kind or 'all'} questions)"
    return bars(title, f"Accuracy by input shown, {kind or 'all'} questions; values in the details", groups)


def _input_of(one: Evaluation, own: Evaluation) -> str:
    """What an evaluation showed, in words."""
    words = f": {_INPUTS[one.arm]}" if one.arm in _INPUTS else ""
    return f"{one.arm}{words}" if one.steps == own.steps else f"{one.arm}, {one.steps} steps"


def price_figure(runs: Named, kind: str, price: str, label: str) -> Html:
    """Accuracy of a question type against a cost; nothing for fewer than three runs, or if all cost the same.

    A line joins the runs that no other one is both better and cheaper than.

    Args:
        kind: a question type, "" for all.
        price: field of `Evaluation`. label: of the axis.
    """
    costs = [(n, name, getattr(e, price), accuracy_of(e, kind)) for n, (name, e) in enumerate(runs)]
    points = [(n, name, float(x), y) for n, name, x, y in costs if x is not None and y is not None]
    if len(points) < 3 or len({x for _, _, x, _ in points}) < 2:
        return Html("")
    best = pareto([(x, y.accuracy) for _, _, x, y in points])
    front = sorted((points[index][2], points[index][3].accuracy) for index in best)
    curves = [Curve("Pareto front", [Point(x, y) for x, y in front], ink=7, dots=False)]
    curves += [
        Curve(name, [Point(x, y.accuracy, y.low, y.high)], ink=n, line=False) for n, name, x, y in points
    ]  # fmt: skip
    kinds = kind or "all"
    return plot(
        f"Accuracy, {kinds} questions, against cost",
        f"Accuracy of {kinds} questions against {label}, by run",
        curves,
        x_label=label,
        y_range=None,
    )


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """The places of those (price, accuracy) that no other one is at least as good as in both and better in one."""
    return {
        n
        for n, (price, accuracy) in enumerate(points)
        if not any(
            p <= price and a >= accuracy and (p, a) != (price, accuracy) for p, a in (*points[:n], *points[n + 1 :])
        )
    }


def calibration_figures(runs: Named) -> list[Html]:
    """Accuracy against confidence; where known, apart for rollouts that end correctly and wrongly."""
    drawn: list[Html] = []
    for group, title in TITLES.items():
        calibrations = [(n, name, e.calibration[group]) for n, (name, e) in enumerate(runs) if group in e.calibration]
        if not calibrations:
            continue
        curves = [Curve("perfectly calibrated", [Point(0, 0), Point(1, 1)], ink=7, dashed=True, dots=False)]
        for n, name, calibration in calibrations:
            points = [
                Point(b.confidence, b.accuracy, weight=b.questions / calibration.questions)
                for b in calibration.bins
                if b.questions >= _FEW
            ]
            curves.append(Curve(name, points, ink=n))
        if not any(curve.points for curve in curves[1:]):
            continue
        drawn.append(
            plot(
                f"Calibration, {title}: accuracy by probability (larger dots: more answers; bins of {_FEW} or more)",
                f"Share of correct answers against their probability, by run, {title}",
                curves,
                x_label="probability of the answer",
                x_ticks=[0, 0.25, 0.5, 0.75, 1],
            )
        )
    return drawn


def abstention_figure(runs: Named, kind: str) -> Html:
    """Accuracy against the share of questions answered; nothing where no run answered from several draws.

    Args:
        kind: a question type, or `all`.
    """
    evaluations = [(n, name, e, e.abstention[kind]) for n, (name, e) in enumerate(runs) if kind in e.abstention]
    if not evaluations:
        return Html("")
    curves: list[Curve] = []
    for n, name, e, abstention in evaluations:
        curves.append(Curve(name, [Point(p.coverage, p.accuracy) for p in abstention.points], n, dots=False))
        curves.append(Curve(f"{name}, one draw alone", [Point(1.0, e.single_draw[kind])], n, line=False))
    return plot(
        f"Abstention by agreement, {kind} questions",
        f"Accuracy of {kind} questions by the share that is answered, by run",
        curves,
        x_label="share of questions answered",
        y_range=None,
    )


def answers_figure(runs: Named, kind: str) -> Html:
    """How often each answer to a type of question is correct, and how often each run gives it."""
    correct = runs[0][1].answers.get(kind, {})
    given_answers = (word for _, e in runs for word in e.predicted.get(kind, {}))
    words = list(dict.fromkeys([*correct, *given_answers]))[:_WORDS]
    counts = [
        ("correct answer", correct, 7),
        *((name, e.predicted.get(kind, {}), n) for n, (name, e) in enumerate(runs)),
    ]
    groups = [
        (word, [Bar(name, count := by_word.get(word, 0), ink=ink, text=f"{count:,}") for name, by_word, ink in counts])
        for word in words
    ]
    most = max([1, *(bar.value for _, members in groups for bar in members)])
    alt = f"How often each answer to {kind} questions is correct, and how often each run gives it"
    return bars(f"Answers to {kind} questions", alt, groups, top=most)


def accuracy_of(evaluation: Evaluation, kind: str) -> Score | None:
    """The score of a question type, None where there are no such questions; "" is all."""
    return evaluation.by_type.get(kind) if kind else evaluation.overall


def _bar(name: str, score: Score, ink: int) -> Bar:
    text = intervals.as_percent(score.accuracy, None, None)
    return Bar(name, score.accuracy, score.low, score.high, ink=ink, text=text)
