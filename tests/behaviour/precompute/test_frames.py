"""Real videos to a store of their encodings, with the embedded world's own VAE: recipes of kind `frames`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from tests.command_line import theworld, theworld_process
from tests.videos import turned
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, ImageError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.tensors import standardise
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.records import read_record
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.report import Report
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.world import LiveWorld
from theworld.precompute.media.video_showing import TURNED
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.preview.answer_cards import save_answer
from theworld.precompute.worlds.source import resolve_world


def falling(number: int, frames: int) -> NDArray[np.uint8]:
    """A square of a scene's own colour that falls on grey."""
    pixels = np.full((frames, 64, 64, 3), 200, dtype=np.uint8)
    for at, picture in enumerate(pixels):
        picture[at : at + 10, 5 * number : 5 * number + 10] = (20 * number, 30, 255 - 20 * number)
    return pixels


def make_videos(folder: Path, count: int, frames: int = 9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_video(folder / f"{number}.mp4", falling(number, frames + number), 12)
    return folder


def config(videos: Path, cache: Path, **changes: object) -> PrecomputeConfig:
    fields = {"images": videos, "cache": cache, "kind": "frames", "steps": 2, "device": "cpu", "in_process": True}
    return PrecomputeConfig(**(fields | {"dtype": "float32"} | changes))


def all_latents(report: Report) -> dict[str, bytes]:
    store = open_store(report.store)
    return {key: store.read([key])[0].tobytes() for key in store.keys}


def stock(frames: NDArray[np.uint8]) -> torch.Tensor:
    """(1, 16, T, 8, 8): what diffusers' own VAE makes of the frames."""
    world = resolve_world(None)
    vae = AutoencoderKLWan.from_pretrained(world.folder, subfolder="vae", torch_dtype=torch.float32).eval()
    video = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
    with torch.inference_mode():
        return standardise(vae.encode(video).latent_dist.mode(), world.latent_spec())


def test_a_store_of_frames_holds_the_stock_encoding_of_each_video(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 3)
    (videos / "still.png").write_bytes(b"not looked at")
    report = run_precompute(config(videos, tmp_path / "cache"))
    assert (report.written, report.bad, report.plan.others) == (3, 0, {"image": 1})
    assert report.store.name.startswith("worldlet-frames2-64x64-")
    assert "3 encodings in" in report.summary()
    store = open_store(report.store)
    assert (store.sample_shape, store.recipe.kind) == ((16, 3, 8, 8), "frames")
    for number in range(3):
        [latent] = store.read([key_of_file(videos / f"{number}.mp4")])
        np.testing.assert_allclose(latent, stock(falling(number, 9))[0].numpy(), atol=1e-4)
    assert set(store.sources()) == {"0.mp4", "1.mp4", "2.mp4"}
    again = run_precompute(config(videos, tmp_path / "cache"))
    assert (again.written, again.plan.done) == (0, 3)


def test_a_video_begins_with_the_latent_of_its_first_frame_as_an_image(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 3)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.fromarray(falling(number, 1)[0]).save(images / f"{number}.png")
    real = open_store(run_precompute(config(videos, tmp_path / "cache", batch_size=2)).store)
    seen = open_store(run_precompute(config(images, tmp_path / "cache", kind="rollout", steps=0, batch_size=2)).store)
    for number in range(3):
        [video] = real.read([key_of_file(videos / f"{number}.mp4")])
        [image] = seen.read([key_of_file(images / f"{number}.png")])
        np.testing.assert_array_equal(video[:, :1], image)


def test_a_stride_keeps_every_nth_latent_frame_of_a_longer_clip(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 1, frames=17)
    long = open_store(run_precompute(config(videos, tmp_path / "cache", steps=4)).store)
    kept = open_store(run_precompute(config(videos, tmp_path / "cache", steps=2, stride=2)).store)
    np.testing.assert_array_equal(kept.read(kept.keys), long.read(long.keys)[:, :, ::2])


def test_videos_are_turned_as_they_say_and_counted(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 3)
    upright = open_store(run_precompute(config(videos, tmp_path / "upright", steps=0)).store)
    [stored] = upright.read([key_of_file(videos / "1.mp4")])
    write_video(videos / "1.mp4", np.rot90(falling(1, 10), axes=(1, 2)), 12)  # to the left
    (videos / "1.mp4").write_bytes(turned((videos / "1.mp4").read_bytes()))
    report = run_precompute(config(videos, tmp_path / "cache", steps=0, shard_size=1))
    assert "note: 1 video: turned or mirrored as their display matrix says" in report.summary()
    store = open_store(report.store)
    np.testing.assert_array_equal(store.read([key_of_file(videos / "1.mp4")])[0], stored)
    facts = [read_record(store.place, number, store.recipe.id).facts for number in store.shards]
    assert [each["video_rates"] for each in facts] == [{"12": 1}] * 3
    assert [note for each in facts for note in each.get("notes", {})] == [TURNED]


def test_the_frames_of_a_clip_are_as_far_apart_as_those_of_the_world_model(tmp_path: Path) -> None:
    ball = np.full((33, 64, 64, 3), 60, np.uint8)
    for at, picture in enumerate(ball):
        picture[24:40, at : at + 16] = (240, 220, 40)
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "slow.mp4", ball, 48)
    write_video(tmp_path / "in" / "right.mp4", ball[::4], 12)  # the worldlet has 12 frames a second
    write_video(tmp_path / "in" / "few.mp4", ball[::8], 6)

    def latents(**changes: object) -> tuple[Recipe, dict[str, NDArray[np.float32]], Report]:
        report = run_precompute(config(tmp_path / "in", tmp_path / "cache", **changes))
        store = open_store(report.store)
        return store.recipe, {name: store.read([key])[0] for name, (key,) in store.sources().items()}, report

    recipe, at_card, report = latents()
    assert (recipe.clip_fps, recipe.id) == (12.0, latents(clip_fps="12")[0].id)
    np.testing.assert_array_equal(at_card["slow.mp4"], at_card["right.mp4"])
    assert "note: 1 video: with fewer frames a second than the clip, so that some were repeated" in report.summary()
    recipe, stored, _ = latents(clip_fps="stored", steps=1)
    assert recipe.clip_fps is None
    assert np.abs(stored["slow.mp4"] - at_card["right.mp4"][:, :2]).mean() > 0.05
    recipe, fast, _ = latents(clip_fps="24", steps=1)
    np.testing.assert_array_equal(stored["right.mp4"], latents(clip_fps="12", steps=1)[1]["right.mp4"])
    assert np.abs(fast["slow.mp4"] - at_card["right.mp4"][:, :2]).mean() > 0.05
    with pytest.raises(ValidationError, match="card, stored or frames a second"):
        config(tmp_path, tmp_path, clip_fps="fast")


@pytest.mark.slow
def test_ray_workers_encode_what_can_be_and_the_ledger_keeps_what_cannot(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 5)
    write_video(videos / "short.mp4", falling(1, 8), 12)
    (videos / "broken.mp4").write_bytes((videos / "0.mp4").read_bytes()[:-900])
    (videos / "empty.webm").touch()
    buffer = io.BytesIO()
    Image.fromarray(falling(0, 1)[0]).save(buffer, "PNG")
    (videos / "picture.mov").write_bytes(buffer.getvalue())
    command = ["precompute", videos, "--kind", "frames", "--steps", "2", "--workers", "2", "--shard-size", "2"]
    command += ["--dtype", "float32", "--device", "cpu", "--json"]

    done = theworld_process(*command, cwd=tmp_path)
    assert done.code == 3, done.err
    assert "the first 9 frames of each video at 12 frames/s = 3 latent frames" in done.err
    report = done.json
    assert (report["kind"], report["done_before"], report["written"], report["failed"]) == ("frames", 0, 5, 4)
    reasons = {"short.mp4": "short", "broken.mp4": "decode", "empty.webm": "empty", "picture.mov": "format"}
    assert {failure["source"]: failure["reason"] for failure in report["failures"]} == reasons
    store = open_store(tmp_path / report["store"])
    assert {failure.source: failure.reason for failure in store.failures()} == reasons

    write_video(videos / "short.mp4", falling(1, 30), 12)
    mended = run_precompute(config(videos, store.path.parent))
    assert (mended.written, mended.plan.done, mended.bad) == (1, 5, 3)
    assert all_latents(mended) == all_latents(run_precompute(config(videos, tmp_path / "here")))


def test_a_dry_run_and_the_cache_s_commands_tell_the_kind(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 1)
    dry = run_precompute(config(videos, tmp_path / "cache", dry_run=True))
    assert (len(dry.plan.todo), list(tmp_path.iterdir())) == (1, [videos])
    store = run_precompute(config(videos, tmp_path / "cache")).store

    def said(*args: object) -> str:
        return CliRunner().invoke(app, ["cache", *map(str, args)]).stdout

    assert "kind frames" in said("info", store)
    assert "denoise_steps" not in said("info", store)
    [row] = json.loads(said("list", store.parent, "--json"))
    assert (row["kind"], row["samples"]) == ("frames", 1)
    assert "  frames  " in said("list", store.parent)
    flags = ("--steps", "2", "--dtype", "float32")
    assert said("explain", store, *flags).splitlines()[1:] == ["  kind: frames / rollout"]
    assert "the same recipe" in said("explain", store, "--kind", "frames", *flags)
    other = said("explain", store, "--kind", "frames", "--clip-fps", "stored", *flags)
    assert other.splitlines()[1:] == ["  clip_fps: 12.0 / None"]


def test_what_makes_no_sense_for_frames_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 1)
    with pytest.raises(ConfigError, match=r"holds no image, but 1 video\. --kind frames takes videos"):
        run_precompute(config(videos, tmp_path / "cache", kind="rollout"))
    with pytest.raises(ConfigError, match="no videos were given: theworld precompute VIDEOS --kind frames"):
        run_precompute(config(videos, tmp_path / "cache", images=None))
    with pytest.raises(ConfigError, match="memory"):
        run_precompute(config(videos, tmp_path / "cache", size="4096x4096", steps=4))
    refused = theworld("precompute", videos, "--kind", "frames", "--seed", "3", "--prompt", "x", cwd=tmp_path)
    assert refused.code == 2
    assert "prompt, seed: without meaning for kind frames; leave them out" in refused.err
    assert not (tmp_path / "cache").exists()


def test_a_video_is_made_into_latents_on_the_spot_and_an_image_is_refused(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 2)
    store = open_store(run_precompute(config(videos, tmp_path / "cache")).store)
    live = LiveWorld.for_recipe(store.recipe, device="cpu")
    latents = live.roll_out(videos / "1.mp4")
    np.testing.assert_allclose(latents.numpy(), store.read([key_of_file(videos / "1.mp4")]), atol=1e-4)
    answers = [("left", 0.75), ("right", 0.25)]
    save_answer(live, videos / "1.mp4", latents, "where?", answers, tmp_path / "answer.png")
    with Image.open(tmp_path / "answer.png") as picture:
        shown = np.asarray(picture)
    first = np.asarray(Image.fromarray(falling(1, 1)[0]).resize((128, 128), Image.Resampling.NEAREST))
    assert np.array_equal(shown[39:165, 17:143], first[1:-1, 1:-1])  # but for its frame

    image = tmp_path / "x.png"
    Image.fromarray(falling(0, 1)[0]).save(image)
    with pytest.raises(ImageError, match=r"x\.png is not a video.*ask it about videos"):
        live.roll_out(image)
    rolls = LiveWorld.for_recipe(store.recipe.model_copy(update={"kind": "rollout", "clip_fps": None}), device="cpu")
    with pytest.raises(ImageError, match=r"0\.mp4 is a video.*ask it about images"):
        rolls.roll_out(videos / "0.mp4")


@pytest.mark.slow
def test_a_run_trained_on_real_frames_answers_about_a_video(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "in", 3)
    store = run_precompute(config(videos, tmp_path / "cache")).store
    asked = {"question": "where will the ball land?", "choices": ["left", "middle", "right"], "answer": "left"}
    lines = [json.dumps({"id": str(i), "image": f"in/{i}.mp4", **asked}) for i in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))

    def command(*args: object) -> Result:
        return CliRunner().invoke(app, [*map(str, args)])

    budget = ("--train-steps", 1, "--batch-size", 2, "--device", "cpu", "--out", tmp_path / "run")
    trained = command("train", store, "--questions", tmp_path / "q.jsonl", *budget)
    assert trained.exit_code == 0, trained.output
    question = ("where will the ball land?", "--choices", "left,middle,right", "--device", "cpu")
    answer = command("ask", tmp_path / "run", videos / "1.mp4", *question, "--preview", tmp_path / "strip.png")
    assert answer.stdout.strip() in {"left", "middle", "right"}
    assert (tmp_path / "strip.png").is_file()
    refused = command("ask", tmp_path / "run", tmp_path / "strip.png", *question)
    assert isinstance(refused.exception, ImageError)
