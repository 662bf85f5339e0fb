"""A figure with its 95 % interval, as text and as a table cell; the figure alone where it has no interval."""

from __future__ import annotations

from .html import Html, render


def as_share(value: float, low: float | None, high: float | None) -> str:
    """`0.873 [0.851, 0.893]`."""
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def as_percent(value: float, low: float | None, high: float | None) -> str:
    """`87.3 % [85.1, 89.3]`, of a share."""
    text = f"{100 * value:.1f} %"
    return text if low is None or high is None else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def as_points(value: float, low: float | None, high: float | None) -> str:
    """`+48.7 [+45.0, +52.1]`, percentage points of a difference of shares."""
    text = f"{100 * value:+.1f}"
    return text if low is None or high is None else f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"


def cell(value: float, low: float | None, high: float | None) -> Html:
    """`as_share` as HTML, the interval in small print."""
    share, _, interval = as_share(value, low, high).partition(" [")
    small = '{{ share }}{% if interval %} <span class="small">[{{ interval }}</span>{% endif %}'
    return render(small, share=share, interval=interval)


def error_bar(value: float, low: float | None, high: float | None, *, scale: float = 1.0) -> list[list[float]]:
    """How far an interval reaches below and above its value, as matplotlib's `errorbar` takes it; 0 without one."""
    below, above = value if low is None else low, value if high is None else high
    return [[scale * max(0.0, value - below)], [scale * max(0.0, above - value)]]
