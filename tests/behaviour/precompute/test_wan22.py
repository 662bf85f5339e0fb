"""Wan 2.2 through the whole house: a latent space of 48 channels and 16x16 pixels a cell, and two transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.behaviour.precompute.test_worlds import images, settings, train_one_update
from tests.miniatures.wan22 import save_mini_ti2v, save_mini_two_stage
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import PROMPT, open_store
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.world import LiveWorld
from theworld.precompute.media.images import load_image
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.preview.store_preview import preview
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.train.evaluation.answer import ask
from theworld.train.runs.folder import load_run

__all__ = ["images"]  # a fixture


@pytest.mark.parametrize(("save", "shape"), [(save_mini_ti2v, (48, 3, 2, 4)), (save_mini_two_stage, (16, 3, 4, 8))])
def test_it_rolls_out_into_a_store_that_a_reader_trains_on(
    tmp_path: Path, images: Path, save: object, shape: tuple[int, ...]
) -> None:
    world = save(tmp_path / "tiny")
    config = settings(images, world, size="32x64", dtype="float32")
    report = run_precompute(config)
    assert (report.written, report.bad) == (3, 0)
    store = open_store(report.store)
    assert store.sample_shape == shape
    engine = load_world(world, text=TextEmbeddings.load(report.store / PROMPT))
    for path in images.iterdir():
        pixels = load_image(path.read_bytes(), 32, 64, "cover", source=path.name)[None]
        kept = torch.from_numpy(store.read([key_of_file(path)]))
        torch.testing.assert_close(kept, engine.rollout(pixels, [key_of_file(path)], store.recipe), atol=1e-5, rtol=0)
        torch.testing.assert_close(kept[:, :, :1], engine.encode(pixels), atol=1e-6, rtol=0)
    assert run_precompute(config).written == 0
    shown = preview(store, tmp_path / "out", samples=1, world=str(world), device="cpu")
    assert not any("guardrail" in note for note in shown.notes)  # which the licence of Wan does not ask for
    run = load_run(train_one_update(report.store, images))
    assert run.meta.reader.latent_shape == (shape[0], *shape[2:])
    live = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu").roll_out(images / "0.png")
    np.testing.assert_allclose(store.read([key_of_file(images / "0.png")]), live.numpy(), atol=1e-5)
    assert ask(run, live, "where will the ball land?", ["left", "right"]).text in {"left", "right"}


def test_clips_beyond_the_window_go_on_from_the_last_decoded_frame(tmp_path: Path, images: Path) -> None:
    world = save_mini_ti2v(tmp_path / "tiny")
    (world / "card.json").write_text('{"defaults": {"window": 3}}')
    report = run_precompute(settings(images, world, size="32x32", steps=4, limit=1, chunk_context=1))
    assert (report.written, report.bad) == (1, 0)
    assert open_store(report.store).sample_shape == (48, 5, 2, 2)


def test_real_videos_are_encoded_in_its_space(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", rng.integers(0, 256, (9, 32, 64, 3), dtype=np.uint8), 8)
    world, changes = save_mini_ti2v(tmp_path / "tiny"), {"denoise_steps": None, "compute_dtype": None}
    report = run_precompute(settings(videos, world, kind="frames", size="32x64", **changes))
    assert (report.written, report.bad) == (1, 0)
    assert open_store(report.store).sample_shape == (48, 3, 2, 4)
