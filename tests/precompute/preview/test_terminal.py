"""A rollout can be looked at in a terminal, as far as it is wide and colorful."""

import io

import numpy as np
import pytest

from theworld.precompute.preview.terminal import show_frames

FRAMES = np.zeros((9, 64, 64, 3), np.uint8)
LABELS = ["now", *(f"+{n}.00 s" for n in range(1, 9))]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("columns", "shown"), [(200, 9), (80, 3), (20, 1)])
def test_frames_that_fit_are_shown_the_first_and_the_last_among_them(
    columns: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    FRAMES[-1] = 255
    show_frames(FRAMES, LABELS, terminal)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 11
    assert [label for label in LABELS if label in lines[0]] == [
        LABELS[n] for n in np.linspace(0, 8, shown).round().astype(int)
    ]
    assert lines[1].count("▀") == 20 * shown


def test_a_terminal_without_colors_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    show_frames(FRAMES, LABELS, terminal)
    assert terminal.getvalue() == ""
