"""SIGTERM and Ctrl-C: the first ends a run in order, a second one ends the process on the spot.

In order means: no new work, the open shards are dropped (a shard is whole or not there), what remains is said, exit 75.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

from ...pipeline.errors import Interrupted
from ...pipeline.progress import print_at_once

_ENDING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Counts the signals of one run."""

    def __init__(self) -> None:
        self.seen = 0

    @contextmanager
    def caught(self) -> Generator[None, None, None]:
        """Raise Interrupted in the main thread at the first signal; where Python allows no handler, do nothing."""
        before = {one: signal.getsignal(one) for one in _ENDING}
        self.install()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for one, handler in before.items():
                    signal.signal(one, handler)

    def install(self) -> None:
        """Take the signals; again after Ray has started, which takes them for itself."""
        if threading.current_thread() is threading.main_thread():
            for one in _ENDING:
                signal.signal(one, self._stop)

    def check(self) -> None:
        """Raise Interrupted where a signal has come: compiled code may have swallowed what the handler raised."""
        if self.seen:
            raise Interrupted(_said("a signal"))

    def _stop(self, number: int, _frame: object) -> None:
        self.seen += 1
        name = signal.Signals(number).name
        if self.seen > 1:
            # Ray's processes notice that their driver is gone within seconds
            print_at_once(f"stopped on the spot by a second signal ({name})")
            os._exit(Interrupted.exit_code)
        print_at_once(f"{name}: stopping; a second one stops it on the spot")
        raise Interrupted(_said(name))


def signal_behind(error: BaseException) -> Interrupted | None:
    """What a handler raised: inside Ray's compiled code it comes out as the cause of a SystemError."""
    while not isinstance(error, Interrupted):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    return error


def _said(name: str) -> str:
    return f"interrupted by {name}. What is committed stays, and the same command goes on where this one stopped"
