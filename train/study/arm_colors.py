"""The colors, dots and lines of a study's arms: each arm has its own on the whole page, and in all plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..pages.charts import DASHES

_PNG = {
    "rollout": "#0072b2",
    "steps0": "#000000",
    "true": "#009e73",
    "noise": "#cc79a7",
    "shuffled": "#e69f00",
    "reversed": "#56b4e9",
    "last": "#7b52ab",
    "text": "#999999",
    "frozen": "#8a6d3b",
}
"""Built-in arms in the order of the style sheet's colors: Okabe and Ito's, which color-blind readers can tell apart."""
_MORE_PNG = ("#d55e00", "#332288", "#117733", "#aa4499", "#44aa99", "#882255", "#6699cc")
"""Of arms that a study's file states, which take turns."""
_MORE_MARKERS = "sD^v<>H"
"""Their dots, for who cannot tell these colors apart; as on the page."""


def page_color_of(results: Mapping[str, Any], arm: str) -> int:
    """The number of an arm's color in the style sheet of the page, which counts them from 0."""
    return len(_PNG) + _place(results, arm) % len(_MORE_PNG) if arm not in _PNG else list(_PNG).index(arm)


def plot_color_of(results: Mapping[str, Any], arm: str) -> str:
    """The color of an arm in a PNG plot, such as `#0072b2`."""
    return _MORE_PNG[_place(results, arm) % len(_MORE_PNG)] if arm not in _PNG else _PNG[arm]


def plot_marker_of(results: Mapping[str, Any], arm: str) -> str:
    """The shape of an arm's dots in a PNG plot, as matplotlib names it."""
    return _MORE_MARKERS[_place(results, arm) % len(_MORE_PNG)] if arm not in _PNG else "o"


def plot_line_of(results: Mapping[str, Any], arm: str) -> str | tuple[int, tuple[int, ...]]:
    """The line style of an arm in a PNG plot whose lines have no dots, as matplotlib takes it."""
    return (0, DASHES[_place(results, arm) % len(_MORE_PNG)]) if arm not in _PNG else "-"


def _place(results: Mapping[str, Any], arm: str) -> int:
    """The place of an arm among those that the study's file states."""
    return [name for name in results["study"]["arms"] if name not in _PNG].index(arm)
