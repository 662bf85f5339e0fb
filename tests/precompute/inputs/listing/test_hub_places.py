"""Inputs in a data set of the Hub, by the Hub's own client, against a small Hub on the loopback device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from theworld.pipeline.errors import StoreError
from theworld.pipeline.files.hash_cache import HashCache
from theworld.pipeline.files.hub import dataset as hub_dataset
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs

from ....hub_server import Hub, small_hub
from .test_remote_places import picture

URL = "hf://datasets/somebody/photos"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with small_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        pages = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pages)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        for cached in (hub_dataset._find, hub_dataset._at_commit):
            cached.cache_clear()
        yield hub


def commit(hub: Hub, files: dict[str, bytes]) -> str:
    name = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
    hub.repositories.setdefault("somebody/photos", {})[name] = files
    hub.private["somebody/photos"] = False
    hub_dataset._find.cache_clear()
    return name


def listed(place: str, **more: object) -> Listing:
    return list_inputs(Path(place), "rollout", **more)  # type: ignore[arg-type]


def test_a_data_set_has_the_keys_of_the_same_folder_on_disk(hub: Hub, tmp_path: Path) -> None:
    files = {f"train/{number}.png": picture(number) for number in range(3)}
    commit(hub, {**files, "README.md": b"# Photos", "test/9.png": picture(9)})
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / Path(name).name).write_bytes(content)
    here, there = list_inputs(tmp_path / "in", "rollout"), listed(f"{URL}/train")
    assert list(here.samples.keys()) == list(there.samples.keys())
    assert [sample.source for sample in there.samples] == [f"{URL}/train/{number}.png" for number in range(3)]
    assert len(listed(URL).samples) == 4
    assert [sample.source for sample in listed(f"{URL}/train/1.png").samples] == [f"{URL}/train/1.png"]


def test_a_later_commit_is_read_only_where_it_differs(hub: Hub, tmp_path: Path) -> None:
    commit(hub, {f"{number}.png": picture(number) for number in range(3)})
    index = HashCache.load(tmp_path / "cache", Path(URL), "image")
    listed(URL, index=index)
    index.save()
    commit(hub, {**{f"{number}.png": picture(number) for number in range(3)}, "3.png": picture(3)})
    hub.asked.clear()
    assert len(listed(URL, index=HashCache.load(tmp_path / "cache", Path(URL), "image")).samples) == 4
    assert {line.rpartition("/")[2] for line in hub.asked if "resolve" in line} <= {"3.png"}


def test_a_list_in_a_data_set_names_its_own_files(hub: Hub) -> None:
    rows = "".join(json.dumps({"image": name}) + "\n" for name in ("a.png", "gone.png"))
    commit(hub, {"a.png": picture(1), "list.jsonl": rows.encode()})
    listing = listed(f"{URL}/list.jsonl")
    assert len(listing.samples) == 1
    assert [(failure.source, failure.reason) for failure in listing.refused] == [(f"{URL}/list.jsonl:2", "missing")]


def test_a_data_set_that_is_not_there_says_so(hub: Hub) -> None:
    assert hub.repositories == {}
    with pytest.raises(StoreError, match="the Hub has no data set hf://datasets/somebody/photos that you may read"):
        listed(URL)
