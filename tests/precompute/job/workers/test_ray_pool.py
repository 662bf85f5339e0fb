"""What the workers of a pool cost: each from when it was asked for until it is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from theworld.pipeline.progress import Progress
from theworld.precompute.job.workers import ray_pool as module
from theworld.precompute.job.workers.ray_pool import _Actor, _RayPool


def test_workers_that_join_late_or_are_lost_cost_their_own_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(module, "worker_class", lambda: object)
    ray: Any = SimpleNamespace(remote=lambda **_: lambda _: SimpleNamespace(remote=lambda _: object()))
    pool = _RayPool(
        module.Session(ray, check=lambda: None), {}, 2, Progress.silent(), "sign", cpus=1, gpus=0.5  # type: ignore[arg-type]
    )  # fmt: skip
    for actor in pool._actors:
        actor.since = now
    now += 10
    pool._actors.append(_Actor(object(), since=now, joins=True))
    now += 5
    assert pool.worker_s() == 15 + 15 + 5
    pool._remove(pool._actors[0])
    now += 100
    assert (pool.worker_s(), pool.workers, pool.gpus_a_worker) == (15 + 115 + 105, 2, 0.5)
