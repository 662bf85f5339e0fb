"""The page that the project grew from, line by line: its names, shapes, overrides and token budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.miniatures.lm import save_mini_lm
from tests.miniatures.world_model import save_mini_world
from theworld import TheWorld
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute

TEXT = "where will the ball land now ?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed")
    save_mini_world(folder / "world")
    save_mini_lm(folder / "lm")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    return folder


def the_world(place: Path, **settings: Any) -> TheWorld:
    """`TheWorld(gemma_model_name="google/gemma-2-2b-it", device="cuda", …)` of the page, in miniature."""
    files: dict[str, Any] = {"gemma_model_name": str(place / "lm"), "world": str(place / "world"), "device": "cpu"}
    return TheWorld(**files, layout="spatial", **settings)


@pytest.fixture(scope="module")
def small(place: Path) -> TheWorld:
    return the_world(place, num_world_steps=4, max_world_steps=16, size="32x32")


def test_the_table_of_shapes(place: Path) -> None:
    model = the_world(place, num_world_steps=4, max_world_steps=16, size="224x224")
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        return lambda _module, args, output: shapes.update({f"{name} in": args[0].shape, f"{name} out": output.shape})

    hooks = [
        part.register_forward_hook(note(name))
        for name, part in {"reader": model.reader, "projector": model.reader.projector}.items()
    ]
    inputs = model.processor(text=TEXT, images=place / "0.png")
    inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"][:, :7], inputs["attention_mask"][:, :7]
    with torch.no_grad():
        vectors, mask = model.embed(
            inputs["input_ids"],
            inputs["attention_mask"],
            model._world_latents(None, inputs["images"], inputs["keys"], 4),
        )
    for hook in hooks:
        hook.remove()
    assert inputs["images"].shape == (1, 3, 224, 224)
    assert shapes["reader in"] == (1, 16, 5, 28, 28)
    assert shapes["projector in"] == (1, 3920, 16)
    assert shapes["reader out"] == (1, 3920, model.config.hidden_size)
    assert vectors.shape == (1, 3927, model.config.hidden_size)
    assert mask.sum() == 3927


def test_the_temporal_embedding_has_an_entry_for_each_step_and_for_the_image(small: TheWorld) -> None:
    embedding = small.reader.temporal_embedding
    assert isinstance(embedding, nn.Embedding)
    assert tuple(embedding.weight.shape) == (16 + 1, 16)
    latents = torch.zeros(1, 16, 5, 4, 4)
    each = small.reader.arrange(latents).unflatten(1, (5, 16))  # of nothing else: t gets temporal_embedding[t]
    assert torch.equal(each, embedding.weight[:5, None].expand(5, 16, 16)[None])


@pytest.mark.parametrize(("steps", "tokens"), [(0, 784), (2, 2352), (4, 3920), (8, 7056), (16, 13328)])
def test_the_token_budget(small: TheWorld, steps: int, tokens: int) -> None:
    assert small.reader.layout.count(1 + steps, 28, 28, channels=16) == tokens


def test_the_number_of_steps_can_be_overridden_at_forward_time(small: TheWorld, place: Path, tmp_path: Path) -> None:
    cache = PrecomputeConfig(
        images=place, cache=tmp_path, world=str(place / "world"), size="32x32", steps=12, device="cpu", in_process=True
    )
    store = open_store(run_precompute(cache).store)
    batch = small.processor(text=TEXT, images=place / "0.png")
    pixels, ids, mask = batch["images"], batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        default = small(pixels, ids, mask)
        assert default.logits.shape[1] == ids.shape[1] + 5 * 16
        for steps in (0, 4, 8, 12):
            outputs = small(pixels, ids, mask, num_world_steps=steps)
            assert outputs.logits.shape[1] == ids.shape[1] + (1 + steps) * 16
            assert outputs["logits"] is outputs.logits is outputs[0]
        by_name = small(input_pixels=pixels, input_ids=ids, attention_mask=mask, num_world_steps=4)
        assert torch.equal(by_name.logits, default.logits)
        # a rollout of twelve steps is made at once, so its first frames are not those of a shorter one
        twelve = TheWorld(gemma_model_name=str(place / "lm"), world=str(place / "world"), device="cpu",
                          layout="spatial", size="32x32", num_world_steps=12, max_world_steps=16)  # fmt: skip
        for steps in (0, 4, 8, 12):
            live = twelve(**batch, num_world_steps=steps).logits
            stored = twelve(ids, mask, latents=store.read(batch["keys"]), num_world_steps=steps).logits
            torch.testing.assert_close(live, stored, rtol=1e-4, atol=1e-4)


def test_no_rollout_is_a_setting_of_the_model(place: Path) -> None:
    model = the_world(place, num_world_steps=0, size="32x32")
    assert (model.num_world_steps, model.max_world_steps) == (0, 16)
    batch = model.processor(text=TEXT, images=place / "0.png")
    assert (
        model(batch["images"], batch["input_ids"], batch["attention_mask"]).logits.shape[1]
        == 16 + batch["input_ids"].shape[1]
    )
