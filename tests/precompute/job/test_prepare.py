"""A plan of a job: as many workers as asked for, and one where all is done in this process."""

from pathlib import Path
from typing import Any

import pytest

from tests.miniatures.image_store import make_images
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.progress import Progress
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.prepare import prepare


@pytest.mark.parametrize(("setting", "workers"), [({"workers": 3}, 3), ({"in_process": True}, 1)])
def test_the_workers_are_those_asked_for(tmp_path: Path, setting: dict[str, Any], workers: int) -> None:
    world = save_mini_world(tmp_path / "world")
    config = PrecomputeConfig(
        images=make_images(tmp_path / "in", 2), cache=tmp_path / "cache", world=str(world), steps=1, size="32x32",
        device="cpu", **setting,
    )  # fmt: skip
    prepared = prepare(config, Progress.silent())
    assert (prepared.workers, prepared.device, len(prepared.plan.todo)) == (workers, "cpu", 2)
    assert prepared.store is None
    assert not config.cache.exists()
