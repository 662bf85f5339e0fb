"""AnyFlow FAR through the whole house: chunks from a kept state, beyond the window, without decoding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.behaviour.precompute.test_worlds import images, settings, train_one_update
from tests.miniatures.anyflow import save_mini_anyflow
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import PROMPT, open_store
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.world import LiveWorld
from theworld.precompute.media.images import load_image
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.train.evaluation.answer import ask
from theworld.train.runs.folder import load_run

__all__ = ["images"]  # a fixture


def test_clips_of_any_length_fill_stores_and_a_longer_one_begins_with_the_shorter(tmp_path: Path, images: Path) -> None:
    world = save_mini_anyflow(tmp_path / "tiny")
    stores = {}
    for steps in (4, 24):  # beyond the window of 21 latent frames
        config = settings(images, world, size="32x64", dtype="float32", steps=steps)
        report = run_precompute(config)
        assert (report.written, report.bad) == (3, 0)
        stores[steps] = open_store(report.store)
        assert stores[steps].sample_shape == (16, 1 + steps, 4, 8)
    assert run_precompute(config).written == 0
    short, long = stores[4], stores[24]
    assert np.array_equal(short.read(short.keys), long.read(short.keys)[:, :, :5])

    engine = load_world(world, text=TextEmbeddings.load(short.path / PROMPT))
    for path in images.iterdir():
        pixels = load_image(path.read_bytes(), 32, 64, "cover", source=path.name)[None]
        kept = torch.from_numpy(short.read([key_of_file(path)]))
        torch.testing.assert_close(kept, engine.rollout(pixels, [key_of_file(path)], short.recipe), atol=1e-5, rtol=0)
        torch.testing.assert_close(kept[:, :, :1], engine.encode(pixels), atol=1e-6, rtol=0)

    run = load_run(train_one_update(short.path, images))
    assert run.meta.reader.latent_shape == (16, 4, 8)
    live = LiveWorld.for_recipe(short.recipe, world=str(world), device="cpu").roll_out(images / "0.png")
    np.testing.assert_allclose(short.read([key_of_file(images / "0.png")]), live.numpy(), atol=1e-5)
    assert ask(run, live, "where will the ball land?", ["left", "right"]).text in {"left", "right"}


def test_each_image_follows_its_own_prompt_and_videos_are_gone_on_from(tmp_path: Path, images: Path) -> None:
    world = save_mini_anyflow(tmp_path / "tiny")
    rows = [{"image": str(images / f"{number}.png"), "prompt": word} for number, word in enumerate(("a ball", "left"))]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = settings(tmp_path / "list.jsonl", world, size="32x32", dtype="float32", prompt_field="prompt")
    report = run_precompute(listed)
    assert (report.written, report.bad) == (2, 0)

    videos = tmp_path / "videos"
    videos.mkdir()
    clip = np.random.default_rng(1).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)
    write_video(videos / "a.mp4", clip, 16)
    seen = {"kind": "continuation", "observed_frames": 13, "steps": 6, "dtype": "float32"}
    report = run_precompute(settings(videos, world, size="32x32", **seen))
    assert (report.written, report.bad) == (1, 0)
    store = open_store(report.store)
    assert store.sample_shape == (16, 7, 4, 4)
    true = run_precompute(
        settings(
            videos, world, size="32x32", kind="frames", steps=3, dtype="float32", denoise_steps=None, compute_dtype=None
        )
    )
    known = open_store(true.store)
    np.testing.assert_allclose(store.read(store.keys)[:, :, :4], known.read(known.keys), atol=1e-5)
