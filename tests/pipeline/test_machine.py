"""Cores are counted in one place: those this process may use, on any system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from theworld.pipeline.machine import usable_cores

ROOT = Path(__file__).parents[2]
PINNED = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from theworld.pipeline.machine import usable_cores
from theworld.precompute.job.prepare import _default_workers
from theworld.precompute.worlds.source import resolve_world
print(usable_cores(), _default_workers(resolve_world(None), "cpu"))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_a_process_pinned_to_one_core_has_one_and_starts_one_worker() -> None:
    done = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_a_system_that_cannot_be_asked_has_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()


def test_nobody_counts_cores_elsewhere() -> None:
    files = [path for room in ("pipeline", "precompute", "train", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    counting = re.compile(r"(?<!set_)cpu_count|sched_getaffinity")
    assert [path.name for path in files if counting.search(path.read_text())] == ["machine.py"]
