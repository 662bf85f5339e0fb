"""What other programs find beside the latents: keys, times, attributes; and what of it is written when."""

import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.store import latent_store, store_keys, zarr_group, zarr_metadata
from theworld.pipeline.store.folder import create_store, open_store, open_to_write
from theworld.pipeline.store.keys.dropped import add_dropped
from theworld.pipeline.store.latent_store import LatentStore
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.verify import verify
from theworld.pipeline.store.zarr_metadata import ZarrMetadata

from ...golden.make import GOLDEN
from ...miniatures.store import SPEC, TINY, create, expected, fill, key, write


def opened(store: LatentStore) -> xarray.Dataset:
    """As it comes, and without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xarray.open_zarr(store.path, chunks=None)


def document(store: LatentStore, name: str) -> dict[str, Any]:
    return json.loads((store.path / name).read_text())


def test_xarray_shows_which_row_is_which_input_and_when_each_frame_is(tmp_path: Path) -> None:
    store = create(tmp_path, recipe=TINY.model_copy(update={"fps": 16.0}))
    write(store, [7])
    write(store, [3, 4])
    store.publish()
    found = opened(store)
    assert set(found.coords) == {"key", "time_s"}
    assert found["key"].values.tolist() == [key(7), "", "", "", key(3), key(4)]
    assert found["time_s"].values.tolist() == [0.0, 0.25, 0.5]
    rows = {name: row for row, name in enumerate(found["key"].values.tolist())}
    np.testing.assert_array_equal(found["latents"][rows[key(4)]], expected(store, [4])[0])


def test_a_store_without_a_sample_is_published_too(tmp_path: Path) -> None:
    store = create(tmp_path)  # as of a job whose inputs all fail
    store.publish()
    assert opened(store)["key"].values.tolist() == []


def test_the_attributes_say_what_the_numbers_mean(tmp_path: Path) -> None:
    found = opened(create(tmp_path))
    assert found.attrs["recipe_id"] == TINY.id
    assert json.loads(found.attrs["recipe"])["seed"] == TINY.seed
    latents = found["latents"]
    assert (latents.attrs["mean"], latents.attrs["std"], latents.attrs["units"]) == ([0.0] * 3, [1.0] * 3, "1")
    assert latents.dims == ("sample", "channel", "time", "y", "x")


def test_a_dropped_key_is_gone_from_the_coordinate_before_its_shard_is_written_again(tmp_path: Path) -> None:
    store = create(tmp_path)
    write(store, [0, 1, 2])
    store.publish()
    add_dropped(store.place, [key(1)])
    store.publish()
    assert opened(store)["key"].values.tolist() == [key(0), "", key(2)]
    assert [name for name in store.as_zarr()["key"][:].tolist() if name] == [key(0), key(2)]


@pytest.mark.parametrize(
    ("recipe", "facts", "times"),
    [
        ({}, {"world": {"name": "w", "fps": 8}}, [0.0, 0.5, 1.0]),
        ({}, {}, [np.nan] * 3),
        ({"kind": "views", "rollout_steps": 4}, {"world": {"name": "w", "fps": 8}}, None),
    ],
)
def test_times_are_told_as_far_as_recipe_or_records_know_them(
    tmp_path: Path, recipe: dict[str, Any], facts: dict[str, Any], times: list[float] | None
) -> None:
    store = create(tmp_path, recipe=Recipe(**(TINY.model_dump() | recipe)))
    with store.new_shard() as shard:
        shard.add(key(0), np.zeros(store.sample_shape, np.float32))
        shard.commit(facts)
    store.publish()
    found = opened(store)
    np.testing.assert_equal(found["time_s"].values.tolist() if "time_s" in found else None, times)


def test_commits_are_seen_by_others_while_a_job_runs_and_at_once_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path)
    now = 1000.0
    monkeypatch.setattr(latent_store, "monotonic", lambda: now)
    write(store, range(4))
    assert len(opened(store)["key"]) == 4
    write(store, range(4, 8))
    assert len(opened(store)["key"]) == 4, "a minute is not over"
    now += store_keys.AT_TIMES_S
    write(store, range(8, 12))
    assert len(opened(store)["key"]) == 12
    write(store, range(12, 14))  # and is killed
    assert len(opened(create(tmp_path))["key"]) == 14
    write(store, range(14, 15))
    assert len(opened(open_to_write(store.path))["key"]) == 17


def test_a_reader_that_opens_a_store_writes_nothing(tmp_path: Path) -> None:
    store = create(tmp_path)
    write(store, range(4))
    write(store, range(4, 6))
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    open_store(store.path).read([key(5)])
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_what_users_wrote_into_the_group_is_kept_and_shown(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 4)
    group = zarr.open_group(store.path, mode="r+")
    group.attrs.update({"owner": "me", "title": "mine", "recipe_id": "forged"})
    group["latents"].attrs["note"] = "seen"
    labels = group.create_group("mine").create_array("labels", data=np.arange(4), dimension_names=["sample"])
    labels.attrs["unit"] = "class"
    fill(store, 3)  # of keys that are here: nothing is new
    write(store, [8])
    store.publish()
    found = opened(store)
    assert (found.attrs["owner"], found.attrs["title"], found.attrs["recipe_id"]) == ("me", "mine", TINY.id)
    assert found["latents"].attrs["note"] == "seen"
    shown = zarr.open_group(store.path, mode="r")["mine/labels"]
    assert (shown.attrs["unit"], np.asarray(shown[...]).tolist()) == ("class", [0, 1, 2, 3])
    assert store.as_zarr()["mine/labels"][...].tolist() == [0, 1, 2, 3]
    assert verify(store.path, level="deep").findings == ()


def test_only_those_chunks_of_keys_are_written_that_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (zarr_group, zarr_metadata):
        monkeypatch.setattr(module, "KEY_CHUNK_ROWS", 8)
    store = create(tmp_path)
    fill(store, 20)
    times = {path.name: path.stat().st_mtime_ns for path in (store.path / "key" / "c").iterdir()}
    assert times.keys() == {"0", "1", "2"}
    write(store, [20])
    create(tmp_path).publish()
    after = {path.name: path.stat().st_mtime_ns for path in (store.path / "key" / "c").iterdir()}
    assert [name for name, changed in after.items() if changed != times.get(name)] == ["2"]
    assert opened(store)["key"].values.tolist() == [key(n) for n in range(21)]


@pytest.mark.parametrize("shard_size", [1, 3, 4, 8, 12, 20])
def test_keys_stand_in_their_rows_whatever_the_size_of_shards_and_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_size: int
) -> None:
    for module in (zarr_group, zarr_metadata):
        monkeypatch.setattr(module, "KEY_CHUNK_ROWS", 8)
    store = create(tmp_path, shard_size=shard_size)
    fill(store, 21)
    write(store, [30])
    store.publish()
    names = opened(store)["key"].values.tolist()
    assert {name: row for row, name in enumerate(names) if name} == {
        name: store.row_of(name) for name in store.keys
    }  # fmt: skip


def test_keys_of_a_shard_that_was_moved_away_go_with_it(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 6)
    store.payload_path(0).write_bytes(b"")
    repair(store.path, apply=True)
    assert opened(store)["key"].values.tolist() == [""] * 4 + [key(4), key(5)]


@pytest.mark.parametrize("name", ["zarr.json", "key/zarr.json", "time_s/zarr.json", "latents/zarr.json", "key/c/0"])
def test_what_is_gone_of_the_group_is_made_again_by_who_opens_it_to_write(tmp_path: Path, name: str) -> None:
    store = create(tmp_path)
    fill(store, 6)
    (store.path / name).unlink()
    create(tmp_path).publish()
    assert opened(store)["key"].values.tolist() == [key(n) for n in range(6)]
    np.testing.assert_array_equal(opened(store)["latents"], expected(store, range(6)))
    assert verify(store.path).findings == ()


def test_a_store_of_format_1_grows_as_it_began_and_keeps_what_users_wrote(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "0.1.0" / "zarr-float16", tmp_path, dirs_exist_ok=True)
    store = create_store(tmp_path, TINY, SPEC, label="tiny", shard_size=4)
    zarr.open_group(store.path, mode="r+").attrs["owner"] = "me"
    before = document(store, "latents/zarr.json")
    write(store, [6])
    store.publish()
    assert document(store, "latents/zarr.json") == {**before, "shape": [9, 3, 3, 2, 4]}
    assert document(store, "zarr.json")["attributes"] == {"owner": "me"}
    assert not (store.path / "key").exists()
    np.testing.assert_array_equal(store.as_zarr()["latents"][8], expected(store, [6])[0])


def test_an_array_that_others_rewrote_in_other_words_is_still_ours(tmp_path: Path) -> None:
    """zarr-python of another version may write a codec without a configuration as its name, or one more field."""
    store = create(tmp_path)
    fill(store, 4)
    found = document(store, "latents/zarr.json")
    inner = found["codecs"][0]["configuration"]
    inner["index_codecs"][1], inner["codecs"][2] = "crc32c", {"name": "crc32c", "configuration": {}}
    (store.path / "latents" / "zarr.json").write_text(json.dumps({**found, "later": {"must_understand": False}}))
    assert len(open_store(store.path)) == 4


def test_keeping_the_group_up_to_date_costs_little_beside_the_shards(tmp_path: Path) -> None:
    store = create(tmp_path, shard_size=256)
    fill(store, 256)
    began = time.process_time()
    for _ in range(5):
        store.publish()
    assert (time.process_time() - began) / 5 < 0.1


def test_zarr_python_is_asked_once_for_alike_stores_and_no_store_changes_the_documents_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path)
    asked: list[ZarrMetadata] = []
    write = ZarrMetadata._write
    monkeypatch.setattr(ZarrMetadata, "_write", lambda self: asked.append(self) or write(self))
    first, alike = (ZarrMetadata(store.layout, store.recipe, store.spec) for _ in range(2))
    first.made["latents/zarr.json"]["shape"][0] = 99
    assert alike.made["latents/zarr.json"]["shape"][0] == 0
    assert asked == []
    other = ZarrMetadata(store.layout, store.recipe.model_copy(update={"seed": 7}), store.spec)
    assert other.made["zarr.json"]["attributes"] != alike.made["zarr.json"]["attributes"]
    assert asked == [other]
