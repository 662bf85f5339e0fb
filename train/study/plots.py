"""The plots of a study's results page, drawn from the values of results.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from ...pipeline.messages import format_amount
from ..pages.intervals import error_bar
from ..pages.plotting import png, tidy
from .arm_colors import plot_color_of, plot_line_of, plot_marker_of
from .findings import score_of
from .plan import SHIFTED, TEST
from .price import cost_ticks

Results = Mapping[str, Any]

_LOSS, _WIN, _NEITHER = "#d55e00", "#0072b2", "#999999"
_CELLS = 60  # most rows of the forest plot; more would be unreadable


def draw(results: Results) -> dict[str, bytes]:
    """File name -> PNG, for each plot whose figures these results have."""
    pictures: dict[str, Callable[[Results], Figure | None]] = {
        "learning.png": _learning,
        "shifted.png": _shifted,
        "break_even.png": _break_even,
        "gains.png": _gains,
        "bytes.png": partial(_price, field="bytes", label="bytes read of an image"),
        "seconds.png": partial(_price, field="rollout_seconds", label="rollout seconds of an image"),
        "abstention.png": _abstention,
    }
    png_by_name: dict[str, bytes] = {}
    for name, picture in pictures.items():
        if (figure := picture(results)) is not None:
            png_by_name[name] = png(figure)
    return png_by_name


def _price(results: Results, *, field: str, label: str) -> Figure | None:
    """Temporal accuracy at the primary label count against a cost of the arms; None where fewer than three state it."""
    primary = results["study"]["primary"]
    rows = [
        (arm, results["arms"][arm].get(field), score_of(results, arm=arm, labels=primary, type="temporal"))
        for arm in _plain(results)
    ]
    points = [(arm, x, row) for arm, x, row in rows if x is not None and row is not None]
    if len({x for _, x, _ in points}) < 3:
        return None
    figure = Figure(figsize=(6.5, 4.2))
    axes = figure.add_subplot()
    for arm, x, row in points:
        color, marker = plot_color_of(results, arm), plot_marker_of(results, arm)
        axes.errorbar(x, row["value"], yerr=_bars(row), color=color, marker=marker, linestyle="", label=arm)
    least, ticks = cost_ticks([x for _, x, _ in points])
    axes.set_xscale("symlog", linthresh=least)
    axes.set_xticks(ticks, [format_amount(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, temporal questions")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    return figure


def _abstention(results: Results) -> Figure | None:
    """Accuracy against the share of temporal questions answered."""
    curves = results.get("abstention") or {}
    if not curves:
        return None
    figure = Figure(figsize=(6.5, 4.2))
    axes = figure.add_subplot()
    for arm, points in curves.items():
        x, y = [point["coverage"] for point in points], [point["accuracy"] for point in points]
        axes.plot(x, y, color=plot_color_of(results, arm), linestyle=plot_line_of(results, arm), label=arm)
    axes.set_xlabel("coverage: share of questions answered, the most certain first")
    axes.set_ylabel("accuracy, temporal questions")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    return figure


def _plain(results: Results) -> list[str]:
    """The arms without `true@P`, which have their own plot."""
    return [arm for arm in results["study"]["arms"] if "@" not in arm]


def _bars(row: Mapping[str, Any]) -> list[list[float]]:
    return error_bar(row["value"], row["low"], row["high"])


def _learning(results: Results) -> Figure | None:
    """Accuracy against labelled scenes, temporal and static questions side by side."""
    labels: list[int] = results["study"]["labels"]
    kinds = [kind for kind in results["types"] if kind in ("temporal", "static")]
    if len(labels) < 2 or not kinds:
        return None
    figure = Figure(figsize=(5 * len(kinds), 4))
    for column, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), column + 1, sharey=figure.axes[0] if column else None)
        arms = _plain(results)
        for number, arm in enumerate(arms):
            rows = [score_of(results, arm=arm, labels=count, type=kind) for count in labels]
            shift = 1 + 0.03 * (number - len(arms) / 2)  # so that intervals do not overlap
            plotted = [(count * shift, row) for count, row in zip(labels, rows, strict=True) if row is not None]
            color, marker = plot_color_of(results, arm), plot_marker_of(results, arm)
            axes.plot(
                [x for x, _ in plotted],
                [row["value"] for _, row in plotted],
                color=color,
                marker=marker,
                markersize=3.5,
                label=arm,
            )
            for x, row in plotted:
                axes.errorbar(x, row["value"], yerr=_bars(row), color=color)
        if kind == "temporal" and results["heuristic"] is not None:
            axes.axhline(results["heuristic"], color="#bbbbbb", linestyle=":", label="rule of thumb")
        axes.set_xscale("log")
        axes.set_xticks(labels, [f"{count:,}" for count in labels])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("labelled training scenes")
        axes.set_ylabel("accuracy")
        axes.set_title(f"{kind} questions")
        tidy(axes)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.93, 0.5), frameon=False)
    return figure


def _shifted(results: Results) -> Figure | None:
    """Temporal accuracy on the test split, on the shifted one, and on each kind of shift."""
    primary = results["study"]["primary"]
    if SHIFTED not in results["study"]["asked"]:
        return None
    shifts = sorted({row["shift"] for row in results["scores"] if row["split"] == SHIFTED and row["shift"]})
    groups = [("test", TEST, ""), ("all shifted", SHIFTED, ""), *((shift, SHIFTED, shift) for shift in shifts)]
    figure = Figure(figsize=(2 + 1.9 * len(groups), 4))
    axes = figure.add_subplot()
    arms = _plain(results)
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        for group, (_, split, shift) in enumerate(groups):
            row = score_of(results, arm=arm, labels=primary, type="temporal", split=split, shift=shift)
            if row is None:
                continue
            x = group - 0.4 + (number + 0.5) * width
            axes.bar(x, row["value"], width * 0.9, color=plot_color_of(results, arm), label=arm if group == 0 else None)
            axes.errorbar(x, row["value"], yerr=_bars(row), color="#444444", linewidth=0.9)
    axes.set_xticks(range(len(groups)), [name for name, _, _ in groups])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy, temporal questions")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    return figure


def _break_even(results: Results) -> Figure | None:
    """Temporal accuracy against the share of futures that end correctly; dashed: steps0 with as many labels."""
    if results["break_even"] is None:
        return None
    figure = Figure(figsize=(6.5, 4.2))
    axes = figure.add_subplot()
    counts: list[int] = results["study"]["labels"]
    points = results["break_even"]["points"]
    world = results["break_even"]["world"]
    for count, color in zip(counts, _shades(len(counts)), strict=True):
        curve = sorted((p for p in points if p["labels"] == count), key=lambda p: p["outcome"])
        if not curve:
            continue
        x, y = [p["outcome"] for p in curve], [p["value"] for p in curve]
        axes.plot(x, y, color=color, marker="o", markersize=4, label=f"{count:,} labels, futures partly wrong")
        for point in curve:
            axes.errorbar(point["outcome"], point["value"], yerr=_bars(point), color=color, linewidth=1)
        baseline = score_of(results, arm="steps0", labels=count, type="temporal")
        if baseline is not None:
            axes.axhline(baseline["value"], color=color, linestyle="--", linewidth=1, label=f"{count:,}: frame 0 alone")
        rollout = score_of(results, arm="rollout", labels=count, type="temporal")
        if rollout is not None and world is not None:
            axes.errorbar(world, rollout["value"], yerr=_bars(rollout), color=color, marker="*", markersize=13)
    if world is not None:
        axes.axvline(world, color="#444444", linewidth=1, label="the world model's rollouts (stars)")
    axes.set_xlabel("share of futures shown that end correctly")
    axes.set_ylabel("accuracy, temporal questions")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    return figure


def _shades(count: int) -> Sequence[str]:
    shades = ("#9ecae1", "#4292c6", "#08519c", "#08306b")
    return [shades[min(index + (4 - count if count < 4 else 0), 3)] for index in range(count)]


def _gains(results: Results) -> Figure | None:
    """Every gain and every loss of the rollout over steps0, the losses first."""
    rows = gains(results, "steps0")[:_CELLS]
    if not rows:
        return None
    figure = Figure(figsize=(7, 0.8 + 0.22 * len(rows)))
    axes = figure.add_subplot()
    for height, row in enumerate(reversed(rows)):
        color = {"loss": _LOSS, "gain": _WIN, "neither": _NEITHER}[verdict_of(row)]
        interval = error_bar(row["value"], row["low"], row["high"], scale=100)
        axes.errorbar(100 * row["value"], height, xerr=interval, color=color, marker="o", markersize=4)
    axes.axvline(0, color="#444444", linewidth=1)
    axes.set_yticks(range(len(rows)), [name_of(row) for row in reversed(rows)], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("points gained by the rollout over frame 0 alone (orange: lost, grey: undecided)")
    tidy(axes)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    return figure


def gains(results: Results, against: str) -> list[dict[str, Any]]:
    """Differences to an arm at the primary label count: each question, and each kind of shift; worst first."""
    primary = results["study"]["primary"]
    rows = [row for row in results["differences"] if row["against"] == against and row["labels"] == primary]
    selected = [row for row in rows if row["about"] or row["shift"] or not row["family"]]  # not a family as a whole
    return sorted(selected, key=lambda row: row["value"])


def verdict_of(row: Mapping[str, Any]) -> str:
    """`gain` or `loss` if the 95 % interval is on one side of zero, else `neither`."""
    if row["low"] is None:
        return "neither"
    return "loss" if row["high"] < 0 else "gain" if row["low"] > 0 else "neither"


def name_of(row: Mapping[str, Any]) -> str:
    """Which questions a row is about."""
    words = " ".join(row[name] for name in ("family", "about", "shift") if row[name])
    name = f"{words} ({row['type']})" if words else f"all {row['type']}"
    return name + (", shifted" if row["split"] == SHIFTED else "")
