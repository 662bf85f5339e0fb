"""What several of these tests begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..harm import open_folder


@pytest.fixture
def cache() -> Iterator[Path]:
    """An empty folder, in memory where the machine allows, that every user may enter."""
    with open_folder() as folder:
        yield folder
