"""Stage one from a folder of images to a store, with the real parts: diffusers' classes, Ray, Zarr on disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import deque
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import zarr
from PIL import Image

from tests.miniatures.world_model import save_mini_world
from tests.patience import patience
from theworld.pipeline.errors import ConfigError, StoreError, StoreMismatchError, WorldModelError
from theworld.pipeline.files import atomic
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import find_stores, open_store
from theworld.precompute.job import prepare as outlook
from theworld.precompute.job import scheduler as drive
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import Report, run_precompute
from theworld.precompute.job.workers import worker
from theworld.precompute.media.images import load_image
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.source import resolve_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_world(tmp_path_factory.mktemp("world") / "mini")


def make_images(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def config(images: Path | None, cache: Path, world: Path, **changes: object) -> PrecomputeConfig:
    fields = {
        "images": images,
        "cache": cache,
        "world": str(world),
        "steps": 1,
        "size": "32x32",
        "denoise_steps": 3,
        "compute_dtype": "float32",
        "device": "cpu",
        "in_process": True,
        "batch_size": 4,
        "shard_size": 8,
    }
    return PrecomputeConfig(**(fields | changes))


def all_latents(report: Report) -> dict[str, bytes]:
    store = open_store(report.store)
    return {key: store.read([key])[0].tobytes() for key in store.keys}


def test_every_image_gets_the_latents_the_engine_gives(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 5)
    report = run_precompute(config(images, tmp_path / "cache", world))
    assert (report.written, report.bad) == (5, 0)
    store = open_store(report.store)
    engine = CosmosWorld.load(world)
    for path in sorted(images.iterdir()):
        key = key_of_file(path)
        pixels = load_image(path.read_bytes(), 32, 32, "cover", source=path.name)
        expected = engine.rollout(pixels[None], [key], store.recipe)[0]
        np.testing.assert_allclose(store.read([key])[0], expected.numpy(), atol=2e-3, rtol=1e-3)
    assert set(store.sources()) == {path.name for path in images.iterdir()}


def test_plain_zarr_reads_the_store(tmp_path: Path, world: Path) -> None:
    report = run_precompute(config(make_images(tmp_path / "in", 11), tmp_path / "cache", world))
    group = zarr.open(report.store, mode="r")
    array = group["latents"]
    assert array.shape == (11, 16, 2, 4, 4)
    assert array.dtype == np.float16
    assert array.metadata.dimension_names == ("sample", "channel", "time", "y", "x")
    store = open_store(report.store)
    assert np.array_equal(array[:], store.read(store.keys))


def test_a_second_run_does_nothing_and_a_third_only_the_new_image(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 3)
    settings = config(images, tmp_path / "cache", world)
    first = run_precompute(settings)
    before = {path: path.stat().st_mtime_ns for path in first.store.rglob("*") if path.is_file()}
    second = run_precompute(settings)
    assert (second.written, second.plan.done) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in first.store.rglob("*") if path.is_file()} == before
    make_images(images / "more", 1, seed=9)
    third = run_precompute(settings)
    assert (third.written, third.plan.done) == (1, 3)
    assert len(open_store(first.store)) == 4


def test_a_finished_job_names_the_command_that_trains_from_it(tmp_path: Path, world: Path) -> None:
    photos = run_precompute(config(make_images(tmp_path / "in", 1), tmp_path / "my cache", world))
    assert photos.summary().endswith(f"next:  theworld train '{photos.store}' --questions QUESTIONS.jsonl")
    scenes = run_precompute(PrecomputeConfig(cache=tmp_path / "c", scenes=3, steps=0, in_process=True, device="cpu"))
    assert scenes.summary().endswith(f"next:  theworld train {scenes.store}")  # whose questions lie beside it


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_both_formats_hold_the_same_bits_in_every_dtype(tmp_path: Path, world: Path, dtype: str) -> None:
    images = make_images(tmp_path / "in", 5)
    reports = [
        run_precompute(config(images, tmp_path / format, world, format=format, dtype=dtype))
        for format in ("zarr", "webdataset")
    ]
    assert [open_store(report.store).format for report in reports] == ["zarr", "webdataset"]
    assert all_latents(reports[0]) == all_latents(reports[1])
    with pytest.raises(StoreMismatchError, match="cache export"):
        run_precompute(config(images, tmp_path / "zarr", world, format="webdataset", dtype=dtype))
    again = run_precompute(config(images, tmp_path / "webdataset", world, dtype=dtype))  # what the store is, it stays
    assert (again.store, again.plan.done) == (reports[1].store, 5)


def test_shards_are_numbered_by_the_plan_whoever_finishes_first(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "in", 10)  # two shards of four, then one of two
    monkeypatch.setattr(drive, "deque", lambda tasks: deque(reversed(tasks)))
    report = run_precompute(config(images, tmp_path / "cache", world, shard_size=4))
    store = open_store(report.store)
    assert [(record.shard, record.rows) for record in store.records()] == [(0, 4), (1, 4), (2, 2)]
    assert zarr.open(report.store, mode="r")["latents"].shape[0] == 10


def test_a_full_disk_is_announced_and_not_refused(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outlook, "_free_bytes", lambda _: 10)
    settings = config(make_images(tmp_path / "in", 1), tmp_path / "cache", world)
    report = run_precompute(settings, progress=Progress.on_stderr())
    assert report.written == 1
    assert "free in" in capsys.readouterr().err


def test_a_finished_store_on_read_only_media_is_done_and_not_an_error(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(make_images(tmp_path / "in", 2), tmp_path / "cache", world)
    run_precompute(settings)

    def no_writing(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(atomic, "TempFile", no_writing)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on such media, also for root
    assert run_precompute(settings).plan.done == 2
    make_images(tmp_path / "in", 3)
    with pytest.raises(StoreError, match="Read-only file system"):
        run_precompute(settings)


def test_duplicates_share_one_rollout(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    (images / "copy.png").write_bytes((images / "000.png").read_bytes())
    report = run_precompute(config(images, tmp_path / "cache", world))
    assert (report.written, report.plan.duplicates) == (2, 1)
    assert len(open_store(report.store).sources()) == 3


def test_a_change_of_recipe_is_another_store(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    stores = {
        run_precompute(config(images, tmp_path / "cache", world, **changes)).store
        for changes in ({}, {"steps": 2}, {"seed": 1}, {"size": "48x32"}, {"workers": 1, "batch_size": 1})
    }
    assert len(stores) == 4  # how it runs is not part of the recipe


def test_the_bits_do_not_depend_on_order_neighbours_shards_or_worker(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 7)
    reference = all_latents(run_precompute(config(images, tmp_path / "a", world)))
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, path in enumerate(sorted(images.iterdir(), reverse=True)):
        (renamed / f"{i}.png").write_bytes(path.read_bytes())
    assert all_latents(run_precompute(config(renamed, tmp_path / "b", world, shard_size=3))) == reference
    for path in sorted(renamed.iterdir()):  # one run per image: each alone in its shard
        report = run_precompute(config(path, tmp_path / "c", world))
    assert all_latents(report) == reference


def test_unreadable_and_hostile_inputs_become_ledger_rows_and_the_rest_is_done(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 3)
    (images / "empty.png").touch()
    (images / "text.jpg").write_text("no image")
    (images / "cut.png").write_bytes((images / "000.png").read_bytes()[:-40])
    (images / "zero.png").symlink_to("/dev/zero")
    (images / "out.png").symlink_to(sys.executable)
    (images / "loop").symlink_to(images)
    (images / "notes.txt").write_text("ignored")
    os.mkfifo(images / "pipe.png")
    Image.new("1", (12000, 12000)).save(images / "bomb.png")
    hostile = images / os.fsdecode(b"b\xff.png")  # a name that is not UTF-8
    hostile.write_bytes(b"x")
    settings = config(images, tmp_path / "cache", world)
    report = run_precompute(settings)
    reasons = {failure.source: failure.reason for failure in report.failures}
    assert reasons == {
        "empty.png": "empty",
        "text.jpg": "format",
        "cut.png": "decode",
        "zero.png": "not_a_file",
        "out.png": "format",  # a link in the user's own folder is followed
        "pipe.png": "not_a_file",
        "bomb.png": "too_large",
        os.fsdecode(b"b\xff.png"): "format",
    }
    assert (report.written, report.plan.left_out) == (3, {".txt": 1, "in a loop of links": 1})
    assert {f.source for f in open_store(report.store).failures()} == set(reasons)
    assert all(word in report.summary() for word in ("8 inputs failed", "too_large", "--retry-failed"))
    again = run_precompute(settings)
    assert (again.written, again.bad) == (0, 8)
    (images / "text.jpg").write_bytes((images / "001.png").read_bytes())
    (images / "empty.png").write_bytes((images / "001.png").read_bytes())
    mended = run_precompute(settings.model_copy(update={"retry_failed": True}))
    assert {f.source for f in mended.failures} == set(reasons) - {"text.jpg", "empty.png"}


def test_a_file_that_changes_during_the_run_is_not_rolled_out_under_its_old_key(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "in", 2)
    key_of = worker.key_of_sample
    monkeypatch.setattr(worker, "key_of_sample", lambda content, prompt: key_of(content + b" ", prompt))
    report = run_precompute(config(images, tmp_path / "cache", world))
    assert [failure.reason for failure in report.failures] == ["changed", "changed"]
    assert report.written == 0


def test_a_list_and_a_tar_give_the_latents_of_the_folder_and_mended_rows_leave_the_ledger(
    tmp_path: Path, world: Path
) -> None:
    images = make_images(tmp_path / "in", 3)
    wanted = all_latents(run_precompute(config(images, tmp_path / "folder", world)))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted(images.iterdir()):
            tar.add(path, path.name)
    tarred = run_precompute(config(tmp_path / "shard.tar", tmp_path / "tarred", world))
    assert all_latents(tarred) == wanted
    assert set(open_store(tarred.store).sources()) == {f"shard.tar:{path.name}" for path in images.iterdir()}
    rows = [{"image": f"in/{path.name}"} for path in sorted(images.iterdir())]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"image": "in/late.png"}])))
    settings = config(tmp_path / "list.jsonl", tmp_path / "listed", world)
    listed = run_precompute(settings)
    assert all_latents(listed) == wanted
    assert [(f.source, f.reason) for f in open_store(listed.store).failures()] == [("list.jsonl:4", "missing")]
    make_images(tmp_path / "more", 1, seed=5)
    (tmp_path / "more" / "000.png").rename(images / "late.png")
    assert run_precompute(settings).written == 1
    assert open_store(listed.store).failures() == []


def test_a_sample_that_breaks_the_rollout_is_found_and_the_others_are_done(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "in", 12)
    poison = key_of_file(images / "005.png")
    rollout = CosmosWorld.rollout

    def breaks(self: CosmosWorld, pixels: torch.Tensor, keys: list[str], recipe: object) -> torch.Tensor:
        if poison in keys:
            raise RuntimeError("an illegal memory access was encountered")
        return rollout(self, pixels, keys, recipe)

    monkeypatch.setattr(CosmosWorld, "rollout", breaks)
    report = run_precompute(config(images, tmp_path / "cache", world))
    assert [(f.source, f.reason) for f in report.failures] == [("005.png", "rollout")]
    assert "illegal memory access" in report.failures[0].message
    assert report.written == 11


def test_a_rollout_that_is_not_finite_is_never_stored(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "in", 4)
    bad = key_of_file(images / "002.png")
    rollout = CosmosWorld.rollout

    def poisoned(self: CosmosWorld, pixels: torch.Tensor, keys: list[str], recipe: object) -> torch.Tensor:
        latents = rollout(self, pixels, keys, recipe).clone()
        for i, key in enumerate(keys):
            if key == bad:
                latents[i, 3, 1] = float("nan")
        return latents

    monkeypatch.setattr(CosmosWorld, "rollout", poisoned)
    report = run_precompute(config(images, tmp_path / "cache", world))
    assert [(f.source, f.reason) for f in report.failures] == [("002.png", "latent")]
    assert bad not in open_store(report.store)


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "in", 6)
    rollout = CosmosWorld.rollout
    sizes: list[int] = []

    def small(self: CosmosWorld, pixels: torch.Tensor, keys: list[str], recipe: object) -> torch.Tensor:
        sizes.append(len(keys))
        if len(keys) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rollout(self, pixels, keys, recipe)

    monkeypatch.setattr(CosmosWorld, "rollout", small)
    report = run_precompute(config(images, tmp_path / "cache", world))
    assert (report.written, report.bad) == (6, 0)
    assert sizes == [4, 2, *[1] * 6]  # it remembers


def test_when_nothing_works_the_run_says_so_instead_of_filling_the_ledger(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(CosmosWorld, "rollout", broken)
    with pytest.raises(WorldModelError, match="no kernel image"):
        run_precompute(config(make_images(tmp_path / "in", 60), tmp_path / "cache", world))
    assert open_store(tmp_path / "cache").failures() == []


def test_a_dry_run_writes_nothing(tmp_path: Path, world: Path) -> None:
    report = run_precompute(config(make_images(tmp_path / "in", 3), tmp_path / "cache", world, dry_run=True))
    assert len(report.plan.todo) == 3
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_names_what_cannot_be_read_and_what_is_left_out(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    for name in ("empty.png", "bare", "notes.txt", ".hidden.png"):
        (images / name).touch()
    report = run_precompute(config(images, tmp_path / "cache", world, dry_run=True))
    summary = report.summary()
    assert all(words in summary for words in ("1 inputs cannot be read (1 empty)", "empty.png is empty"))
    assert "left out 1 .txt, 1 without suffix, 1 hidden" in report.plan.lines(
        report.recipe, resolve_world(str(world)), ""
    )
    assert (report.bad, report.to_json()["reasons"]) == (0, {"empty": 1})
    assert report.to_json()["left_out"] == {".txt": 1, "without suffix": 1, "hidden": 1}
    done = run_precompute(config(images, tmp_path / "cache", world))
    assert "left out: 1 .txt, 1 without suffix, 1 hidden" in done.summary()
    assert (done.bad, done.written) == (1, 2)


def test_where_no_input_can_be_read_the_reasons_are_said_and_nothing_is_made(tmp_path: Path, world: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.png").touch()
    (tmp_path / "in" / "gone.png").symlink_to("nowhere")
    (tmp_path / "pictures.zip").write_bytes(b"PK\5\6" + bytes(18))
    for place, words in (
        (tmp_path / "in", r"none of the 6 inputs of .* \(5 empty, 1 missing\)[^\0]*is empty[^\0]*a link to nowhere"),
        (tmp_path / "pictures.zip", "is a ZIP archive"),
    ):
        for dry_run in (True, False):
            with pytest.raises(ConfigError, match=words):
                run_precompute(config(place, tmp_path / "cache", world, dry_run=dry_run))
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_over_the_embedded_scenes_writes_nothing_either(tmp_path: Path) -> None:
    settings = PrecomputeConfig(cache=tmp_path / "cache", scenes=3, dry_run=True, in_process=True)
    dry = run_precompute(settings)
    assert list(tmp_path.iterdir()) == []
    assert len(dry.plan.todo) == 3
    wet = run_precompute(settings.model_copy(update={"dry_run": False}))
    assert {sample.key for sample in wet.plan.todo} == {sample.key for sample in dry.plan.todo}


def test_a_store_given_as_the_cache_is_refused_before_anything_is_written(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 1)
    store = run_precompute(config(images, tmp_path / "cache", world)).store
    before = sorted(store.rglob("*"))
    for given in (images, None):
        with pytest.raises(ConfigError, match=f"is a store.*{tmp_path / 'cache'};"):
            run_precompute(config(given, store, world))
    assert sorted(store.rglob("*")) == before


@pytest.mark.parametrize("name", ["my first wörld", "_", "w" * 90])
def test_a_world_may_lie_in_a_folder_of_any_name(tmp_path: Path, world: Path, name: str) -> None:
    shutil.copytree(world, tmp_path / name)
    report = run_precompute(config(make_images(tmp_path / "in", 1), tmp_path / "cache", tmp_path / name))
    assert report.store.name.endswith(f"-rollout1-32x32-{report.recipe.id[:12]}")


def test_no_images_at_the_place_named_is_said_before_anything_is_written(tmp_path: Path, world: Path) -> None:
    (tmp_path / "in").mkdir()
    for place in (tmp_path / "absent", tmp_path / "in", tmp_path / "*.png"):
        with pytest.raises(ConfigError, match=str(tmp_path)[:10]):
            run_precompute(config(place, tmp_path / "cache", world))
    assert not (tmp_path / "cache").exists()


def test_a_prompt_without_a_guardrail_is_refused_with_the_licence_s_reason(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 1)
    with pytest.raises(ConfigError, match=r"(?is)licen[cs]e.*--guardrail"):
        run_precompute(config(images, tmp_path / "cache", world, prompt="a ball falls"))
    with pytest.raises(WorldModelError, match="no text encoder"):
        run_precompute(config(images, tmp_path / "cache", world, prompt="a ball falls", guardrail="external"))
    assert not (tmp_path / "cache").exists()


def command_line(images: Path, cache: Path, world: Path) -> list[str]:
    flags = "--steps 1 --size 32x32 --denoise-steps 20 --compute-dtype float32 --batch-size 2 --shard-size 2"
    places = ["--cache", str(cache), "--world", str(world), "--workers", "2", "--device", "cpu"]
    return [sys.executable, "-m", "theworld.pipeline.cli", "precompute", str(images), *flags.split(), *places]


def wait_for_records(cache: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + patience(240)
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(cache.glob("*/commits/*.json"))) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"no {count} shards: {process.communicate(timeout=patience(10))}")


@pytest.mark.slow
def test_a_job_of_ray_that_loses_a_worker_and_is_cut_twice_commits_what_one_process_commits(
    tmp_path: Path, world: Path
) -> None:
    """A signal cuts it, then a kill; a process without Ray does the rest."""
    images, cache = make_images(tmp_path / "in", 40), tmp_path / "cache"
    command = command_line(images, cache, world)
    old_umask = os.umask(0o022)
    os.umask(old_umask)

    def begin(*records: int) -> subprocess.Popen[str]:
        """Start the job, kill a worker after so many shards each but the last, and wait for that one."""
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for count in records[:-1]:
            wait_for_records(cache, count, process)
            children = psutil.Process(process.pid).children(recursive=True)
            next(child for child in children if child.name().startswith("ray::Worker")).kill()
        wait_for_records(cache, records[-1], process)
        return process

    stopped = begin(3, 8)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=patience(120))
    assert stopped.returncode == 75
    assert "SIGTERM: stopping after the batch in hand; a second one stops it on the spot" in said
    assert "Run the same command again to resume" in said
    assert not list(Path("/tmp").glob(f"tw-{stopped.pid}-*")), "the session of its Ray is left"
    [path] = find_stores(cache)
    done = len(open_store(path))
    assert 16 <= done < 40, "not after the batch in hand"
    killed = begin(len(open_store(path).records()) + 2)
    killed.kill()
    killed.communicate(timeout=patience(120))
    assert done < len(open_store(path)) < 40
    alone = {"denoise_steps": 20, "batch_size": 2}
    report = run_precompute(config(images, cache, world, shard_size=2, **alone))
    store = open_store(path)
    assert (len(store), store.failures()) == (40, [])
    assert (report.written, report.reasons) == (40 - report.plan.done, {})
    records = store.records()
    assert sorted(key for record in records for key in record.keys) == sorted(store.keys), "a key is there twice"
    rights = {record.stat().st_mode & 0o777 for record in (path / "commits").iterdir()}
    assert rights == {0o666 & ~old_umask}  # Ray's session is private; the store is not
    untouched = run_precompute(config(images, tmp_path / "whole", world, **alone))
    assert all_latents(untouched) == {key: store.read([key])[0].tobytes() for key in store.keys}
