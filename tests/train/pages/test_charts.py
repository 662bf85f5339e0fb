"""The axes of a plot: numbers that a reader can use, and none that a share cannot have."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from theworld.train.pages.charts import Curve, Point, plot

SHARES = st.floats(0, 1)


def axis_of(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The numbers at the axes of x and y."""
    drawn = plot("t", "t", [Curve("c", [Point(x, y) for x, y in points])], x_label="x", y_range=None)
    x, y = (re.findall(rf'<text class="{name} soft"[^>]*>([^<]*)</text>', drawn) for name in ("mid", "end"))
    return list(map(float, x)), list(map(float, y))


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=5))
def test_an_axis_of_shares_has_a_few_even_numbers_around_its_points_and_none_above_one(
    points: list[tuple[float, float]],
) -> None:
    _, numbers = axis_of(points)
    heights = [y for _, y in points]
    assert 3 <= len(numbers) <= 7
    assert numbers[-1] <= 1
    assert numbers[0] <= min(heights) + 1e-6
    assert numbers[-1] >= max(heights) - 1e-6
    steps = {round(b - a, 6) for a, b in pairwise(numbers)}
    assert len(steps) == 1
    assert f"{steps.pop():.0e}"[0] in "125"


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e3))
def test_the_numbers_below_a_plot_stand_where_they_say(low: float, times: float) -> None:
    """A share of .325 was called 0.3, and one of .775 0.8."""
    numbers, _ = axis_of([(low, 0.5), (low * times, 0.6)])
    assert len(numbers) >= 2
    assert numbers == sorted(set(numbers))
    within = 1e-5 * low * times  # of six digits
    assert low - within <= numbers[0] <= numbers[-1] <= low * times + within
