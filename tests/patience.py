"""How long the tests wait for what should end soon, before they call it stuck."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def patience(seconds: float) -> float:
    """Seconds to wait: `seconds`, times the environment's THEWORLD_TEST_PATIENCE on a machine that is slow or busy."""
    return seconds * float(os.environ.get("THEWORLD_TEST_PATIENCE", "1"))


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Fail what waits forever, or nearly: TimeoutError after so much patience. Of the main thread only."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"still at it after {patience(seconds):g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, patience(seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it holds by now or comes to hold, with so much patience."""
    deadline = time.monotonic() + patience(seconds)
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return held
