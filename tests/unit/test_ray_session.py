"""What a job of ours left behind is removed, whatever else bears such a name."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from theworld.precompute.ray_session import _sweep

NOBODY = 4_194_304
"""Beyond what Linux numbers processes with."""


def test_folders_of_jobs_that_are_gone_are_removed_and_foreign_names_harm_nobody(tmp_path: Path) -> None:
    left, odd, huge = (tmp_path / name for name in (f"tw-{NOBODY}-x", "tw-1a-x", f"tw-{10**30}-x"))
    for folder in (odd, huge, left):
        folder.mkdir()
    _sweep(tmp_path)
    assert (left.exists(), odd.exists()) == (False, True)


def test_two_jobs_may_sweep_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        (tmp_path / f"tw-{NOBODY}-{number}").mkdir()

    def swept_by_another(_: int) -> bool:
        for folder in tmp_path.iterdir():
            folder.rmdir()
        return False

    monkeypatch.setattr(psutil, "pid_exists", swept_by_another)
    _sweep(tmp_path)
