"""The figures that the fuzz harness prints, as the fault suite's, and a folder in memory for its inputs."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..faults import conftest as faults
from ..faults.conftest import figure as figure
from ..faults.harness import SCRATCH
from .seeds import Seeds


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every input is written there before it is read."""
    instead = tmp_path_factory.mktemp("scratch")
    with tempfile.TemporaryDirectory(dir=SCRATCH if os.access(SCRATCH, os.W_OK) else instead) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def seeds(scratch: Path) -> Seeds:
    (scratch / "seeds").mkdir()
    return Seeds(scratch / "seeds")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures, once: where the fault suite runs too, it prints these with its own."""
    if not terminalreporter.config.pluginmanager.is_registered(faults):
        faults.pytest_terminal_summary(terminalreporter)
