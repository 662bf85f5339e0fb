"""Cores are counted in one place: those this process may use, on any system."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from theworld.pipeline.machine import quota_cores, usable_cores
from theworld.precompute.job.prepare import _default_workers
from theworld.precompute.worlds.source import resolve_world

from ..faults.harness import in_child

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_a_process_pinned_to_one_core_has_one_and_starts_one_worker() -> None:
    def pinned() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        assert usable_cores() == 1
        assert _default_workers(resolve_world(None), "cpu") == 1

    in_child(pinned)


def test_a_system_that_cannot_be_asked_has_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()


def process_in(folder: Path, memberships: str, mounts: str) -> Path:
    """What /proc says of a process."""
    process = folder / "proc"
    process.mkdir()
    (process / "cgroup").write_text(memberships)
    (process / "mountinfo").write_text(mounts)
    return process


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_smallest_quota_of_nested_groups_counts(tmp_path: Path) -> None:
    top = tmp_path / "a mount"
    group(top, cpu__max="max 100000\n")
    group(top / "pod", cpu__max="150000 100000\n")
    group(top / "pod" / "container", cpu__max="400000 100000\n")
    mounts = f"31 23 0:26 / {top} rw - cgroup2 cgroup2 rw\n".replace("a mount", "a\\040mount")
    assert quota_cores(process_in(tmp_path, "0::/pod/container\n", mounts)) == 1.5


def test_a_container_finds_its_quota_at_the_mount_whatever_its_group_is_called(tmp_path: Path) -> None:
    group(tmp_path / "g", cpu__max="50000 100000\n")
    mounts = f"31 23 0:26 /docker/abc {tmp_path}/g rw - cgroup2 cgroup2 rw\n"
    assert quota_cores(process_in(tmp_path, "0::/docker/abc\n", mounts)) == 0.5
    (tmp_path / "proc" / "cgroup").write_text("0::/../of/others\n")
    assert quota_cores(tmp_path / "proc") == 0.5


def test_a_quota_of_cgroup_v1_counts_and_none_is_no_limit(tmp_path: Path) -> None:
    files = {"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"}
    group(tmp_path / "cpu", **files)
    group(tmp_path / "cpu" / "job", **files)
    mounts = f"30 23 0:25 / {tmp_path}/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    process = process_in(tmp_path, "4:cpu,cpuacct:/job\n3:memory:/other\n", mounts)
    assert quota_cores(process) is None
    group(tmp_path / "cpu" / "job", cpu__cfs_quota_us="250000\n")
    assert quota_cores(process) == 2.5


@pytest.mark.parametrize("broken", ["", "0::", "no line", "9:cpu"])
def test_a_system_that_says_nothing_of_quotas_has_none(tmp_path: Path, broken: str) -> None:
    assert quota_cores(tmp_path / "none") is None
    assert quota_cores(process_in(tmp_path, broken, broken)) is None


def test_nobody_counts_cores_elsewhere() -> None:
    files = [path for room in ("pipeline", "precompute", "train", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    counting = re.compile(r"(?<!set_)cpu_count|sched_getaffinity")
    assert [path.name for path in files if counting.search(path.read_text())] == ["machine.py"]
