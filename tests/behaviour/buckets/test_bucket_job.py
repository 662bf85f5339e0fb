"""A precompute job whose store is in a bucket: the same latents as on disk, and nothing of it that is lost or told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.behaviour.precompute.test_precompute import all_latents, config, make_images
from tests.command_line import theworld
from tests.miniatures.world_model import add_text_encoder, save_mini_world
from tests.s3_server import BUCKET, KEY_ID, SECRET, S3Server, s3_server
from theworld.pipeline.errors import Interrupted, StoreError, WorldModelError
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.upkeep.verify import verify
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.job.workers import ray_local
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld

URL = f"s3://{BUCKET}/cache"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_text_encoder(save_mini_world(tmp_path_factory.mktemp("world") / "mini"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of-this-machine"))
    with s3_server() as server, server.environment():
        yield server


def in_bucket(images: Path, world: Path, **changes: Any) -> PrecomputeConfig:
    return config(images, URL, world, **changes)  # type: ignore[arg-type]


def words(images: Path, world: Path, *more: str) -> list[str]:
    of_job = ["--steps", "1", "--size", "32x32", "--denoise-steps", "3", "--compute-dtype", "float32", "--in-process"]
    return ["precompute", str(images), "--world", str(world), "--device", "cpu", *of_job, "--cache", URL, *more]


def own_files(tmp_path: Path) -> dict[str, bytes]:
    """What this machine keeps of the bucket."""
    top = tmp_path / "of-this-machine"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_a_job_in_a_bucket_makes_what_it_makes_on_disk(tmp_path: Path, world: Path, server: S3Server) -> None:
    images = make_images(tmp_path / "in", 11)
    local = run_precompute(config(images, tmp_path / "cache", world))
    report = run_precompute(in_bucket(images, world))
    assert str(report.store) == f"{URL}/{Path(local.store).name}"
    assert (report.written, report.bad, report.work.shards) == (11, 0, local.work.shards)
    assert all_latents(report) == all_latents(local)
    assert verify(open_store(report.store).place, level="deep").findings == ()
    assert report.summary().endswith(f"next:  theworld train {report.store} --questions QUESTIONS.jsonl")
    assert not [name for name in server.objects if "/tmp/" in name], "probes are removed"
    of_cache = {name.removeprefix("cache/").partition("/")[0] for name in server.objects}
    assert of_cache == {Path(local.store).name}, "no machine's own notes are in the bucket"
    kept = {Path(name).parts[2] for name in own_files(tmp_path) if len(Path(name).parts) > 2}
    assert kept >= {"jobs"}, "they are this machine's own"


def test_a_second_run_finds_all_done_and_a_third_makes_the_new_image_alone(
    tmp_path: Path, world: Path, server: S3Server
) -> None:
    images = make_images(tmp_path / "in", 3)
    settings = in_bucket(images, world)
    run_precompute(settings)
    before = dict(server.objects)
    second = run_precompute(settings)
    assert (second.written, second.plan.done, second.stored) == (0, 3, 3)
    assert server.objects.keys() == before.keys()
    assert all(server.objects[name].content == stored.content for name, stored in before.items())
    make_images(images / "more", 1, seed=9)
    third = run_precompute(settings)
    assert (third.written, third.plan.done, third.stored) == (1, 3, 4)


@pytest.mark.usefixtures("hears_signals", "server")
def test_after_a_signal_what_is_made_is_committed_and_the_next_run_makes_the_rest(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "in", 8)
    rollout, batches = CosmosWorld.rollout, []

    def interrupted(self: CosmosWorld, pixels: torch.Tensor, keys: list[str], recipe: Any) -> torch.Tensor:
        batches.append(len(keys))
        if len(batches) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return rollout(self, pixels, keys, recipe)

    monkeypatch.setattr(CosmosWorld, "rollout", interrupted)
    settings = in_bucket(images, world, batch_size=2)
    with pytest.raises(Interrupted, match=f"SIGTERM: 2 rollouts were committed to {URL}/.*; 6 remain") as caught:
        run_precompute(settings)
    assert caught.value.exit_code == 75
    assert len(open_store(URL)) == 2
    report = run_precompute(settings)
    assert (report.written, report.plan.done, report.stored) == (6, 2, 8)


@pytest.mark.usefixtures("server")
def test_an_image_that_is_none_is_in_the_ledger_of_the_bucket(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    (images / "broken.png").write_bytes(b"no image")
    report = run_precompute(in_bucket(images, world))
    assert (report.written, report.bad) == (2, 1)
    assert [failure.source for failure in open_store(URL).failures()] == ["broken.png"]
    again = run_precompute(in_bucket(images, world))
    assert (again.written, len(again.plan.failed_before)) == (0, 1)


@pytest.mark.usefixtures("server")
def test_embeddings_of_prompts_are_in_the_bucket_and_are_made_once(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    rows = [{"image": f"{number:03d}.png", "text": text} for number, text in enumerate(["a ball falls", "it stops"])]
    listed = images / "list.jsonl"
    listed.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = {"prompt_field": "text", "guardrail": "external"}
    local = run_precompute(config(listed, tmp_path / "cache", world, **own))
    report = run_precompute(in_bucket(listed, world, **own))
    assert all_latents(report) == all_latents(local)
    store = open_store(report.store)
    assert len(store.place.names("prompts")) == 2
    one = {"prompt": "a ball falls", "guardrail": "external"}
    of_recipe = run_precompute(in_bucket(images, world, **one))
    assert all_latents(of_recipe) == all_latents(run_precompute(config(images, tmp_path / "cache", world, **one)))
    name = "prompt.safetensors"
    content = open_store(of_recipe.store).place.read(name, 2**20)
    make_images(images, 3)
    run_precompute(in_bucket(images, world, **one))
    assert open_store(of_recipe.store).place.read(name, 2**20) == content
    store.place.replace(f"prompts/{store.place.names('prompts')[0]}", b"no tensors")
    make_images(images / "more", 1, seed=5)
    rows.append({"image": "more/000.png", "text": "a ball falls"})
    rows.append({"image": "more/000.png", "text": "it stops"})
    listed.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(WorldModelError, match=f"{URL}/.*, cannot be read.*Remove it"):
        run_precompute(in_bucket(listed, world, **own))


def test_a_bad_hour_of_the_bucket_loses_nothing_and_makes_nothing_twice(
    tmp_path: Path, world: Path, server: S3Server
) -> None:
    images = make_images(tmp_path / "in", 12)
    server.faults.lost = server.faults.unavailable = server.faults.conflicts = 0.05
    report = run_precompute(in_bucket(images, world, shard_size=3))
    server.faults.lost = server.faults.unavailable = server.faults.conflicts = 0.0
    assert (report.written, report.bad, report.stored) == (12, 0, 12)
    store = open_store(report.store)
    assert sorted(store.keys) == sorted(set(store.keys))
    assert verify(store.place, level="deep").findings == ()
    assert all_latents(report) == all_latents(run_precompute(config(images, tmp_path / "cache", world, shard_size=3)))


@pytest.mark.parametrize("refusal", [(401, "InvalidAccessKeyId"), (403, "AccessDenied"), (404, "NoSuchBucket")])
def test_a_bucket_that_refuses_is_named_within_seconds(
    tmp_path: Path, world: Path, server: S3Server, refusal: tuple[int, str]
) -> None:
    server.faults.refusal = refusal
    started = time.monotonic()
    done = theworld(*words(make_images(tmp_path / "in", 1), world))
    assert done.code == 2, done.err
    assert time.monotonic() - started < 20
    assert URL in done.err
    assert SECRET not in done.err
    assert not server.objects
    assert not [name for name in own_files(tmp_path) if "jobs" in name]


@pytest.mark.usefixtures("server")
def test_a_server_that_ignores_conditions_is_refused_before_the_inputs_are_listed(
    tmp_path: Path, world: Path, server: S3Server
) -> None:
    server.faults.ignores_conditions = True
    with pytest.raises(StoreError, match="replaces objects that it was told to keep"):
        run_precompute(in_bucket(make_images(tmp_path / "in", 1), world))
    assert not server.objects


def test_scenes_are_not_made_in_a_bucket(server: S3Server) -> None:
    done = theworld("precompute", "--cache", URL)
    assert done.code == 2
    assert "theworld scenes FOLDER" in done.err
    assert not server.asked


def test_status_tells_of_the_jobs_of_this_machine(tmp_path: Path, world: Path, server: S3Server) -> None:
    done = theworld(*words(make_images(tmp_path / "in", 3), world, "--json"))
    assert done.code == 0, done.err
    store = done.json["store"]
    for place in (URL, store, f"{URL}/"):
        status = theworld("status", place, "--json").json
        assert [(task["state"], task["store"], task["written"]) for task in status["tasks"]] == [("finished", store, 3)]
        assert [(share["store"], share["latents"]) for share in status["stores"]] == [(store, 3)]
    [events] = [path for path in (tmp_path / "of-this-machine").rglob("*.jsonl") if path.parent.name == "jobs"]
    server.asked.clear()
    of_file = theworld("status", events, "--json").json
    assert [share["latents"] for share in of_file["stores"]] == [None]
    assert not server.asked, "a file of events is no reason to ask a bucket"
    other = theworld("status", f"s3://{BUCKET}/other")
    assert other.code == 10
    assert "of the machine that ran the job" in other.err


def test_no_secret_is_kept_or_shown(
    tmp_path: Path, world: Path, server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    images = make_images(tmp_path / "in", 2)
    done = theworld(*words(images, world, "--events", str(tmp_path / "events"), "--json"))
    assert done.code == 0, done.err
    kept = {**own_files(tmp_path), "events": (tmp_path / "events").read_bytes()}
    kept |= {name: stored.content for name, stored in server.objects.items()}
    shown = [done.stdout, done.stderr, caplog.text.encode(), repr(in_bucket(images, world)).encode()]
    for secret in (SECRET.encode(), KEY_ID.encode()):
        assert not [name for name, content in kept.items() if secret in content]
        assert not [text for text in shown if secret in text]


@pytest.mark.slow
def test_workers_of_ray_write_to_the_bucket_with_the_credentials_of_their_machine(
    tmp_path: Path, world: Path, server: S3Server
) -> None:
    images = make_images(tmp_path / "in", 9)
    report = run_precompute(in_bucket(images, world, in_process=False, workers=2, shard_size=3, batch_size=3))
    assert (report.written, report.bad, report.stored) == (9, 0, 9)
    assert all_latents(report).keys() == all_latents(run_precompute(config(images, tmp_path / "cache", world))).keys()
    assert verify(open_store(report.store).place, level="read").findings == ()
    probes = [asked for asked in server.asked if asked.startswith("PUT") and "/tmp/clock" in asked]
    assert len(probes) >= 2, "each worker has proven that it can write"
    assert not [name for name in server.objects if "/tmp/" in name]


@pytest.mark.slow
def test_a_worker_that_may_not_write_is_named_before_anything_is_made(
    tmp_path: Path, world: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_local, "bucket_names", lambda _: [])  # as on a node that was given none
    with pytest.raises(WorldModelError, match=f"could not start.*{URL}"):
        run_precompute(
            in_bucket(make_images(tmp_path / "in", 2), world, in_process=False, workers=1), progress=Progress.silent()
        )
    assert not [name for name in server.objects if "/commits/" in name]
