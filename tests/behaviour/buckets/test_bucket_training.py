"""A training from a store in a bucket: the same run as from the disk, with each shard fetched once."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.command_line import theworld
from tests.miniatures.training import StopAt, lay_out, settings
from tests.s3_server import BUCKET, S3Server, Stored, s3_server
from theworld.pipeline.errors import ConfigError, Interrupted
from theworld.train.config import TrainConfig
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.runs.meta import read_meta
from theworld.train.runs.partial import resumed_config
from theworld.train.training.train import train

URL = f"s3://{BUCKET}/cache"


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server, server.environment():
        yield server


@pytest.fixture
def house(tmp_path: Path, server: S3Server) -> Path:
    """Its store lies on the disk and in the bucket."""
    lay_out(tmp_path, images=26)
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file() and "mini-" in str(file):
            name = str(file.relative_to(tmp_path))
            server.objects[name] = Stored(file.read_bytes(), {}, time.time())
    return tmp_path


def in_bucket(house: Path, **changes: Any) -> TrainConfig:
    return settings(house, **{"store": URL, "local_cache": house / "shards", "shuffle_window": 2, **changes})


def weights(run: Path) -> bytes:
    return (run / "world_reader.safetensors").read_bytes()


def payload_gets(server: S3Server) -> list[str]:
    return [asked for asked in server.asked if asked.startswith("GET") and "/c/" in asked and "latents" in asked]


def test_a_training_from_a_bucket_is_the_one_from_the_disk_and_fetches_each_shard_once(
    house: Path, server: S3Server
) -> None:
    local = train(settings(house, out=house / "local", shuffle="blocks", shuffle_window=2)).run
    server.asked.clear()
    run = train(in_bucket(house)).run
    assert weights(run) == weights(local)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["shuffle"] == "blocks of 2 shards"
    gets = payload_gets(server)
    assert len(gets) == len(set(gets)) <= 4
    server.asked.clear()
    assert weights(train(in_bucket(house, out=house / "again")).run) == weights(local)
    assert payload_gets(server) == []
    meta = read_meta(run)
    assert meta.store.path.startswith(URL)
    assert meta.config["store"] == URL
    for secret in ("AKIDOFATEST", "must-never-be-shown"):
        assert not any(secret.encode() in file.read_bytes() for file in run.rglob("*") if file.is_file())


def test_an_evaluation_finds_the_store_of_a_run_again_and_asks_for_single_samples(
    house: Path, server: S3Server
) -> None:
    run = train(in_bucket(house)).run
    server.asked.clear()
    found = evaluate(run, batch_size=4)
    local = evaluate(run, store=house / "cache", batch_size=4)
    assert [each.probabilities for each in found.predictions] == [each.probabilities for each in local.predictions]
    assert all("bytes=" in asked for asked in payload_gets(server))


def test_with_full_shuffle_samples_come_one_by_one_and_nothing_is_kept(house: Path, server: S3Server) -> None:
    run = train(in_bucket(house, shuffle="full", local_cache=None)).run
    assert weights(run) == weights(train(settings(house, out=house / "local")).run)
    assert not (house / "shards").exists()
    assert payload_gets(server)


def test_a_training_is_resumed_with_its_blocks_on_a_copy_of_the_store(house: Path) -> None:
    straight = train(in_bucket(house, out=house / "straight")).run
    with pytest.raises(Interrupted):
        train(in_bucket(house), stop=StopAt(3))
    partial = house / "run.partial"
    run = train(resumed_config(partial, {"store": house / "cache"}), resume=partial).run
    assert weights(run) == weights(straight)
    assert load_file(run / "world_reader.safetensors")


def test_a_local_cache_that_is_too_small_is_refused_before_anything_is_loaded(house: Path) -> None:
    with pytest.raises(ConfigError, match=r"need 4 of them there\. Pass --local-cache-size 1MiB"):
        train(in_bucket(house, local_cache_size="10kB"))
    with pytest.raises(ConfigError, match="holds other content"):
        train(in_bucket(house, local_cache=house / "cache"))


def test_commands_take_urls_of_stores(house: Path) -> None:
    questions = house / "cache" / "questions.jsonl"
    done = theworld("questions", questions, URL, "--lm", house / "lm", "--patch", 2)
    assert done.code == 0, done.err
    done = theworld(
        *("train", URL, "--questions", questions, "--lm", house / "lm", "--out", house / "typed", "--train-steps", 2),
        *("--local-cache", house / "shards", "--local-cache-size", "1GB", "--patch", 2, "--lora-rank", 2),
    )
    assert done.code == 0, done.err
    assert read_meta(house / "typed").config["local_cache_size"] == 10**9
    done = theworld("evaluate", house / "typed", "--no-generate")
    assert done.code == 0, done.err
    done = theworld("train", URL)
    assert done.code == 2
    assert "which questions" in done.err
