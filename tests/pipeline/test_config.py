"""A settings file may be a stranger's: it sets settings, and no place beyond the working folder, address or secret."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.command_line import theworld
from tests.miniatures.store import create
from theworld.pipeline.config import load_config
from theworld.pipeline.errors import ConfigError
from theworld.precompute.job.config import PrecomputeConfig
from theworld.train.config import TrainConfig
from theworld.train.runs.partial import FACTS, TrainingFacts

ROOT = Path(__file__).parents[2]
MODELS: dict[str, type[BaseModel]] = {"precompute": PrecomputeConfig, "train": TrainConfig}
TYPED = {"store": Path("s"), "questions": Path("q")}
DECIDED = {
    "precompute": {
        "typed": {"cache", "guardrail", "address", "events", "image_root"},
        "place": {"images"},
        "models": {"world"},
    },
    "train": {
        "typed": {"local_cache", "out", "report_to"},
        "place": {"store", "questions", "images", "futures"},
        "models": {"lm"},
    },
}


def load(folder: Path, table: str, **settings: Any) -> Any:
    file = folder / "c.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    file.write_text("\n".join([f"[{table}]", *lines]))
    typed = {k: v for k, v in TYPED.items() if k not in settings} if table == "train" else {}
    return load_config(MODELS[table], table, file, typed)


def flags(table: str) -> dict[str, dict[str, Any]]:
    fields = MODELS[table].model_fields.items()
    return {name: f.json_schema_extra["flag"] for name, f in fields if isinstance(f.json_schema_extra, dict)}  # type: ignore[misc]


@pytest.mark.parametrize("table", ["precompute", "train"])
def test_each_setting_that_is_a_path_or_a_text_is_decided_upon(table: str) -> None:
    decided = {
        "typed": {name for name, flag in flags(table).items() if flag["typed_only"]},
        "place": {name for name, flag in flags(table).items() if flag["place"]},
        "models": {name for name, flag in flags(table).items() if flag["models"] is not None},
    }
    assert decided == DECIDED[table]
    paths = {name for name, field in MODELS[table].model_fields.items() if "Path" in str(field.annotation)}
    assert paths <= set().union(*decided.values())


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("precompute", "address", "10.0.0.1:6379"),
        ("precompute", "events", "events.jsonl"),
        ("precompute", "cache", "latents"),
        ("precompute", "guardrail", "external"),
        ("precompute", "image_root", "photos"),
        ("train", "out", "runs/7"),
        ("train", "report_to", "wandb"),
    ],
)
def test_what_writes_sends_or_gives_ones_word_is_taken_from_a_flag_alone(
    table: str, name: str, value: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, table, **{name: value})
    assert f"c.toml, [{table}]: {name} = {value!r} is not taken from a file" in str(caught.value)
    assert f"type --{name.replace('_', '-')}" in str(caught.value)


@pytest.mark.parametrize("value", ["/etc", "../x", "a/../../x", "~/x", "~root", "hf:stranger/data"])
@pytest.mark.parametrize(
    ("table", "name", "typed"),
    [
        ("precompute", "images", "it after `theworld precompute`"),
        ("precompute", "world", "--world"),
        ("train", "store", "it after `theworld train`"),
        ("train", "questions", "--questions"),
        ("train", "lm", "--lm"),
        ("train", "futures", "--futures"),
    ],
)
def test_a_file_names_no_place_beyond_the_working_folder(
    table: str, name: str, typed: str, value: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, table, **{name: value})
    assert f"{name} = {value!r} is not taken from a file" in str(caught.value)
    assert str(caught.value).endswith(f"type {typed}")


@pytest.mark.parametrize(
    "value", ["stranger/model", "nvidia/Cosmos-Predict2-2B-Video2World@refs/pr/7", "google/x@main"]
)
@pytest.mark.parametrize(("table", "name"), [("precompute", "world"), ("train", "lm")])
def test_a_file_has_no_model_downloaded_that_theworld_does_not_know(
    table: str, name: str, value: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="would download a model that the file chose"):
        load(tmp_path, table, **{name: value})


def test_a_file_names_known_models_and_what_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for world in ("worldlet", "cosmos-predict2-14b", "nvidia/Cosmos-Predict2-2B-Video2World", "models/mine", "a/b/c"):
        assert load(tmp_path, "precompute", world=world).world == world
    for lm in ("google/gemma-2-2b-it", "google/gemma-3-4b", "models/mine", "mine.gguf"):
        assert load(tmp_path, "train", lm=lm).lm == lm
    assert load(tmp_path, "precompute", images="photos/*.jpg").images == Path("photos/*.jpg")
    assert load(tmp_path, "train", store="latents", questions="a/q.jsonl").store == Path("latents")


@pytest.mark.parametrize(
    ("command", "table", "setting"),
    [
        (["train"], "train", "out"),
        (["train", "--resume"], "train", "out"),
        (["study"], "train", "out"),
        (["questions", "q.jsonl"], "train", "out"),
        (["precompute"], "precompute", "events"),
        (["cache", "explain", "STORE"], "precompute", "events"),
    ],
)
def test_every_command_that_takes_a_file_obeys(command: list[str], table: str, setting: str, tmp_path: Path) -> None:
    store = create(tmp_path / "s").path
    (tmp_path / "q.jsonl").touch()
    (tmp_path / "c.toml").write_text(f'[{table}]\n{setting} = "elsewhere"\n')
    words = [str(store) if word == "STORE" else word for word in command]
    done = theworld(*words, "--config", "c.toml", cwd=tmp_path)
    assert done.code == 2, done.err
    assert f"type --{setting}" in done.err, done.err


def test_a_training_that_resumes_takes_no_tracker_from_a_file(tmp_path: Path) -> None:
    config = TrainConfig(store=Path("s"), questions=Path("q")).model_dump(mode="json")
    facts = TrainingFacts(
        config=config,
        numbered=False,
        recipe_id="",
        images_sha256="",
        questions_sha256="",
        lm="",
        versions={},
        started="",
    )
    (tmp_path / "r.partial").mkdir()
    (tmp_path / "r.partial" / FACTS).write_text(facts.model_dump_json())
    (tmp_path / "c.toml").write_text('[train]\nreport_to = "wandb"\n')
    done = theworld("train", "--resume", "r.partial", "--config", "c.toml", cwd=tmp_path)
    assert done.code == 2
    assert "type --report-to" in done.err


def test_no_token_goes_to_a_cluster_that_a_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRET" * 8)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        (tmp_path / "c.toml").write_text(f'[precompute]\naddress = "127.0.0.1:{port}"\n')
        done = theworld("precompute", "--config", "c.toml", cwd=tmp_path)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert done.code == 2
    assert "your Ray token is sent there" in done.err


def test_a_file_that_is_a_pipe_or_huge_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(PrecomputeConfig, "precompute", tmp_path / "c.toml", {})
    (tmp_path / "d.toml").touch()
    os.truncate(tmp_path / "d.toml", 2**40)
    with pytest.raises(ConfigError, match="the limit is"):
        load_config(PrecomputeConfig, "precompute", tmp_path / "d.toml", {})


def test_the_page_tells_of_each_setting_that_a_file_may_not_set_freely() -> None:
    page = (ROOT / "docs" / "files-from-strangers.md").read_text()
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+?) \|", page.split("## Settings files")[1], re.MULTILINE))
    told = {name: text for names, text in rows.items() for name in re.split("`, `", names)}
    for table, decided in DECIDED.items():
        for name in decided["typed"]:
            assert told[name] == "typed only", (table, name)
        for name in decided["place"] | decided["models"]:
            assert told[name].startswith("in the working folder"), (table, name)


@pytest.mark.parametrize("parts", [8_000, 500_000])
def test_a_name_of_very_many_parts_is_refused_in_seconds(tmp_path: Path, parts: int) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"[precompute]\n{'.'.join(['a'] * parts)} = 1\n")
    started = time.process_time()
    with pytest.raises(ConfigError):
        load_config(PrecomputeConfig, "precompute", file, {"images": tmp_path})
    assert time.process_time() - started < 10
