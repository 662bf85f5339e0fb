"""SIGTERM and Ctrl-C during a training: the first ends it after the update, with a checkpoint; a second one kills.

Only the command line installs these handlers: in a program that uses theworld, signals belong to that program.
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
        self.signal_name = ""
        """The name of the signal; empty without one."""

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Handle signals within the block; only in the main thread, as Python requires."""
        handler_by_signal = {number: signal.signal(number, self._ask) for number in _ENDING}
        try:
            yield self
        finally:
            for number, handler in handler_by_signal.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.signal_name:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_name = signal.Signals(number).name
        print_at_once(
            f"{self.signal_name}: stopping after this update, with a checkpoint; a second signal stops at once"
        )
