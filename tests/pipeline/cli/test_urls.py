"""A URL that is no bucket's is refused wherever a path is expected: by every command, by settings, by the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files.places.local import require_local
from theworld.pipeline.store.folder import create_store, find_store, find_stores, load_store, open_store
from theworld.pipeline.store.upkeep.transfer import export, merge
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.train.config import TrainConfig

from ...commands_page import walk
from ...miniatures.store import TINY, create

URL = "https://example.org/folder"
PLACES_AS_TEXT = {"world", "lm", "wanted"}


def cases() -> Iterator[Any]:
    """Every path of every command, as it is typed."""
    for name, command in walk():
        if hasattr(command, "commands"):
            continue
        words = name.split()[1:]
        for param in command.params:
            if (words[-1], param.name) in (("precompute", "images"), ("merge", "stores"), ("push", "run")):
                continue  # read from buckets and from the Hub: test_remote_places.py, test_share.py
            if not (param.type_descriptor.is_path or param.name in PLACES_AS_TEXT):
                continue
            typed = [URL if other is param else "7" for other in arguments_up_to(command, param)]
            option = [] if param.param_type_name == "argument" else [param.opts[0], URL]
            yield pytest.param([*words, *typed, *option], id=f"{'-'.join(words)}-{param.name}")


def arguments_up_to(command: Any, wanted: Any) -> list[Any]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    needed = [n for n, param in enumerate(arguments) if param.required or param is wanted]
    return arguments[: max(needed, default=-1) + 1]


@pytest.mark.parametrize("words", list(cases()))
def test_no_command_takes_a_url_for_a_path(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError), done.output
    assert done.exception.exit_code == 2
    assert f"{URL} is a URL" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_the_walk_has_found_the_paths_there_are() -> None:
    assert len(list(cases())) > 50


@pytest.mark.parametrize(
    ("command", "setting"),
    [(["precompute"], "images"), *((["train"], name) for name in ("store", "questions", "futures"))],
)
def test_no_setting_of_a_file_takes_a_url_for_a_path(
    command: list[str], setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = 'store = "latents"\nquestions = "q.jsonl"\n' if command == ["train"] else ""
    lines = [line for line in others.splitlines() if not line.startswith(setting)]
    (tmp_path / "c.toml").write_text("\n".join([f"[{command[0]}]", *lines, f'{setting} = "{URL}"\n']))
    done = CliRunner().invoke(app, [*command, "--config", "c.toml"])
    assert isinstance(done.exception, ConfigError), done.output
    assert f"{URL} is a URL" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


@pytest.mark.parametrize(
    "call",
    [
        lambda url, _: open_store(url),
        lambda url, _: load_store(url),
        lambda url, _: find_stores(url),
        lambda url, _: find_store(url, TINY),
        lambda url, store: create_store(url, store.recipe, store.spec, label="mini", shard_size=4),
        lambda url, store: export(store, url),
        lambda url, store: merge(url, [store]),
        lambda url, _: write_scenes(url, splits={"train": 1}),
        lambda url, _: PrecomputeConfig(cache=url),
        lambda url, store: TrainConfig(store=store.path, questions=Path("q"), out=url),
    ],
)
def test_no_function_takes_a_url_for_a_path(
    call: Callable[[Path, Any], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "latents")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=f"{URL} is a URL"):
        call(Path(URL), store)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    "url", ["s3://b/x", "gs://b", "https://example.org/a.png", "file:///data", "hf://datasets/a/b"]
)
def test_a_url_is_known_as_text_and_as_a_path_that_lost_a_slash(url: str) -> None:
    for place in (url, Path(url)):
        with pytest.raises(ConfigError, match="here goes a path of this machine"):
            require_local(place)


@pytest.mark.parametrize("place", ["latents", "/data/x", "hf:ORG/NAME", "a/s3:/b", "C:/data", "co:lon", "~/x"])
def test_what_is_no_url_is_a_path(place: str) -> None:
    assert require_local(place) == Path(place)
