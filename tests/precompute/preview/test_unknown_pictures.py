"""Pictures that the worldlet cannot know: whoever asks about one, or looks at a sheet of them, is told."""

from pathlib import Path

import pytest

from tests.miniatures.image_store import make_images
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.world import LazyRollout
from theworld.precompute.preview.store_preview import preview
from theworld.precompute.worldlet.scenes.files import write_scenes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs and two scenes, rolled out by the worldlet."""
    folder = tmp_path_factory.mktemp("unknown")
    make_images(folder / "images", 2)
    write_scenes(folder, splits={"train": 2})
    config = PrecomputeConfig(images=folder / "images", cache=folder / "cache", steps=1, device="cpu", in_process=True)
    run_precompute(config, progress=Progress.silent())
    return folder


def store_of(place: Path) -> LatentStore:
    return open_store(place / "cache")


def test_who_asks_about_a_photograph_is_told_once_and_about_a_scene_nothing(place: Path) -> None:
    for name, expected in (("000.png", 1), ("train-buckets-000000.png", 0)):
        warnings: list[str] = []
        image = place / "images" / name
        rollout = LazyRollout(store_of(place).recipe, image, device="cpu", progress=Progress.keeping(warnings))
        rollout.see(0)
        rollout.see(1)
        found = [warning for warning in warnings if "knows its own scenes alone" in warning]
        assert len(found) == expected, warnings
        assert all(f"{image} is none of them: the predicted futures mean nothing" in warning for warning in found)


def test_a_sheet_says_how_many_of_its_futures_mean_nothing(place: Path, tmp_path: Path) -> None:
    shown = preview(store_of(place), tmp_path / "all", images=place / "images", device="cpu")
    assert any("2 of 4 pictures are none of them" in note for note in shown.notes)
    scenes = [name for _, name in shown.samples if name.startswith("train-")]
    shown = preview(store_of(place), tmp_path / "scenes", wanted=scenes, images=place / "images", device="cpu")
    assert not any("mean nothing" in note for note in shown.notes)
