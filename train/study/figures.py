"""The figures of a study's page as SVG, drawn from the values of results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...pipeline.messages import format_amount
from ..pages import intervals
from ..pages.charts import Bar, Curve, Point, bars, differences, plot
from ..pages.html import Html
from .arm_colors import page_color_of
from .findings import score_of
from .plan import SHIFTED
from .plots import gains, name_of, verdict_of
from .price import cost_ticks

Results = Mapping[str, Any]

_VERDICTS = {"gain": 0, "loss": 1, "neither": 7}
_MOST = 60
"""Rows of the gains; more would not be read."""


def plain_arms(results: Results) -> list[str]:
    """The arms without `true@P`, which have a figure of their own."""
    return [arm for arm in results["study"]["arms"] if "@" not in arm]


def arms_figures(results: Results) -> list[Html]:
    """Accuracy by arm at the primary label count, a figure for each type of question; out of distribution, too."""
    drawn = [_by_arm(results, kind, f"Accuracy by arm, {kind} questions") for kind in results["types"]]
    if SHIFTED in results["study"]["asked"]:
        title = "Accuracy by arm, temporal questions, out of distribution"
        drawn.append(_by_arm(results, "temporal", title, split=SHIFTED))
    return drawn


def _by_arm(results: Results, kind: str, title: str, **where: str) -> Html:
    primary = results["study"]["primary"]
    drawn = [
        (arm, row)
        for arm in plain_arms(results)
        if (row := score_of(results, arm=arm, labels=primary, type=kind, **where)) is not None
    ]
    members = [_bar(results, arm, row) for arm, row in drawn]
    return bars(title, f"{title}, {primary:,} labelled scenes", [("", members)]) if members else Html("")


def _bar(results: Results, arm: str, row: Mapping[str, Any]) -> Bar:
    text = intervals.as_percent(row["value"], None, None)
    return Bar(arm, row["value"], row["low"], row["high"], ink=page_color_of(results, arm), text=text)


def learning_figures(results: Results) -> list[Html]:
    """Accuracy against labelled scenes, by arm; nothing for a single count."""
    labels: list[int] = results["study"]["labels"]
    if len(labels) < 2:
        return []
    drawn: list[Html] = []
    for kind in (kind for kind in results["types"] if kind in ("temporal", "static")):
        curves: list[Curve] = []
        for arm in plain_arms(results):
            rows = [(count, score_of(results, arm=arm, labels=count, type=kind)) for count in labels]
            points = [_point(count, row) for count, row in rows if row is not None]
            curves.append(Curve(arm, points, ink=page_color_of(results, arm)))
        if kind == "temporal" and results["heuristic"] is not None:
            ends = [Point(count, results["heuristic"]) for count in (labels[0], labels[-1])]
            curves.append(Curve("rule of thumb", ends, ink=7, dashed=True, dots=False))
        drawn.append(
            plot(
                f"Accuracy against labels, {kind} questions",
                f"Accuracy of {kind} questions against labelled scenes, by arm",
                curves,
                x_label="labelled training scenes",
                x_ticks=labels,
                x_name="{:,.0f}".format,
                logarithmic=True,
                y_range=None,
            )
        )
    return drawn


def _point(x: float, row: Mapping[str, Any]) -> Point:
    return Point(x, row["value"], row["low"], row["high"])


def break_even_figure(results: Results) -> Html:
    """Temporal accuracy against the share of futures that end correctly; dashed: frame 0 alone with as many labels."""
    if results["break_even"] is None:
        return Html("")
    points, world = results["break_even"]["points"], results["break_even"]["world"]
    curves: list[Curve] = []
    for ink, count in enumerate(results["study"]["labels"]):
        curve = sorted((p for p in points if p["labels"] == count), key=lambda p: p["outcome"])
        if not curve:
            continue
        curves.append(Curve(f"{count:,} labels, futures partly wrong", [_point(p["outcome"], p) for p in curve], ink))
        baseline = score_of(results, arm="steps0", labels=count, type="temporal")
        if baseline is not None:
            ends = [Point(curve[n]["outcome"], baseline["value"]) for n in (0, -1)]
            curves.append(Curve(f"{count:,} labels, frame 0 alone (dashed)", ends, ink, dashed=True, dots=False))
        rollout = score_of(results, arm="rollout", labels=count, type="temporal")
        if rollout is not None and world is not None:
            curves.append(Curve(f"{count:,} labels, the world model", [_point(world, rollout)], ink + 4, line=False))
    if not curves:
        return Html("")
    return plot(
        "Break-even",
        "Accuracy against the share of futures that end correctly",
        curves,
        x_label="share of futures shown that end correctly",
        y_range=None,
    )


def cost_figures(results: Results) -> list[Html]:
    """Temporal accuracy against bytes and rollout seconds of an image; none where fewer than three arms state it."""
    costs = (("bytes", "KiB read of an image", 1024), ("rollout_seconds", "rollout seconds of an image", 1))
    return [_against_cost(results, field, label, unit) for field, label, unit in costs]


def _against_cost(results: Results, field: str, label: str, unit: int) -> Html:
    primary = results["study"]["primary"]
    rows = [
        (arm, results["arms"][arm].get(field), score_of(results, arm=arm, labels=primary, type="temporal"))
        for arm in plain_arms(results)
    ]
    points = [(arm, x, row) for arm, x, row in rows if x is not None and row is not None]
    if len({x for _, x, _ in points}) < 3:
        return Html("")
    curves = [
        Curve(arm, [_point(x / unit, row)], ink=page_color_of(results, arm), line=False) for arm, x, row in points
    ]
    title = f"Temporal accuracy against {label}, by arm"
    least, ticks = cost_ticks([x / unit for _, x, _ in points])
    return plot(title, title, curves, x_label=label, x_ticks=ticks, x_name=format_amount, linear_to=least, y_range=None)


def abstention_figure(results: Results) -> Html:
    """Accuracy against the share of temporal questions answered."""
    curves = [
        Curve(
            arm, [Point(at["coverage"], at["accuracy"]) for at in points], ink=page_color_of(results, arm), dots=False
        )
        for arm, points in (results.get("abstention") or {}).items()
    ]
    if not curves:
        return Html("")
    title = "Temporal accuracy against the share of questions answered"
    label = "coverage: share answered, the most certain first"
    return plot(title, title, curves, x_label=label, y_range=None)


def gains_figure(results: Results) -> Html:
    """Every gain and every loss of the rollout over frame 0 alone, the losses first."""
    rows: Sequence[dict[str, Any]] = gains(results, "steps0")[:_MOST]
    if not rows:
        return Html("")
    members = [
        Bar(
            name_of(row),
            row["value"],
            row["low"],
            row["high"],
            _VERDICTS[verdict_of(row)],
            f"{100 * row['value']:+.1f}",
        )
        for row in rows
    ]
    title = "Points gained by the rollout over frame 0 alone (blue: gain, orange: loss, grey: undecided)"
    return differences(title, "Points gained or lost by the rollout, by kind of question", members)
