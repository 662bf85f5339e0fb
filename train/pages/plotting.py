"""What all plots share: a plain frame, and their PNG bytes."""

from __future__ import annotations

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return content.getvalue()


def tidy(axes: Axes) -> None:
    """Remove the frame's top and right, and draw thin lines across behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
