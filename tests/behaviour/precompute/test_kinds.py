"""Every kind of recipe, from its inputs to a store of either format and into a training: what its T axis holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.tensors import draw_posterior
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.pipeline.store.upkeep.summary import summarise
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.job.run import run_precompute
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.precompute.worlds.source import resolve_world
from theworld.train.config import TrainConfig
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.training.train import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, splits={"train": 4, "test": 2}, families=("buckets",), videos=True)
    return folder


def made(scenes: Path, cache: Path, **changes: object) -> LatentStore:
    videos = changes.get("kind") in ("frames", "continuation")
    fields = {"images": scenes / ("futures" if videos else "images"), "cache": cache, "device": "cpu", "batch_size": 2}
    report = run_precompute(PrecomputeConfig(**(fields | {"in_process": True, "denoise_steps": 4} | changes)))
    assert (report.written, report.bad) == (6, 0)
    return open_store(report.store)


def read(store: LatentStore) -> NDArray[np.float32]:
    return store.read(sorted(store.keys)).astype(np.float32)


def test_each_draw_of_samples_is_the_rollout_of_that_draw(scenes: Path, tmp_path: Path) -> None:
    several = read(made(scenes, tmp_path, kind="samples", steps=2, draws=3))
    assert several.shape[2] == 1 + 3 * 2
    first = read(made(scenes, tmp_path, steps=2))
    np.testing.assert_array_equal(several[:, :, :3], first)
    assert not np.array_equal(several[:, :, 3:5], several[:, :, 1:3])  # another future
    # they are futures of the same picture: nearer to each other than to another picture's
    apart = np.abs(several[:, :, 3:5] - several[:, :, 1:3]).mean()
    assert apart < np.abs(several[:1, :, 3:5] - several[1:, :, 1:3]).mean()


def test_a_posterior_holds_the_mean_that_rollouts_begin_with_and_a_log_variance(scenes: Path, tmp_path: Path) -> None:
    store = made(scenes, tmp_path, kind="posterior", denoise_steps=None)
    moments = read(store)
    np.testing.assert_array_equal(moments[:, :, :1], read(made(scenes, tmp_path, steps=0)))
    assert (moments[:, :, 1] < 0).mean() > 0.9  # surer than the spread of all latents
    drawn = draw_posterior(torch.from_numpy(moments), torch.Generator().manual_seed(0)).numpy()
    apart = (drawn - moments[:, :, :1]) / np.exp(0.5 * moments[:, :, 1:])
    assert (apart.mean(), apart.std()) == pytest.approx((0, 1), abs=0.05)
    assert not summarise(store).warnings


def test_a_view_is_the_encoding_of_its_crop_alone(scenes: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    for number, path in enumerate(sorted((scenes / "images").rglob("*.png"))):
        grain = np.random.default_rng(number).integers(0, 8, (128, 128, 3), dtype=np.uint8)  # no two crops are equal
        pixels = np.asarray(Image.open(path).convert("RGB").resize((128, 128)))
        Image.fromarray(pixels // 2 + grain).save(large / f"{number}.png")
    views = made(tmp_path, tmp_path / "a", images=large, kind="views", steps=4, denoise_steps=None, dtype="float32")
    assert views.sample_shape[1] == 5
    for number, corner in enumerate([(0, 0), (64, 0), (0, 64), (64, 64)]):
        crops = tmp_path / f"crops{number}"
        crops.mkdir()
        for path in large.iterdir():
            image = Image.open(path)
            image.crop((*corner, corner[0] + 64, corner[1] + 64)).save(crops / path.name)
        alone = made(tmp_path, tmp_path / f"c{number}", images=crops, steps=0, dtype="float32")
        keys = [{name: found for name, (found,) in store.sources().items()} for store in (views, alone)]
        names = sorted(keys[0])
        ours, theirs = views.read([keys[0][n] for n in names]), alone.read([keys[1][n] for n in names])
        np.testing.assert_allclose(ours[:, :, 1 + number], theirs[:, :, 0], atol=1e-5)


def test_a_continuation_begins_with_the_real_frames_and_its_motion_goes_on(scenes: Path, tmp_path: Path) -> None:
    # from the middle of a fall on: from a still picture the direction cannot be known
    late = tmp_path / "late"
    late.mkdir()
    for path in sorted((scenes / "futures").rglob("*.mp4")):
        write_video(late / path.name, frames_of(path)[8:29], 12)
    real = made(scenes, tmp_path, images=late, kind="frames", steps=5, denoise_steps=None)
    seen = made(scenes, tmp_path, images=late, kind="continuation", steps=5, observed_frames=9, denoise_steps=10)
    blind = made(scenes, tmp_path, images=late, kind="continuation", steps=5, observed_frames=1, denoise_steps=10)
    truth, known, guessed = read(real), read(seen), read(blind)
    np.testing.assert_array_equal(known[:, :, :3], truth[:, :, :3])
    assert np.square(known - truth)[:, :, 3:].mean() < np.square(guessed - truth)[:, :, 3:].mean()


def frames_of(path: Path) -> NDArray[np.uint8]:
    from theworld.precompute.media.video import load_video

    clip = load_video(path.read_bytes(), 33, 64, 64, "cover", source=path.name).pixels
    return ((clip + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def test_a_rollout_beyond_the_window_goes_on_in_chunks(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"was trained on 9.*--chunk-context 5"):
        made(scenes, tmp_path, steps=12)
    with pytest.raises(ConfigError, match="Choose 1 or 5"):
        made(scenes, tmp_path, steps=12, chunk_context=4)
    long = made(scenes, tmp_path, steps=12, chunk_context=5)
    assert (long.recipe.chunk_frames, long.recipe.chunk_context, long.sample_shape[1]) == (9, 5, 13)
    short = made(scenes, tmp_path, steps=8)
    np.testing.assert_array_equal(read(long)[:, :, :9], read(short))
    # asked for where one chunk will do, it changes nothing, the id included
    recipe = make_recipe(PrecomputeConfig(steps=8, chunk_context=5, denoise_steps=4), resolve_world(None))
    assert recipe.id == short.recipe.id


def test_a_first_chunk_holds_all_that_is_seen_or_is_refused_before_anything_is_made() -> None:
    world, chunked = resolve_world(None), {"kind": "continuation", "steps": 12, "chunk_context": 5}
    assert make_recipe(PrecomputeConfig(**chunked, observed_frames=33), world).chunk_frames == 9
    with pytest.raises(ConfigError, match=r"--observed-frames 37 are more .* 9 latent frames .* at most 33"):
        make_recipe(PrecomputeConfig(**chunked, observed_frames=37), world)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "samples", "steps": 1, "draws": 2},
        {"kind": "continuation", "steps": 2},
        {"kind": "views", "steps": 4, "denoise_steps": None},
        {"kind": "posterior", "denoise_steps": None},
        {"steps": 9, "chunk_context": 5, "denoise_steps": 2},
        {"steps": 2, "solver": "2ab"},
    ],
    ids=lambda settings: "-".join(f"{value}" for value in settings.values()),
)
def test_a_reader_is_trained_on_every_kind_from_either_format(
    settings: dict[str, object], format: str, scenes: Path, tmp_path: Path
) -> None:
    store = made(scenes, tmp_path / "cache", format=format, **settings)
    questions = scenes / "questions.jsonl"
    if store.recipe.kind == "continuation":  # its questions are about videos
        questions = scenes / f"{tmp_path.name}.jsonl"
        rows = [json.loads(line) for line in (scenes / "questions.jsonl").read_text().splitlines()]
        rows = [{**row, "image": row["future"]} for row in rows]
        questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = TrainConfig(store=store.path, questions=questions, train_steps=2, batch_size=2, out=tmp_path / "run")
    summary = train(config)
    frames = 1 if store.recipe.kind == "posterior" else store.sample_shape[1]
    assert summary.world_tokens == frames * 4
    assert evaluate(tmp_path / "run").overall.total > 0
