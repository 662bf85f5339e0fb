"""Settings every test shares: one thread each (the suite runs in parallel) and no network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from .permissions import open_folder

torch.set_num_threads(1)


@pytest.fixture
def cache() -> Iterator[Path]:
    """An empty folder, in memory where the machine allows, that every user may enter."""
    with open_folder() as folder:
        yield folder
