"""The worldlet knows its own scenes alone: they are told from photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.precompute.worlds.scene_look import is_scene, may_be_scene


@pytest.mark.parametrize("side", [64, 224])
def test_scenes_of_all_families_are_known_at_any_size_and_as_jpeg(tmp_path: Path, side: int) -> None:
    write_scenes(tmp_path, splits={"train": 16, "test": 8})
    files = sorted((tmp_path / "images").iterdir())
    assert len(files) == 24
    for file in files:
        assert may_be_scene(file.read_bytes()[:24])
        with Image.open(file) as picture:
            picture.convert("RGB").resize((side, side)).save(tmp_path / "copy.jpg", quality=85)
        with Image.open(tmp_path / "copy.jpg") as copy:
            assert is_scene(np.asarray(copy))


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_photographs_are_no_scenes(tmp_path: Path, name: str) -> None:
    photo = getattr(data, name)()
    assert not is_scene(photo)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    assert not may_be_scene((tmp_path / "photo.png").read_bytes()[:24])


def test_a_picture_of_one_row_is_no_scene() -> None:
    assert not is_scene(np.zeros((1, 1, 3), np.uint8))
    assert not may_be_scene(b"\x89PNG")
