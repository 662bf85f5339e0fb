"""The signals that end a training: the first ends it after the update, with a checkpoint; a second one kills.

While a training is prepared (questions are read, the language model is loaded) there is nothing to save, and the first
ends it at once.

    ends it     SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2: a scheduler's time limit, Ctrl-C, a closed terminal
    kills       SIGTERM or SIGINT after it; but not a second SIGTERM at once, which schedulers send, and none under a
                launcher: SLURM and Ctrl-C reach each process of a job, torchrun passes on what reaches it, and it
                kills by itself what has not ended in time (30 s)

What is ignored stays ignored: SIGHUP under nohup. But not SIGUSR1 and SIGUSR2: a script must have them ignored for
torchrun, which would die of them, and its processes inherit that.

Only the command line installs these handlers: in a program that uses theworld, signals belong to that program.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ...pipeline.errors import Interrupted
from ...pipeline.progress import print_at_once

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_URGENT = (signal.SIGTERM, signal.SIGINT)
_SCRIPTS = (signal.SIGUSR1, signal.SIGUSR2)
"""What scripts send on."""
_ECHO_S = 2.0
"""So long after the first SIGTERM another one is its echo."""


class _Unprepared(BaseException):
    """A signal while the training was prepared. No Exception, because a reader might take it for a bad record."""


class Stop:
    """Whether a training has been asked to end after its current update."""

    def __init__(self) -> None:
        self.signal_name = ""
        """The name of the signal; empty without one."""
        self._asked_at = 0.0
        self._prepared = False

    def wait_for_updates(self) -> None:
        """From now on a signal waits for the end of the update; before, it ends the block of `on_signals` at once."""
        self._prepared = True

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Handle signals within the block; only in the main thread, as Python requires.

        Raises:
            Interrupted: one came before `wait_for_updates`.
        """
        before = {number: signal.getsignal(number) for number in _ENDING}
        taken = {
            number: handler
            for number, handler in before.items()
            if handler is not None and (handler != signal.SIG_IGN or number in _SCRIPTS)
        }
        for number in taken:
            signal.signal(number, self._ask)
        try:
            yield self
        except _Unprepared:
            raise Interrupted(
                f"stopped while the training was prepared ({self.signal_name}); nothing is lost. "
                "Run the same command again"
            ) from None
        finally:
            for number, handler in taken.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if not self.signal_name:
            self.signal_name, self._asked_at = name, time.monotonic()
            if not self._prepared:
                raise _Unprepared
            second = "" if "RANK" in os.environ else "; a second signal stops at once"
            if os.environ.get("RANK", "0") == "0":  # once, not once for each of eight GPUs
                print_at_once(f"{name}: stopping after this update, with a checkpoint{second}")
        elif number in _URGENT and not self._is_echo(name):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _is_echo(self, name: str) -> bool:
        is_soon = time.monotonic() - self._asked_at < _ECHO_S
        return "RANK" in os.environ or (is_soon and name == self.signal_name == "SIGTERM")
