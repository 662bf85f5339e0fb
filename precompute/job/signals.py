"""Signals that stop a run in order: SIGTERM, Ctrl-C, a closed terminal, SLURM's warning before its time limit.

    first signal     outside of a batch: Interrupted, at once
                     inside (`held`): noted; the batch in hand ends, the shard is committed as far as it is, exit 75
    SIGTERM, SIGINT after it: the process ends on the spot, whatever it is doing, with exit 75 as well; but not for a
                     SIGTERM that comes twice at once: schedulers send it to a whole group, and scripts pass it on

What is ignored stays ignored: SIGHUP under nohup, SIGINT of a job in the background of a script.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from ...pipeline.errors import Interrupted
from ...pipeline.progress import print_at_once

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_URGENT = {signal.SIGTERM, signal.SIGINT}
"""What ends a run that is stopping already. A terminal that closes sends SIGHUP twice, and systemd SIGTERM with it."""
_ECHO_S = 2.0
"""So long after the first SIGTERM another one is its echo."""
_UNUSUAL = {signal.SIGUSR1, signal.SIGUSR2}
"""Taken only where nobody else does."""

before_the_end: list[Callable[[], None]] = []
"""What has to be done before a process ends on the spot; each must be quick, and may fail."""

_active: Signals | None = None


class Signals:
    """The signals of one run."""

    def __init__(self) -> None:
        self.name = ""
        """Of the first one; empty before."""
        self.holds = 0
        """Blocks of `held` that are open: inside, the first signal is only noted."""
        self._raised = False
        """Whether the first signal interrupted what was going on."""
        self._before: dict[int, Any] = {}
        """The handlers of the signals taken, which are those of nobody who wants to keep them."""
        self._heard: tuple[int, float] | None = None
        """The first signal taken, and when."""

    @contextmanager
    def caught(self) -> Generator[None, None, None]:
        """Take the signals inside the block. In a thread other than the main one Python allows that to nobody."""
        global _active
        if _active is not None or threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in _ENDING:
            handler = signal.getsignal(number)
            if handler in (signal.SIG_IGN, None) or (number in _UNUSUAL and handler != signal.SIG_DFL):
                continue
            self._before[number] = handler
        _active = self
        with _watched(self._end_on_the_spot):
            try:
                self.install()
                yield
            except Exception as error:
                if self._raised and not isinstance(error, Interrupted):  # compiled code made another error of it
                    raise Interrupted(_message(self.name)) from error
                raise
            finally:
                for number, handler in self._before.items():
                    signal.signal(number, handler)
                _active = None

    def install(self) -> None:
        """Take the signals; again after Ray has started, which takes SIGTERM for itself."""
        if _active is self and threading.current_thread() is threading.main_thread():
            for number in self._before:
                signal.signal(number, self._note)

    def check(self) -> None:
        """Raise Interrupted if a signal arrived: compiled code may have swallowed the exception of the handler."""
        if self.name:
            raise Interrupted(_message(self.name))

    def _note(self, number: int, _frame: object) -> None:
        if self.name:
            return
        self.name = signal.Signals(number).name
        print_at_once(f"{self.name}: stopping after the batch in hand; a second one stops it on the spot")
        if not self.holds:
            self._raised = True
            raise Interrupted(_message(self.name))

    def _end_on_the_spot(self, numbers: bytes) -> None:
        """End the process from another thread, since the main one may be in compiled code for minutes."""
        for number in numbers:
            if self._heard is not None and number in _URGENT and not self._is_echo(number):
                print_at_once(f"stopped on the spot by a second signal ({signal.Signals(number).name})")
                for act in before_the_end:
                    with suppress(Exception):
                        act()
                os._exit(Interrupted.exit_code)
            if self._heard is None and number in self._before:
                self._heard = number, time.monotonic()

    def _is_echo(self, number: int) -> bool:
        first, at = self._heard or (0, 0.0)
        return number == first == signal.SIGTERM and time.monotonic() - at < _ECHO_S


def signals_of_this_run() -> Signals:
    """The signals that this process takes already, or new ones."""
    return _active or Signals()


@contextmanager
def held() -> Generator[Callable[[], bool], None, None]:
    """Inside the block a first signal interrupts nothing; yields whether one has arrived.

    Whoever works there ends at the next good place, and whoever called it then raises by `Signals.check`.
    """
    signals = _active
    if signals is None:
        yield lambda: False
        return
    signals.holds += 1
    try:
        yield lambda: signals.name != ""
    finally:
        signals.holds -= 1


def signal_behind(error: BaseException) -> Interrupted | None:
    """The Interrupted that a handler raised; Ray's compiled code wraps it in a SystemError. None if there is none."""
    while not isinstance(error, Interrupted):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    return error


@contextmanager
def _watched(heard: Callable[[bytes], None]) -> Generator[None, None, None]:
    """Hand the numbers of all signals that arrive to a function in a thread."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while numbers := ours.recv(64):
            heard(numbers)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        pythons.close()
        thread.join()
        ours.close()


def _message(name: str) -> str:
    return f"interrupted by {name}. Committed latents are kept: run the same command again to resume"
