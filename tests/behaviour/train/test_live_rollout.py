"""An input is rolled out only as far as it is asked for: without steps, the transformer is not even loaded."""

from pathlib import Path

import pytest
import torch

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.errors import ConfigError
from theworld.precompute.live.world import LazyRollout, LiveWorld
from theworld.precompute.preview.answer_cards import save_answer
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld


def test_no_steps_need_no_transformer_and_are_the_first_frame_of_the_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, images = save_mini_world(tmp_path / "mini"), make_images(tmp_path / "in", 2)
    store, image = make_store(images, tmp_path / "cache", world), images / "001.png"
    whole = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu").roll_out(image)
    sight = LazyRollout(store.recipe, image, world=str(world), device="cpu")
    with monkeypatch.context() as blind:
        blind.setattr(CosmosWorld, "load", None)
        seen = sight.see(0)
        assert torch.equal(seen, whole[:, :, :1])
        save_answer(sight.viewer, image, seen, "where?", [("left", 0.6)], tmp_path / "new" / "now.png")
    assert torch.equal(sight.see(2), whole)
    assert torch.equal(sight.see(1), whole[:, :, :2])
    with pytest.raises(ConfigError, match="--world PATH"):  # the answer rests on it, so here all weights are checked
        LazyRollout(store.recipe, image, world=str(save_mini_world(tmp_path / "other", seed=1)), device="cpu").see(0)
