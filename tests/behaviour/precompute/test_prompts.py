"""Prompts of each sample's own: part of the key, embedded once each, one row of the batch each."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.miniatures.world_model import add_text_encoder, save_mini_world
from theworld.pipeline.errors import ConfigError, Interrupted, StoreError
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.latents.keys import key_of_sample
from theworld.pipeline.machine import resolve_device
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.pipeline.store.upkeep.transfer import export
from theworld.precompute.job import run as job
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.report import Report
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.audit import audit
from theworld.precompute.media.images import load_image
from theworld.precompute.worlds.prompts import embed_prompts
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.source import resolve_world
from theworld.train.questions.record import Question, resolve_keys

PROMPTS = ["a ball falls", "the cup tips over", "nothing moves"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_text_encoder(save_mini_world(tmp_path_factory.mktemp("world") / "mini"))


def manifest(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "list.jsonl"


def run(inputs: Path, cache: Path, world: Path, **changes: object) -> Report:
    fields = {"images": inputs, "cache": cache, "world": str(world), "size": "32x32", "steps": 1, "denoise_steps": 3}
    fields |= {"compute_dtype": "float32", "dtype": "float32", "device": "cpu", "in_process": True, "batch_size": 2}
    return run_precompute(PrecomputeConfig(**(fields | {"guardrail": "external"} | changes)))


def three(folder: Path) -> Path:
    rows = zip([0, 0, 1], PROMPTS, strict=True)
    return manifest(folder, [{"image": f"{number}.png", "text": prompt} for number, prompt in rows])


def keys(folder: Path) -> list[str]:
    rows = zip([0, 0, 1], PROMPTS, strict=True)
    return [key_of_sample((folder / f"{number}.png").read_bytes(), prompt) for number, prompt in rows]


def prompted(folder: Path, cache: Path, world: Path, **changes: object) -> LatentStore:
    report = run(three(folder), cache, world, prompt_field="text", **changes)
    assert (report.written, report.bad) == (3, 0)
    return open_store(report.store)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_each_latent_is_the_one_its_prompt_gives_a_whole_recipe(world: Path, tmp_path: Path, guidance: float) -> None:
    store = prompted(tmp_path / "in", tmp_path / "cache", world, guidance=guidance)
    assert set(store.keys) == set(keys(tmp_path / "in"))
    assert store.prompts() == dict(zip(keys(tmp_path / "in"), PROMPTS, strict=True))
    first, second, third = store.read(keys(tmp_path / "in"))
    np.testing.assert_array_equal(first[:, :1], second[:, :1])  # one picture
    assert not np.array_equal(first, second)  # two futures
    source = resolve_world(str(world), with_text=True)
    rows = zip([0, 0, 1], PROMPTS, keys(tmp_path / "in"), (first, second, third), strict=True)
    for number, prompt, key, latent in rows:
        one = store.recipe.model_copy(update={"prompts": "recipe", "prompt": prompt})
        engine = load_world(world, text=embed_prompts(world, one, source.family.text))
        image = load_image((tmp_path / "in" / f"{number}.png").read_bytes(), 32, 32, "cover", source="x")
        np.testing.assert_allclose(latent, engine.rollout(image[None], [key], one)[0], atol=1e-5)
    again = run(three(tmp_path / "in"), tmp_path / "cache", world, prompt_field="text", guidance=guidance)
    assert (again.written, again.plan.done) == (0, 3)


def test_a_prompt_that_cannot_be_used_costs_its_own_samples_alone(world: Path, tmp_path: Path) -> None:
    rows = [{"image": "0.png", "text": "a ball falls"}, {"image": "1.png", "text": "on " * 600}]
    rows += [{"image": "1.png", "text": " "}, {"image": "1.png"}]
    report = run(manifest(tmp_path / "in", rows), tmp_path / "cache", world, prompt_field="text")
    assert report.written == 1
    assert sorted(failure.reason for failure in report.failures) == ["prompt", "row", "row"]
    [long] = [failure for failure in report.failures if failure.reason == "prompt"]
    assert "1.png" in long.message
    assert "tokens" in long.message
    assert len(open_store(report.store).failures()) == 3


@pytest.mark.parametrize("prompts", [{"prompt": "a ball falls"}, {"prompt_field": "text"}])
def test_a_disk_too_full_for_the_embeddings_is_said(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: dict[str, str]
) -> None:
    create = Folder.create

    def fill_up(folder: Folder, name: str, content: bytes) -> bool:
        if name.startswith("prompt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(folder, name, content)

    monkeypatch.setattr(Folder, "create", fill_up)
    with pytest.raises(StoreError, match=r"No space left on device.*Free some space"):
        run(three(tmp_path / "in"), tmp_path / "cache", world, **prompts)


def test_who_checked_the_prompts_is_written_into_the_store_and_nothing_where_there_are_none(
    world: Path, tmp_path: Path
) -> None:
    store = prompted(tmp_path / "in", tmp_path / "cache", world)
    one, none = (run(tmp_path / "in", tmp_path / "cache", world, **more) for more in ({"prompt": PROMPTS[0]}, {}))
    stores = (store, open_store(one.store), open_store(none.store))
    said = [record.facts.get("guardrail") for each in stores for record in each.records()]
    assert said == ["external", "external", None]


def test_prompts_are_embedded_where_the_driver_has_no_gpu_though_its_workers_have(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def stop(*arguments: object) -> None:
        devices.append(str(arguments[-1]))
        raise Interrupted("far enough")

    @contextmanager
    def joined(_: str) -> Iterator[SimpleNamespace]:
        nodes = [{"Alive": True, "Resources": {"GPU": 2, "CPU": 4}}]
        yield SimpleNamespace(ray=SimpleNamespace(nodes=lambda: nodes))

    monkeypatch.setattr(job, "knock", lambda _address: None)
    monkeypatch.setattr(job, "ray_cluster", joined)
    monkeypatch.setattr(job, "embed_sample_prompts", stop)
    here = {"prompt_field": "text", "in_process": False, "device": "auto", "address": "10.0.0.1:6379"}
    with pytest.raises(Interrupted, match="far enough"):
        run(three(tmp_path / "in"), tmp_path / "cache", world, **here)
    assert devices == [str(resolve_device("auto"))]


def test_nobody_checking_the_prompts_is_refused_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a guardrail"):
        run(three(tmp_path / "in"), tmp_path / "cache", world, prompt_field="text", guardrail=None)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="prompts: without meaning for kind views"):
        PrecomputeConfig(kind="views", prompt_field="text")


def test_a_question_says_by_its_prompt_which_future_it_is_about(world: Path, tmp_path: Path) -> None:
    store = prompted(tmp_path / "in", tmp_path / "cache", world)
    ask = {"question": "what?", "answer": "that"}
    asked = [Question(id="a", image="0.png", prompt=PROMPTS[1], **ask), Question(id="b", image="0.png", **ask)]
    asked.append(Question(id="c", image="1.png", **ask))
    found = resolve_keys(asked, tmp_path / "in" / "questions.jsonl", store)
    second, third = keys(tmp_path / "in")[1:]
    assert found.keys == {"a": second, "c": third}
    assert "2 prompts" in found.missing[0].reason
    elsewhere = resolve_keys(asked, tmp_path / "questions.jsonl", store)  # by the names that the store knows
    assert elsewhere.keys == found.keys


def test_prompts_go_where_their_latents_go_and_can_be_audited_there(world: Path, tmp_path: Path) -> None:
    store = prompted(tmp_path / "in", tmp_path / "cache", world)
    copy, _ = export(store, tmp_path / "copy", format="webdataset")
    assert copy.prompts() == store.prompts()
    found = audit(copy, 3, seed=0, images=tmp_path / "in", world=str(world))
    assert [one.verdict for one in found.samples] == ["equal"] * 3


def test_a_job_that_goes_on_takes_the_embeddings_it_began_with(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, same = three(tmp_path / "in").parent, {"prompt": "a ball falls", "limit": 1}
    assert run(images, tmp_path / "cache", world, **same).written == 1

    def again(*arguments: object) -> None:
        raise AssertionError(f"the text encoder is not needed again: {arguments}")

    monkeypatch.setattr(job, "embed_prompts", again)
    assert run(images, tmp_path / "cache", world, **same | {"limit": None}).written == 1
