"""What all plots share: a plain frame, and their PNG bytes."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from ...pipeline.messages import printable


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes. No name in it is read as a formula."""
    content = BytesIO()
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
            text.set_text(_printable(text.get_text()))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(ticks := axis.get_major_formatter(), FuncFormatter):  # as `set_xticks` makes them of names
            ticks.func = _shown_ticks(ticks.func)
    with rc_context({"text.parse_math": False}):  # of texts that are made while it is drawn
        figure.savefig(content, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return content.getvalue()


def _shown_ticks(name_of: Callable[..., str]) -> Callable[..., str]:
    return lambda place, position=None: _printable(name_of(place, position))


def _printable(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def tidy(axes: Axes) -> None:
    """Remove the frame's top and right, and draw thin lines across behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
