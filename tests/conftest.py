"""Settings every test shares: one thread each (the suite runs in parallel), no network, and the order in parallel."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache as cache_calls
from pathlib import Path
from typing import Any

import pytest

from .shared_memory import SHARED_MEMORY, holds_the_tests

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "THEWORLD_TESTS" not in os.environ:  # what the suite hashes and measures is not the user's; its workers inherit it
    of_user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ["THEWORLD_TESTS"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="theworld-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    for kept in of_user.iterdir() if of_user.is_dir() else ():  # other libraries' caches, such as matplotlib's fonts
        if kept.name != "theworld":
            (Path(os.environ["XDG_CACHE_HOME"]) / kept.name).symlink_to(kept)


if "PYTEST_DEBUG_TEMPROOT" not in os.environ and holds_the_tests(SHARED_MEMORY):  # where `tmp_path` is
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(SHARED_MEMORY)

import torch
import typer.main
import typer.testing

from .permissions import open_folder

# The commands are built once a process, not anew for each that a test runs: half of the time of a small one.
typer.main.get_command = typer.testing._get_command = cache_calls(typer.main.get_command)  # type: ignore[attr-defined]

torch.set_num_threads(1)
# The tests are compiled once, not anew at each run, and the package not by each process that a test starts.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In parallel the slow tests come first: one that is dealt out last would leave the other workers idle."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@cache_calls
def shares_a_fixture(file: str) -> bool:
    """Whether the tests of a file share something that is made once for them all."""
    return 'scope="module"' in (ROOT / file).read_text()


@pytest.hookimpl(optionalhook=True)  # pytest-xdist need not be there
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal out a file whose tests share a fixture as a whole, and first; each other test by itself.

    Every worker would make the fixture else. pytest-xdist's own groups are not seen: version 3.8 writes them to a field
    that pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class WholeFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if shares_a_fixture(file) else nodeid

    return WholeFiles(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_finish() -> None:
    """What is loaded by now stays: each full collection, and a training asks for several, would walk through it all."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def hears_signals() -> Iterator[None]:
    """Signals as in a terminal: a suite that runs under nohup, or behind a script, ignores some, and so do its jobs."""
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def cache() -> Iterator[Path]:
    """An empty folder, in memory where the machine allows, that every user may enter."""
    with open_folder() as folder:
        yield folder
