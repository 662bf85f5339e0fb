"""Settings every test shares: one thread each (the suite runs in parallel), no network, and the order in parallel."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from .permissions import open_folder

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In parallel, a module's shared fixture is made once, and no slow test is left for the end.

    pytest-xdist deals out a group as a whole and each other test by itself, in this order: without a group every worker
    would make the fixture, and a long test dealt last leaves the other workers idle.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if "module" in {definitions[-1].scope for definitions in item._fixtureinfo.name2fixturedefs.values()}:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: each full collection, and a training asks for several, would walk through it all."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def cache() -> Iterator[Path]:
    """An empty folder, in memory where the machine allows, that every user may enter."""
    with open_folder() as folder:
        yield folder
