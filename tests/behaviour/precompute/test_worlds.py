"""Other world models through the whole house: Wan 2.1, and one that a package brings with a latent space of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.installed import drift_code, install, save_drift
from tests.miniatures.vjepa2 import save_mini_vjepa2
from tests.miniatures.world_model import save_mini_wan
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import PROMPT, open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.world import LazyRollout, LiveWorld
from theworld.precompute.media.images import load_image
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.preview.answer_cards import save_answer
from theworld.precompute.preview.store_preview import preview
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.precompute.worlds.text_rows import stack_prompts
from theworld.train.config import TrainConfig
from theworld.train.evaluation.answer import ask
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.runs.folder import load_run
from theworld.train.training.train import train


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures, and a question about each."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    questions = tmp_path / "questions.jsonl"
    with questions.open("w") as file:
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            record = {"image": f"images/{number}.png", "question": "where will the ball land?", "answer": "left"}
            file.write(json.dumps(record | {"choices": ["left", "right"]}) + "\n")
    return folder


def settings(images: Path, world: Path, **changes: object) -> PrecomputeConfig:
    fields = {"images": images, "cache": images.parent / "cache", "world": str(world), "steps": 2, "device": "cpu"}
    fields |= {"denoise_steps": 2, "compute_dtype": "float32", "in_process": True, "batch_size": 2}
    return PrecomputeConfig(**(fields | changes))


def train_one_update(store: Path, images: Path, **changes: object) -> Path:
    """A run with the embedded language model."""
    fields = {"store": store, "questions": images.parent / "questions.jsonl", "out": images.parent / "run"}
    fields |= {"train_steps": 1, "batch_size": 3, "patch": 2, "lora_rank": 2, "device": "cpu"}
    return train(TrainConfig.model_validate(fields | changes)).run


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_package_s_world_with_its_own_latent_space_goes_through_the_whole_house(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path, format: str
) -> None:
    install(tmp_path / "site", monkeypatch, package="drift-world", code=drift_code(), name="drift")
    world = save_drift(tmp_path / "drift")
    report = run_precompute(settings(images, world, format=format, dtype="float32", stride=2))
    assert (report.written, report.bad) == (3, 0)
    store = open_store(report.store)
    assert store.sample_shape == (4, 3, 8, 12)
    assert (store.spec.channels, store.spec.spatial_stride, store.spec.temporal_stride) == (4, 4, 2)
    engine = load_world(world)
    for path in images.iterdir():
        pixels = load_image(path.read_bytes(), 32, 48, "cover", source=path.name)[None]
        kept = torch.from_numpy(store.read([key_of_file(path)]))
        torch.testing.assert_close(kept, engine.rollout(pixels, [key_of_file(path)], store.recipe))
        torch.testing.assert_close(kept[:, :, :1], engine.encode(pixels))
    assert run_precompute(settings(images, world, format=format, dtype="float32", stride=2)).written == 0

    run = train_one_update(report.store, images)
    assert load_run(run).meta.reader.latent_shape == (4, 8, 12)
    assert evaluate(run, split=None).by_type["untyped"].total == 3
    live = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu")
    latents = live.roll_out(images / "0.png")
    assert torch.equal(latents, torch.from_numpy(store.read([key_of_file(images / "0.png")])))
    assert ask(load_run(run), latents, "where will the ball land?", ["left", "right"]).text in {"left", "right"}
    save_answer(live, images / "0.png", latents, "where?", [("left", 0.6)], tmp_path / "answer.png")
    # the image and a tile of 192 pixels for each of the two rollout steps
    assert Image.open(tmp_path / "answer.png").width == 32 + 3 * (192 + 4) - 4 + 34


def test_prompts_in_a_form_of_a_package_s_own_are_kept_and_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    install(tmp_path / "site", monkeypatch, package="drift-world", code=drift_code(), name="drift")
    world = save_drift(tmp_path / "drift")
    one = open_store(run_precompute(settings(images, world, dtype="float32", prompt="red red")).store)
    assert TextEmbeddings.load(one.path / PROMPT).prompts[0]["push"].shape == (1, 4)
    rows = [{"image": str(images / f"{number}.png"), "prompt": word} for number, word in enumerate(("red red", "blue"))]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = settings(tmp_path / "list.jsonl", world, dtype="float32", prompt_field="prompt")
    report = run_precompute(listed)
    assert (report.written, report.bad) == (2, 0)
    each = open_store(report.store)
    own = {prompt: key for key, prompt in each.prompts().items()}
    assert own.keys() == {"red red", "blue"}
    live = LiveWorld.for_store(each, world=str(world), device="cpu")
    for number, prompt in enumerate(("red red", "blue")):
        pixels = load_image((images / f"{number}.png").read_bytes(), 32, 48, "cover", source="")
        made = live.roll_out_batch([pixels], [own[prompt]], size=2)
        np.testing.assert_array_equal(each.read([own[prompt]]), made.numpy())
    plain = open_store(run_precompute(settings(images, world, dtype="float32")).store)
    key = key_of_file(images / "0.png")
    red, none = one.read([key]), plain.read([key])
    assert np.array_equal(red[:, :, 0], none[:, :, 0])
    assert (red - none)[0, 0, 2].mean() == pytest.approx(2 * 0.05 * 2 * 0.5, rel=1e-3)  # two steps of two reds


def test_a_world_that_decodes_nothing_goes_through_the_house_without_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    code = drift_code().replace("    def decode(self, latents)", "    def _decode(self, latents)")
    code = code.replace("names = {}", 'names = {}\n    lacks = frozenset({"decode"})')
    install(tmp_path / "site", monkeypatch, package="drift-world", code=code, name="drift")
    world = save_drift(tmp_path / "drift")
    report = run_precompute(settings(images, world))
    assert report.written == 3
    with pytest.raises(ConfigError, match=r"no pictures of .*: drifting cells decodes no latents"):
        preview(open_store(report.store), tmp_path / "pictures", world=str(world), device="cpu")
    rollout = LazyRollout(open_store(report.store).recipe, images / "0.png", world=str(world), device="cpu")
    with pytest.raises(ConfigError, match="no picture of this rollout: drifting cells"):
        rollout.require_pictures()
    latents = rollout.see(2)
    assert latents.shape == (1, 4, 3, 8, 12)
    with (tmp_path / "said").open("w") as terminal:
        rollout.viewer.show(latents, terminal)
    assert (tmp_path / "said").read_text() == "no picture: drift decodes no latents\n"


def test_real_videos_are_cut_by_the_strides_of_the_world_that_encodes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, package="drift-world", code=drift_code(), name="drift")
    rng = np.random.default_rng(1)
    videos = tmp_path / "videos"
    videos.mkdir()
    # the first frame and three pairs; a world that packs four would ask for thirteen
    write_video(videos / "a.mp4", rng.integers(0, 256, (7, 32, 48, 3), dtype=np.uint8), 8)
    report = run_precompute(
        settings(videos, save_drift(tmp_path / "drift"), kind="frames", steps=3, denoise_steps=None, compute_dtype=None)
    )
    assert (report.written, report.bad) == (1, 0)
    assert open_store(report.store).sample_shape == (4, 4, 8, 12)


def test_a_package_s_world_goes_on_from_the_frames_it_is_shown(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, package="drift-world", code=drift_code(), name="drift")
    world = save_drift(tmp_path / "drift")
    short = run_precompute(settings(images, world, steps=8, chunk_context=3))
    long = run_precompute(settings(images, world, steps=20, chunk_context=3))
    stores = [open_store(done.store) for done in (short, long)]
    key = stores[0].keys[0]
    one, other = (store.read([key])[0] for store in stores)
    assert (one.shape[1], other.shape[1]) == (9, 21)
    assert (one == other[:, :9]).all(), "a longer clip begins with the shorter one"


def test_wan_rolls_out_into_a_store_that_a_reader_trains_on(tmp_path: Path, images: Path) -> None:
    world = save_mini_wan(tmp_path / "tiny-wan")
    report = run_precompute(settings(images, world, size="32x48"))
    assert (report.written, report.bad) == (3, 0)
    assert report.store.name.startswith("tiny-wan-rollout2-32x48-")
    store = open_store(report.store)
    assert store.sample_shape == (16, 3, 4, 6)
    text = TextEmbeddings.load(report.store / PROMPT)
    assert text.negative is None
    rows, _ = stack_prompts(text)
    assert rows is not None
    assert rows.shape == (1, 512, 24)
    assert rows[:, 0].any()  # the end mark, which is all of the empty prompt
    assert not rows[:, 1:].any()
    engine = load_world(world, text=text)
    for path in images.iterdir():
        pixels = load_image(path.read_bytes(), 32, 48, "cover", source=path.name)[None]
        expected = engine.rollout(pixels, [key_of_file(path)], store.recipe)
        np.testing.assert_allclose(store.read([key_of_file(path)]), expected.numpy(), atol=4e-3, rtol=2e-3)
    assert train_one_update(report.store, images).is_dir()

    live = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu").roll_out(images / "0.png")
    np.testing.assert_allclose(store.read([key_of_file(images / "0.png")]), live.numpy(), atol=4e-3, rtol=2e-3)


def test_a_prompt_for_wan_asks_for_no_guardrail_and_makes_another_store(tmp_path: Path, images: Path) -> None:
    world = save_mini_wan(tmp_path / "tiny-wan")
    plain = run_precompute(settings(images, world, size="32x32", steps=1, limit=1))
    prompted = run_precompute(
        settings(images, world, size="32x32", steps=1, limit=1, prompt="a ball falls", guidance=2.0)
    )
    assert plain.store != prompted.store
    text = TextEmbeddings.load(prompted.store / PROMPT)
    assert text.negative is not None  # of the empty prompt
    a, b = (open_store(report.store) for report in (plain, prompted))
    assert np.array_equal(a.read(a.keys)[:, :, 0], b.read(b.keys)[:, :, 0])
    assert not np.array_equal(a.read(a.keys)[:, :, 1], b.read(b.keys)[:, :, 1])
    with pytest.raises(ConfigError, match="guardrail"):
        run_precompute(settings(images, Path("worldlet"), size="32x32", prompt="a ball falls"))


def test_v_jepa_predicts_features_that_a_reader_trains_on_and_shows_no_pictures(tmp_path: Path, images: Path) -> None:
    world = save_mini_vjepa2(tmp_path / "tiny-jepa")
    asked = settings(images, world, denoise_steps=None, dtype="float32", steps=4, stride=1)
    dry = run_precompute(asked.model_copy(update={"dry_run": True}))
    assert dry.plan.sample_bytes == 4 * 32 * 5 * 4 * 4
    assert dry.cost is not None
    assert dry.cost.operations is not None
    report = run_precompute(asked)
    assert (report.written, report.bad) == (3, 0)
    store = open_store(report.store)
    assert store.sample_shape == (32, 5, 4, 4)
    keys = [key_of_file(path) for path in sorted(images.iterdir())]
    engine = load_world(world)
    pixels = [load_image(path.read_bytes(), 64, 64, "cover", source="") for path in sorted(images.iterdir())]
    expected = engine.rollout(torch.stack(pixels), keys, store.recipe)
    np.testing.assert_allclose(store.read(keys), expected.numpy(), atol=1e-5)
    assert run_precompute(asked).written == 0

    run = train_one_update(report.store, images)
    assert load_run(run).meta.reader.latent_shape == (32, 4, 4)
    live = LiveWorld.for_recipe(store.recipe, world=str(world), device="cpu").roll_out(images / "0.png")
    np.testing.assert_allclose(store.read(keys[:1]), live.numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match=r"no pictures of .*: Meta V-JEPA 2 decodes no latents"):
        preview(store, tmp_path / "pictures", world=str(world), device="cpu")


def test_v_jepa_encodes_real_videos_tubelet_by_tubelet(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    rng = np.random.default_rng(1)
    write_video(videos / "a.mp4", rng.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8), 4)
    world = save_mini_vjepa2(tmp_path / "tiny-jepa")
    asked = settings(videos, world, kind="frames", steps=3, denoise_steps=None, compute_dtype=None)
    report = run_precompute(asked)
    assert (report.written, report.bad) == (1, 0)
    assert open_store(report.store).sample_shape == (32, 4, 4, 4)
