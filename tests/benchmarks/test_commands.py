"""The commands that benchmarks/README.md names are there, and load."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"python -m (benchmarks\.\w+)", PAGE))))
def test_a_command_of_the_page_loads(name: str) -> None:
    assert callable(import_module(name).main)
