"""Cosmos 3 through the whole house: keys and values in place of a text encoder, and a rate in each recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.behaviour.precompute.test_worlds import images, settings, train_one_update
from tests.miniatures.cosmos3 import EDGE, save_mini_cosmos3
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import PROMPT, open_store
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.world import LiveWorld
from theworld.precompute.media.images import load_image
from theworld.precompute.worlds.cosmos.cosmos3_text import KEYS
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.train.evaluation.answer import ask
from theworld.train.runs.folder import load_run

__all__ = ["images"]  # a fixture


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return save_mini_cosmos3(tmp_path / "tiny-edge", **EDGE)


def test_it_rolls_out_into_a_store_that_a_reader_trains_on(images: Path, world: Path) -> None:
    config = settings(images, world, size="32x64", dtype="float32")
    report = run_precompute(config)
    assert (report.written, report.bad) == (3, 0)
    store = open_store(report.store)
    assert store.sample_shape == (48, 3, 2, 4)
    assert store.recipe.fps == 24.0  # of the card
    text = TextEmbeddings.load(report.store / PROMPT)
    assert text.negative is None
    assert text.prompts[0][KEYS].shape[1:2] == (3,)
    engine = load_world(world, text=text)
    for path in images.iterdir():
        pixels = load_image(path.read_bytes(), 32, 64, "cover", source=path.name)[None]
        kept = torch.from_numpy(store.read([key_of_file(path)]))
        torch.testing.assert_close(kept, engine.rollout(pixels, [key_of_file(path)], store.recipe), atol=1e-5, rtol=0)
        torch.testing.assert_close(kept[:, :, :1], engine.encode(pixels), atol=1e-6, rtol=0)
    assert run_precompute(config).written == 0
    run = load_run(train_one_update(report.store, images))
    assert run.meta.reader.latent_shape == (48, 2, 4)
    live = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu").roll_out(images / "0.png")
    np.testing.assert_allclose(store.read([key_of_file(images / "0.png")]), live.numpy(), atol=1e-5)
    assert ask(run, live, "where will the ball land?", ["left", "right"]).text in {"left", "right"}


def test_another_rate_and_another_prompt_are_other_recipes(images: Path, world: Path) -> None:
    small = {"size": "32x32", "limit": 1, "dtype": "float32"}
    reports = [
        run_precompute(settings(images, world, **small, **changes))
        for changes in ({}, {"fps": 12.0}, {"prompt": "a ball falls", "guidance": 2.0})
    ]
    stores = [open_store(report.store) for report in reports]
    assert len({store.recipe.id for store in stores}) == 3
    plain, slow, prompted = (store.read(store.keys) for store in stores)
    assert np.array_equal(plain[:, :, 0], slow[:, :, 0])
    assert not np.array_equal(plain, slow)
    assert not np.array_equal(plain, prompted)
    text = TextEmbeddings.load(reports[2].store / PROMPT)
    assert text.negative is not None  # of the empty prompt, told the opposites


def test_each_picture_follows_a_prompt_of_its_own(images: Path, world: Path) -> None:
    prompts = ("a ball falls", "The ball rolls to the left")
    rows = [{"image": str(images / f"{number}.png"), "prompt": prompt} for number, prompt in enumerate(prompts)]
    (images.parent / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = settings(images.parent / "list.jsonl", world, size="32x32", dtype="float32", prompt_field="prompt")
    report = run_precompute(listed)
    assert (report.written, report.bad) == (2, 0)
    store = open_store(report.store)
    own = {prompt: key for key, prompt in store.prompts().items()}
    live = LiveWorld.for_store(store, world=str(world), device="cpu")
    for number, prompt in enumerate(prompts):
        pixels = load_image((images / f"{number}.png").read_bytes(), 32, 32, "cover", source="")
        made = live.roll_out_batch([pixels], [own[prompt]], size=2)
        np.testing.assert_allclose(store.read([own[prompt]]), made.numpy(), atol=1e-5)


def test_clips_beyond_the_window_go_on_from_five_decoded_frames(images: Path, world: Path) -> None:
    (world / "card.json").write_text('{"defaults": {"window": 4, "fps": 12}}')
    report = run_precompute(settings(images, world, size="32x32", steps=5, limit=1, chunk_context=5))
    assert (report.written, report.bad) == (1, 0)
    store = open_store(report.store)
    assert store.sample_shape == (48, 6, 2, 2)
    assert store.recipe.fps == 12.0


def test_what_it_cannot_do_is_refused_before_anything_is_made(images: Path, world: Path) -> None:
    for changes, words in (
        ({"solver": "2ab"}, "--solver 2ab means nothing for NVIDIA Cosmos 3"),
        ({"chunk_context": 9, "steps": 60}, "can be shown 5 frames at the most"),
        ({"steps": 60}, "was trained on 38"),
    ):
        with pytest.raises(ConfigError, match=words):
            run_precompute(settings(images, world, size="32x32", **changes))
