"""Where the fault suite works, how much of it runs, and the figures it prints.

`pytest` runs the quick part, `make faults` the same tests with larger numbers. Both print what was tried, from which
seed, and what it took.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from theworld.pipeline.store import latent_store
from theworld.pipeline.store.folder import StoreFormat

from .harness import FORMATS, SCRATCH


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> StoreFormat:
    return request.param


@pytest.fixture(autouse=True)
def snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stores as small as these, too."""
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 2)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine allows: a cut leaves the same files there, and fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir=SCRATCH if os.access(SCRATCH, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Print a line at the end of the run."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.line(str(line))
