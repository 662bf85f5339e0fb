"""What a job keeps from those before it: failures give way once their inputs can be read."""

from pathlib import Path

import pytest

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.world_model import save_mini_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_world(tmp_path_factory.mktemp("world"))


def test_an_input_that_can_be_read_by_now_is_a_failure_no_more_and_others_stay(world: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    whole = (images / "000.png").read_bytes()
    for name in ("late.png", "never.png"):
        (images / name).touch()
    cache = tmp_path / "cache"
    store = make_store(images, cache, world, kind="posterior", steps=None, denoise_steps=None)
    assert {(failure.source, failure.key) for failure in store.failures()} == {("late.png", None), ("never.png", None)}
    (images / "late.png").write_bytes(whole + b"other bytes behind the image")
    store = make_store(images, cache, world, kind="posterior", steps=None, denoise_steps=None)
    assert [failure.source for failure in store.failures()] == ["never.png"]
    assert len(store.keys) == 3
    assert set(store.sources()) == {"000.png", "001.png", "late.png"}
