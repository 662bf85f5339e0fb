"""Workers count their batches, and the driver sees it while they go on."""

from __future__ import annotations

import pytest

from theworld.precompute.job.workers import ray_counts
from theworld.precompute.job.workers.ray_counts import LocalCounts, RayCounts
from theworld.precompute.job.workers.ray_local import ray_session


def test_the_worker_in_this_process_has_one_count() -> None:
    counts = LocalCounts()
    assert counts.read() == {}
    counts.put("a", 8, 1)
    counts.put("b", 4, 2)
    assert counts.read() == {"b": (4, 2)}


@pytest.mark.slow
def test_workers_anywhere_count_in_rays_table_one_pool_apart_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_counts, "_PUT_S", 0.0)
    with ray_session(cpus=1):
        first, second, others = RayCounts("pool"), RayCounts("pool"), RayCounts("another")
        first.put("a", 8, 1)
        second.put("b", 4, 1)
        others.put("c", 4, 1)
        assert RayCounts("pool").read() == {"a": (8, 1), "b": (4, 1)}
        first.put("d", 2, 1)  # its next task
        assert RayCounts("pool").read() == {"d": (2, 1), "b": (4, 1)}
    assert first.read() == {}, "without Ray nobody is told, and nothing is raised"
