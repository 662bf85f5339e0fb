"""Figures as SVG inside the page: they follow its colors in light and dark, and their letters stay legible on a phone.

Everything is drawn 360 units wide, about the width of a phone, so that there a letter of 13 units is 13 pixels. Names
are text beside the bars or below the plot, where long ones have room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .html import Html, render

INKS = 16
"""Colors of the style sheet, `c0` to `c15`; color-blind readers can tell the first nine apart, so the others have dots
and dashes of their own."""
_ROUND = 9  # colors with round dots and full lines
_CORNERS = {
    "square": (45, 135, 225, 315),
    "diamond": (0, 90, 180, 270),
    "triangle up": (90, 210, 330),
    "triangle down": (30, 150, 270),
    "triangle left": (60, 180, 300),
    "triangle right": (0, 120, 240),
    "hexagon": (0, 60, 120, 180, 240, 300),
}
"""Directions of a dot's corners from its middle, in degrees, for the colors after the round ones."""
DASHES: tuple[tuple[int, ...], ...] = ((9, 3), (2, 3), (9, 3, 2, 3), (14, 4), (5, 2), (9, 3, 2, 3, 2, 3), (2, 6))
"""Dashes and gaps of a line without dots, in the same order."""
_WIDTH = 360
_NAME = 36  # letters of a name beside a bar
_LEAST_SPAN = 0.05  # of an axis of shares: smaller differences are not to look large


@dataclass(frozen=True, slots=True)
class Bar:
    """One value, with its interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    ink: int = 0
    text: str = ""
    """What stands at its end."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve; `low` and `high` are the interval of y."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    weight: float = 0.5
    """Share of what the curve stands for, from 0 to 1; a larger dot for more."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve, or points without one, in one color."""

    name: str
    points: Sequence[Point]
    ink: int = 0
    line: bool = True
    """Whether a line joins them."""
    dashed: bool = False
    dots: bool = True


_BARS = """<figure><figcaption>{{ title }}</figcaption>
<svg viewBox="0 0 360 {{ height }}" role="img" aria-label="{{ alt }}">\
{% for group in groups %}{% if group.name %}<text class="bold" x="0" y="{{ group.y }}">{{ group.name }}</text>
{% endif %}\
{% for bar in group.bars %}<g class="{{ bar.ink }}"><text x="0" y="{{ bar.y }}">{{ bar.name }}</text>\
<text class="end" x="360" y="{{ bar.y }}">{{ bar.text }}</text>\
<rect class="track" x="0" y="{{ bar.top }}" width="360" height="9" rx="2"/>\
<rect class="fill" x="0" y="{{ bar.top }}" width="{{ bar.width }}" height="9" rx="2"/>\
{% if bar.low %}<line class="range" x1="{{ bar.low }}" x2="{{ bar.high }}" y1="{{ bar.mid }}" y2="{{ bar.mid }}"/>\
{% endif %}</g>
{% endfor %}{% endfor %}</svg></figure>
"""
_DIFFERENCES = """<figure><figcaption>{{ title }}</figcaption>
<svg viewBox="0 0 360 {{ height }}" role="img" aria-label="{{ alt }}">\
{% for bar in bars %}<line class="axis" x1="{{ zero }}" x2="{{ zero }}" y1="{{ bar.top }}" y2="{{ bar.bottom }}"/>
<g class="{{ bar.ink }}"><text x="0" y="{{ bar.y }}">{{ bar.name }}</text>\
<text class="end" x="360" y="{{ bar.y }}">{{ bar.text }}</text>\
{% if bar.low %}<line class="span" x1="{{ bar.low }}" x2="{{ bar.high }}" y1="{{ bar.mid }}" y2="{{ bar.mid }}"/>\
{% endif %}<circle class="fill" cx="{{ bar.at }}" cy="{{ bar.mid }}" r="4"/></g>
{% endfor %}</svg></figure>
"""
_PLOT = """<figure><figcaption>{{ title }}</figcaption>
<svg viewBox="0 0 360 250" role="img" aria-label="{{ alt }}">\
{% for tick in y_ticks %}<line class="grid" x1="42" x2="352" y1="{{ tick.at }}" y2="{{ tick.at }}"/>\
<text class="end soft" x="36" y="{{ tick.text_at }}">{{ tick.name }}</text>{% endfor %}\
{% for tick in x_ticks %}<text class="mid soft" x="{{ tick.at }}" y="222">{{ tick.name }}</text>{% endfor %}\
<line class="axis" x1="42" x2="352" y1="206" y2="206"/>\
<text class="mid" x="197" y="244">{{ x_label }}</text>\
{% for curve in curves %}<g class="{{ curve.ink }}">{% if curve.path %}\
<polyline class="curve{{ ' dashed' if curve.dashed else '' }}" points="{{ curve.path }}"\
{% if curve.dashes %} stroke-dasharray="{{ curve.dashes }}"{% endif %}/>{% endif %}\
{% for dot in curve.dots %}{% if dot.low %}\
<line class="span" x1="{{ dot.x }}" x2="{{ dot.x }}" y1="{{ dot.low }}" y2="{{ dot.high }}"/>{% endif %}\
{% if dot.corners %}<polygon class="fill" points="{{ dot.corners }}"/>\
{% else %}<circle class="fill" cx="{{ dot.x }}" cy="{{ dot.y }}" r="{{ dot.r }}"/>{% endif %}{% endfor %}</g>
{% endfor %}</svg>
<ul class="legend">{% for curve in curves %}<li class="{{ curve.ink }}">\
<svg class="key" viewBox="0 0 24 12" aria-hidden="true">{% if curve.path %}\
<line class="curve{{ ' dashed' if curve.dashed else '' }}" x1="0" x2="24" y1="6" y2="6"\
{% if curve.dashes %} stroke-dasharray="{{ curve.dashes }}"{% endif %}/>{% endif %}\
{% if curve.key %}<polygon class="fill" points="{{ curve.key }}"/>\
{% elif curve.dots %}<circle class="fill" cx="12" cy="6" r="4"/>{% endif %}</svg>{{ curve.name }}</li>\
{% endfor %}</ul></figure>
"""


def bars(title: str, alt: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, top: float = 1.0) -> Html:
    """Horizontal bars in groups, from 0 to `top`, each below its name; a thin line is its interval.

    Args:
        title: stands above. alt: what the figure shows, for who cannot see it.
        groups: titles, "" for none, and their bars.
    """
    y = 0
    drawn: list[dict[str, object]] = []
    for name, members in groups:
        y += 24 if name else 0
        group: dict[str, object] = {"name": _short(name), "y": y - 6}
        rows: list[dict[str, object]] = []
        for bar in members:
            rows.append(
                {
                    **_named(bar, y),
                    "width": _at(bar.value, 0, top),
                    "low": None if bar.low is None else _at(bar.low, 0, top),
                    "high": None if bar.high is None else _at(bar.high, 0, top),
                }
            )
            y += 33
        drawn.append({**group, "bars": rows})
        y += 8
    return render(_BARS, title=title, alt=alt, groups=drawn, height=f"{y}")


def differences(title: str, alt: str, members: Sequence[Bar]) -> Html:
    """Differences with their intervals, each about the same line at zero."""
    ends = [abs(value) for bar in members for value in (bar.value, bar.low, bar.high) if value is not None]
    most = max([*ends, 1e-9]) * 1.05
    rows = [
        {
            **_named(bar, 33 * number),
            "at": _at(bar.value, -most, most),
            "low": None if bar.low is None else _at(bar.low, -most, most),
            "high": None if bar.high is None else _at(bar.high, -most, most),
        }
        for number, bar in enumerate(members)
    ]
    zero = _at(0.0, -most, most)
    return render(_DIFFERENCES, title=title, alt=alt, bars=rows, zero=zero, height=f"{33 * len(rows) + 4}")


def plot(
    title: str,
    alt: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    x_ticks: Sequence[float] | None = None,
    x_name: Callable[[float], str] = "{:g}".format,
    logarithmic: bool = False,
    linear_to: float | None = None,
    y_range: tuple[float, float] | None = (0.0, 1.0),
) -> Html:
    """Curves over a common axis, their names below.

    Args:
        x_ticks: where the axis has numbers; None takes round ones.
        linear_to: x of a logarithmic axis below which it turns linear, so that 0 has a place on it.
        y_range: of the axis; None takes what the points need, between round numbers.
    """

    def scale(x: float) -> float:
        return math.log(x) if logarithmic else x if linear_to is None else math.asinh(x / linear_to)

    xs = [scale(point.x) for curve in curves for point in curve.points] + [scale(tick) for tick in x_ticks or ()]
    ys = [v for curve in curves for point in curve.points for v in (point.y, point.low, point.high) if v is not None]
    left, right = min(xs), max(xs)
    margin = 0.04 * (right - left or 1.0)
    left, right = left - margin, right + margin
    heights = _round_ticks(*(y_range or (min(ys), max(ys))), span=_LEAST_SPAN)
    bottom, top = heights[0], heights[-1]

    def x_at(x: float) -> str:
        return f"{42 + 310 * (scale(x) - left) / (right - left):.1f}"

    def y_at(y: float) -> str:
        return f"{206 - 194 * (y - bottom) / (top - bottom):.1f}"

    def drawn(curve: Curve) -> dict[str, object]:
        ink = curve.ink % INKS
        dots = [
            {
                "x": x_at(point.x),
                "y": y_at(point.y),
                "r": f"{_radius(point):.1f}",
                "corners": _corners(ink, float(x_at(point.x)), float(y_at(point.y)), 1.3 * _radius(point)),
                "low": None if point.low is None else y_at(point.low),
                "high": None if point.high is None else y_at(point.high),
            }
            for point in curve.points
        ]
        path = " ".join(f"{dot['x']},{dot['y']}" for dot in dots) if curve.line else ""
        return {
            "name": curve.name,
            "ink": f"c{ink}",
            "path": path,
            "dots": dots if curve.dots else [],
            "key": _corners(ink, 12, 6, 5) if curve.dots else "",
            "dashed": curve.dashed,
            "dashes": "" if curve.dots or ink < _ROUND else " ".join(map(str, DASHES[ink - _ROUND])),
        }

    y_ticks = [{"at": y_at(y), "text_at": f"{float(y_at(y)) + 4:.1f}", "name": f"{y:g}"} for y in heights]
    if x_ticks is None:
        inside = [x for x in _round_ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)] if max(xs) > min(xs) else []
        x_ticks = inside if len(inside) > 1 else sorted({min(xs), max(xs)})
    return render(
        _PLOT,
        title=title,
        alt=alt,
        x_label=x_label,
        y_ticks=y_ticks,
        x_ticks=[{"at": x_at(x), "name": x_name(x)} for x in x_ticks],
        curves=[drawn(curve) for curve in curves if curve.points],
    )


def _named(bar: Bar, y: int) -> dict[str, object]:
    return {
        "name": _short(bar.name),
        "text": bar.text,
        "ink": f"c{bar.ink % INKS}",
        "y": f"{y + 14}",
        "top": f"{y + 19}",
        "mid": f"{y + 23.5}",
        "bottom": f"{y + 28}",
    }


def _round_ticks(low: float, high: float, *, span: float = 0.0) -> list[float]:
    """Three to seven round numbers, of which the first is not above `low` and the last not below `high`.

    Args:
        span: the least that they lie apart together, about; needed where `low` may be `high`.
    """
    least = max(high - low, span) / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * times for times in (1, 2, 5, 10, 20) if power * times >= least * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * number:.9g}") for number in range(min(first, last - 2), last + 1)]


def _radius(point: Point) -> float:
    return 2 + 4 * math.sqrt(point.weight / 2)


def _corners(ink: int, x: float, y: float, radius: float) -> str:
    """The corners of a color's dot as SVG has them; "" where it is round."""
    if ink < _ROUND:
        return ""
    directions = [math.radians(degrees) for degrees in list(_CORNERS.values())[ink - _ROUND]]
    return " ".join(f"{x + radius * math.cos(at):.1f},{y - radius * math.sin(at):.1f}" for at in directions)


def _at(value: float, low: float, high: float) -> str:
    return f"{_WIDTH * min(1.0, max(0.0, (value - low) / (high - low))):.1f}"


def _short(text: str) -> str:
    """Text on one line; its end where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= _NAME else f"…{text[-_NAME:]}"
