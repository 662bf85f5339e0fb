"""SIGTERM and Ctrl-C during a training: the first lets the update end and a checkpoint be written, a second one kills.

Only the command line asks for this: in a program of somebody else's, signals are theirs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ...pipeline.progress import print_at_once

_ENDING = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a training has been asked to end after its current update."""

    def __init__(self) -> None:
        self.asked = ""
        """The name of the signal, or nothing."""

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Listen while the block lasts; in the main thread only, as Python demands."""
        before = {one: signal.signal(one, self._ask) for one in _ENDING}
        try:
            yield self
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = signal.Signals(number).name
        print_at_once(f"{self.asked}: stopping after this update, with a checkpoint; a second one stops it on the spot")
