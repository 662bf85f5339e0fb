"""What a second signal does to a run that is stopping."""

import os
import signal

import pytest

from theworld.pipeline.errors import Interrupted
from theworld.precompute.job import signals as signals_module
from theworld.precompute.job.signals import Signals


class EndedError(Exception):
    """In place of the end of the process."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Signals:
    def end(_code: int) -> None:
        raise EndedError

    monkeypatch.setattr("os._exit", end)
    run = Signals()
    run._before = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    return run


def test_a_sigterm_that_is_sent_to_a_group_and_passed_on_counts_once(run: Signals) -> None:
    run._end_on_the_spot(bytes([signal.SIGTERM, signal.SIGTERM]))
    run._end_on_the_spot(bytes([signal.SIGTERM]))


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_one_ends_the_run_on_the_spot(
    run: Signals, monkeypatch: pytest.MonkeyPatch, first: signal.Signals, second: signal.Signals
) -> None:
    monkeypatch.setattr(signals_module, "_ECHO_S", 0.0)
    run._end_on_the_spot(bytes([first]))
    with pytest.raises(EndedError):
        run._end_on_the_spot(bytes([second]))


def test_ctrl_c_twice_ends_it_however_fast(run: Signals) -> None:
    with pytest.raises(EndedError):
        run._end_on_the_spot(bytes([signal.SIGINT, signal.SIGINT]))


def test_a_terminal_that_goes_away_twice_does_not(run: Signals) -> None:
    run._end_on_the_spot(bytes([signal.SIGHUP, signal.SIGHUP]))


@pytest.mark.usefixtures("hears_signals")
def test_a_signal_of_which_compiled_code_makes_another_error_ends_the_run_as_a_signal() -> None:
    def check_settings() -> None:  # pydantic does so: a serializer that is interrupted is reported as a wrong value
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except Interrupted:
            raise ValueError("a wrong value") from None

    with pytest.raises(Interrupted, match="SIGUSR1"), Signals().caught():
        check_settings()


@pytest.mark.usefixtures("hears_signals")
def test_an_error_of_its_own_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="a wrong value"), Signals().caught():
        raise ValueError("a wrong value")
