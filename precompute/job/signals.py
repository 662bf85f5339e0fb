"""SIGTERM and Ctrl-C: the first stops a run cleanly, a second one ends the process at once.

A clean stop starts no new work, drops the open shards, says how many inputs remain, and exits with code 75.
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
        self.count = 0

    @contextmanager
    def caught(self) -> Generator[None, None, None]:
        """Raise Interrupted in the main thread at the first signal. In another thread Python allows no handler."""
        before = {number: signal.getsignal(number) for number in _ENDING}
        self.install()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals; again after Ray has started, which takes them for itself."""
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                signal.signal(number, self._stop)

    def check(self) -> None:
        """Raise Interrupted if a signal arrived: compiled code may have swallowed the exception of the handler."""
        if self.count:
            raise Interrupted(_message("a signal"))

    def _stop(self, number: int, _frame: object) -> None:
        self.count += 1
        name = signal.Signals(number).name
        if self.count > 1:
            # Ray's processes notice that their driver is gone within seconds
            print_at_once(f"stopped on the spot by a second signal ({name})")
            os._exit(Interrupted.exit_code)
        print_at_once(f"{name}: stopping; a second one stops it on the spot")
        raise Interrupted(_message(name))


def signal_behind(error: BaseException) -> Interrupted | None:
    """The Interrupted that a handler raised; Ray's compiled code wraps it in a SystemError. None if there is none."""
    while not isinstance(error, Interrupted):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    return error


def _message(name: str) -> str:
    return f"interrupted by {name}. Committed latents are kept: run the same command again to resume"
