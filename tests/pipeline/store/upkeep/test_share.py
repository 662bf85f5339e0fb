"""A store shared as a data set of the Hub, by the Hub's own client, against a small Hub on the loopback device."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, DamagedShardError, StoreError
from theworld.pipeline.files.hub import dataset as hub_dataset
from theworld.pipeline.store.folder import load_store
from theworld.pipeline.store.upkeep.share import fetched_store, push_store

from ....hub_server import TOKEN, Hub, small_hub
from ....miniatures.store import create, key, write

URL = "hf://datasets/somebody/futures"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with small_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        pages = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pages)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        hub_dataset._find.cache_clear()
        yield hub


def shared(hub: Hub) -> dict[str, bytes]:
    return list(hub.repositories["somebody/futures"].values())[-1]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_store_that_was_shared_is_merged_with_the_same_bits(hub: Hub, tmp_path: Path, format: str) -> None:
    store = create(tmp_path / "latents", format=format)  # type: ignore[arg-type]
    for start in (0, 4, 8):
        write(store, range(start, min(start + 4, 10)))
    done = CliRunner().invoke(app, ["push", str(store.path), URL, "--private"])
    assert done.exit_code == 0, done.output
    assert hub.private["somebody/futures"]
    files = shared(hub)
    assert {name.partition("/")[0] for name in files} <= {
        *("README.md", "theworld.json", "commits", "shards", "sources")
    }
    assert all(TOKEN.encode() not in content for content in files.values())
    assert all(str(tmp_path).encode() not in content for content in files.values())
    names: set[str] = set()
    for name in files:
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(files[name])) as tar:
                names |= {member.name.partition(".")[0] for member in tar}
    assert len(names) == 10

    done = CliRunner().invoke(app, ["cache", "merge", str(tmp_path / "theirs"), URL])
    assert done.exit_code == 0, done.output
    [path] = [path for path in (tmp_path / "theirs").iterdir() if (path / "theworld.json").exists()]
    theirs = load_store(path)
    numbers = [key(number) for number in range(10)]
    assert np.array_equal(theirs.read(numbers), store.read(numbers))
    assert list((tmp_path / "own" / "theworld" / "shared").iterdir()) == []


def test_the_card_says_what_it_is_and_how_it_is_read(hub: Hub, tmp_path: Path) -> None:
    import yaml

    store = create(tmp_path / "latents", format="webdataset")
    write(store, range(3))
    push_store(store.path, URL)
    card = shared(hub)["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["configs"] == [{"config_name": "default", "data_files": "shards/*.tar"}]
    command = f"theworld cache merge latents {URL}"
    for said in (store.recipe.id, "2 rollout steps", "16x32 pixels", command, "webdataset"):
        assert said in card


def test_what_the_hub_has_is_not_sent_again(hub: Hub, tmp_path: Path) -> None:
    store = create(tmp_path / "latents", format="webdataset")
    write(store, range(4))
    push_store(store.path, URL)
    write(store, range(4, 8))
    hub.asked.clear()
    push_store(store.path, URL)
    assert len([line for line in hub.asked if line.startswith("PUT")]) == 1


def test_a_shard_that_was_altered_on_the_hub_is_not_merged(hub: Hub, tmp_path: Path) -> None:
    store = create(tmp_path / "latents", format="webdataset")
    write(store, range(4))
    write(store, range(4, 8))
    push_store(store.path, URL)
    files = shared(hub)
    tar = sorted(name for name in files if name.endswith(".tar"))[0]
    files[tar] = files[tar][:600] + bytes([files[tar][600] ^ 1]) + files[tar][601:]
    content = bytearray(files[tar])
    for at in range(512, len(content), 97):
        content[at] ^= 1
    files[tar] = bytes(content)
    done = CliRunner().invoke(app, ["cache", "merge", str(tmp_path / "theirs"), URL])
    assert done.exit_code != 0
    [path] = [path for path in (tmp_path / "theirs").iterdir() if (path / "theworld.json").exists()]
    theirs = load_store(path)
    sound = list(theirs.keys)
    assert np.array_equal(theirs.read(sound), store.read(sound))
    assert len(sound) < 8


def test_what_cannot_be_shared_or_read_says_why(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path / "latents", format="webdataset")
    with pytest.raises(StoreError, match="holds no latents yet"):
        push_store(store.path, URL)
    write(store, range(4))
    with pytest.raises(ConfigError, match="a store is a whole data set"):
        push_store(store.path, f"{URL}/folder")
    with pytest.raises(StoreError, match="the Hub has no data set"), fetched_store(URL):
        pass
    hub.repositories["somebody/futures"] = {"0" * 40: {"README.md": b"# Other"}}
    hub.private["somebody/futures"] = False
    hub_dataset._find.cache_clear()
    with pytest.raises(StoreError, match="holds no store of theworld"), fetched_store(URL):
        pass
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(StoreError, match="cannot upload to somebody/futures") as caught:
        push_store(store.path, URL)
    assert "hf_of_nobody" not in str(caught.value)
    payload = next((store.path / "shards").iterdir())
    payload.write_bytes(payload.read_bytes()[:100])
    with pytest.raises(DamagedShardError):
        push_store(store.path, URL)
