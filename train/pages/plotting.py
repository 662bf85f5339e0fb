"""Moved here."""

from __future__ import annotations


from collections.abc import Sequence
from io import BytesIO
from typing import Any
from matplotlib.figure import Figure
from ..evaluation.evaluate import Evaluation
from ..evaluation.metrics import Score
from .plotting import tidy

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ..study.run import SHIFTED, TEST
from ..study.findings import score_of


def png(figure: Figure) -> bytes:
    """The same figure is the same bytes."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return content.getvalue()


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
