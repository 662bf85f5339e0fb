"""A world model loaded for one recipe, also where its weights do not fit on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.progress import Progress
from theworld.precompute.live.world import LiveWorld
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def _print(self, line: str) -> None:
        self.lines.append(line)


def test_weights_that_do_not_fit_stay_in_main_memory_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, images = save_mini_world(tmp_path / "mini"), make_images(tmp_path / "in", 1)
    store, image = make_store(images, tmp_path / "cache", world), images / "000.png"
    whole = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu").roll_out(image)
    load, errors = CosmosWorld.load.__func__, [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]

    def first_fails(cls: type[CosmosWorld], *given: object, **settings: object) -> CosmosWorld:
        if errors:
            raise errors.pop()
        return load(cls, *given, **settings)

    monkeypatch.setattr(CosmosWorld, "load", classmethod(first_fails))
    told = Told()
    live = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu", progress=told)
    assert torch.equal(live.roll_out(image), whole)
    [note] = [line for line in told.lines if "do not fit" in line]
    assert "the weights do not fit on cpu (CUDA out of memory)" in note
    assert "the same latents, more slowly" in note
