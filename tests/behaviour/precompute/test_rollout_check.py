"""From a store of rollouts to what they show: whether they end right, and strips to look at."""

from pathlib import Path

import pytest

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.worldlet.rollout_check import draw_strips, rollout_outcomes
from theworld.precompute.worldlet.scenes.files import write_scenes

FAMILIES = ["buckets", "tower"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, splits={"train": 4, "test": 8}, families=FAMILIES, seed=5)
    return folder


def rolled(folder: Path, steps: int) -> Path:
    settings = PrecomputeConfig(
        images=folder / "images", cache=folder / f"latents{steps}", steps=steps, in_process=True
    )
    report = run_precompute(settings)
    assert report.bad == 0
    return report.store


def test_a_store_of_rollouts_tells_which_of_them_end_as_their_scenes_do(folder: Path) -> None:
    store = open_store(rolled(folder, 8))
    known = rollout_outcomes(store, folder)
    assert len(known) == 8
    assert all(name.startswith("test-") for name in known)
    assert sum(known.values()) >= 5

    first, second = list(known)[:2]
    wide, plain = draw_strips(store, folder, [(first, ["where will the ball land?", "left"]), (second, [])])
    assert wide.width == plain.width
    assert wide.height > plain.height


def test_rollouts_that_stop_before_the_scene_ends_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--steps 8"):
        rollout_outcomes(open_store(rolled(folder, 2)), folder)
