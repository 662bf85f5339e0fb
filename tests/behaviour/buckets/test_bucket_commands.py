"""Commands that read stores take the URLs of stores in a bucket, and answer as they do on a disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import theworld
from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.lm import SMALL_TRAINING, save_mini_lm
from tests.miniatures.study import save_mini_draws, save_mini_study
from tests.miniatures.world_model import add_text_encoder, save_mini_world
from tests.s3_server import BUCKET, S3Server, s3_server
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.upkeep.share import _as_tars
from theworld.train.study.arms import parse_study_table

SCENES = 8
URL = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as changed, s3_server() as server, server.environment():
        changed.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("of-this-machine")))
        yield server


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, server: S3Server) -> Path:
    """A world, images, and a store whose samples have prompts of their own; a language model, and stores of a study.
    All stores are in the bucket, under the same names, too."""
    folder = tmp_path_factory.mktemp("house")
    world = add_text_encoder(save_mini_world(folder / "world"))
    images = make_images(folder / "in", 3)
    rows = [{"image": path.name, "text": f"a ball falls {path.stem}"} for path in sorted(images.iterdir())]
    (images / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = {"prompt_field": "text", "guardrail": "external"}
    make_store(images / "list.jsonl", folder / "cache", world, **own)
    save_mini_lm(folder / "lm")
    save_mini_study(folder / "study", train=SCENES, test=SCENES, ood=0)
    save_mini_draws(folder / "study" / "draws", scenes=2 * SCENES)
    server.hold(folder / "cache", "cache")
    for name in ("rollouts", "futures", "draws"):
        server.hold(folder / "study" / name, name)
    return folder


@pytest.fixture(scope="module")
def run(house: Path) -> Path:
    done = theworld("train", f"{URL}/rollouts", *of_training(house), "--out", house / "run")
    assert done.code == 0, done.err
    return house / "run"


def of_training(house: Path) -> list[object]:
    words: list[object] = ["--questions", house / "study" / "questions.jsonl", "--lm", house / "lm", "--device", "cpu"]
    small = {**SMALL_TRAINING, "train_steps": 2, "local_cache": house / "shards"}
    small = {name: value for name, value in small.items() if name not in ("device",)}
    return words + [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_a_preview_is_drawn_of_a_store_in_a_bucket_beside_futures_there(house: Path, tmp_path: Path) -> None:
    words = ["--images", house / "in" / "list.jsonl", "--world", house / "world", "--device", "cpu", "--samples", 2]
    drawn = {}
    for name, store in (("local", house / "cache"), ("bucket", f"{URL}/cache")):
        done = theworld("cache", "preview", store, *words, "--out", tmp_path / name, "--json")
        assert done.code == 0, done.err
        drawn[name] = sorted((path.name, path.read_bytes()) for path in (tmp_path / name).iterdir())
    assert drawn["bucket"] == drawn["local"]
    done = theworld("cache", "preview", f"{URL}/cache", *words, "--out", tmp_path / "no", "--true", f"{URL}/futures")
    assert done.code != 0
    assert f"--true {URL}/futures/" in done.err, "it was opened there"


def test_an_audit_makes_samples_again_with_their_prompts_from_the_bucket(house: Path) -> None:
    of_audit = ["--recompute", 3, "--seed", 1, "--world", house / "world", "--device", "cpu", "--json"]
    for store in (house / "cache", f"{URL}/cache"):
        done = theworld("cache", "verify", store, *of_audit, "--images", house / "in" / "list.jsonl")
        assert done.code == 0, done.err
        assert (done.json["audit"]["compared"], done.json["audit"]["different"]) == (3, 0)
    done = theworld("cache", "verify", f"{URL}/cache", *of_audit)
    assert done.code == 2
    assert f"which images was {URL}/cache/" in done.err
    assert "--images FOLDER" in done.err


def test_a_run_is_evaluated_on_a_store_and_on_futures_in_a_bucket(house: Path, run: Path) -> None:
    def answers(*words: object) -> list[Any]:
        done = theworld("evaluate", run, "--no-generate", "--device", "cpu", "--json", *words)
        assert done.code == 0, done.err
        return [each["predictions"] for each in done.json]

    shown = ["--shown", "true"]
    local = answers("--store", house / "study" / "rollouts", "--futures", house / "study" / "futures", *shown)
    assert answers("--store", f"{URL}/rollouts", "--futures", f"{URL}/futures", *shown) == local
    assert answers("--draws", 3, "--store", f"{URL}/draws")
    done = theworld("evaluate", run, "--store", f"{URL}/none", "--device", "cpu")
    assert done.code == 10
    assert f"{URL}/none holds no store" in done.err


def test_a_question_is_asked_of_a_run_whose_store_is_in_a_bucket_and_no_store_is_read(
    run: Path, server: S3Server
) -> None:
    server.asked.clear()
    done = theworld("ask", run, f"{URL}/in/000.png", "where?", "--device", "cpu")
    assert done.code == 2
    assert f"{URL}/in/000.png is a URL" in done.err
    assert "copy what is there to a folder" in done.err
    assert server.asked == []


def test_policies_are_compared_with_stores_in_a_bucket(house: Path, run: Path) -> None:
    words = ["policies", run, "--rule", "static=0", "--device", "cpu", "--json"]
    local = theworld(*words, "--store", house / "study" / "rollouts", "--draws", house / "study" / "draws")
    done = theworld(*words, "--store", f"{URL}/rollouts", "--draws", f"{URL}/draws")
    assert done.code == local.code == 0, done.err + local.err
    assert done.json == local.json


def test_a_study_reads_its_store_and_those_of_its_arms_from_a_bucket(house: Path, tmp_path: Path) -> None:
    config = tmp_path / "study.toml"
    config.write_text(
        f'[study.arms.other]\nstore = "{URL}/rollouts"\n[study.arms.draws]\ndraws = 3\ndraws_store = "{URL}/draws"\n'
    )
    words = ["--config", config, "--labels", 4, "--seeds", 1, "--jobs", 1, "--arms", "rollout,other,draws,true"]
    stores = ["--futures", f"{URL}/futures"]
    done = theworld("study", f"{URL}/rollouts", *of_training(house), *words, *stores, "--out", tmp_path / "evidence")
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "evidence" / "study.json").read_text())
    assert facts["own_arms"]["draws"]["draws"] == 3
    page = (tmp_path / "evidence" / "study.json").read_text()
    assert URL not in page, "a study is what it read, not where that was"


def test_a_file_names_no_bucket_but_the_one_that_was_typed() -> None:
    arms = {"arms": {"other": {"store": "s3://theirs/rollouts"}}}
    with pytest.raises(ConfigError, match="a bucket that the file chose, with your credentials"):
        parse_study_table(arms, where="study.toml", typed=(f"{URL}/rollouts", None))
    with pytest.raises(ConfigError, match="a bucket that the file chose"):
        parse_study_table(arms, where="study.toml", typed=(Path("rollouts"),))
    table = parse_study_table(arms, where="study.toml", typed=("s3://theirs/some",))
    assert table.arms["other"].store == "s3://theirs/rollouts"


def test_tokens_takes_no_store_and_a_world_on_a_disk() -> None:
    done = theworld("tokens", f"{URL}/cache")
    assert done.code == 2
    done = theworld("tokens", "--world", f"{URL}/world")
    assert done.code == 2
    assert "copy what is there to a folder" in done.err


@pytest.mark.usefixtures("house")
def test_a_store_in_a_bucket_is_shared_as_tars_of_this_disk() -> None:
    store = open_store(f"{URL}/cache")
    with _as_tars(store, Progress.silent()) as tars:
        folder = tars.path
        assert (tars.format, sorted(tars.keys)) == ("webdataset", sorted(store.keys))
        assert len(tars.place.names("prompts")) == 3
    assert not folder.exists()
