"""Stores are found, created once, opened only when they are what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from theworld.pipeline.errors import ConfigError, DamagedShardError, StoreError, StoreMismatchError, StoreNotFoundError
from theworld.pipeline.files.sealed import seal, unseal
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.store.folder import create_store, find_store, find_stores, open_store
from theworld.pipeline.store.upkeep.transfer import export

from ...miniatures.store import SPEC, TINY, create, fill
from ...permissions import as_another_user, open_folder


def test_a_cache_folder_with_one_store_stands_for_it(tmp_path: Path) -> None:
    store = create(tmp_path)
    assert store.path == tmp_path / f"tiny-{TINY.id[:12]}"
    assert open_store(tmp_path).path == open_store(store.path).path == store.path


def test_of_several_stores_one_must_be_named(tmp_path: Path) -> None:
    stores = [create(tmp_path), create(tmp_path, recipe=TINY.model_copy(update={"seed": 1}))]
    assert find_stores(tmp_path) == sorted(store.path for store in stores)
    with pytest.raises(StoreError, match="2 stores") as caught:
        open_store(tmp_path)
    for store in stores:
        assert str(store.path) in str(caught.value)


def test_where_there_is_no_store_the_message_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for place, words in [
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "file", "is a file"),
        (tmp_path, "only empty, file"),
    ]:
        with pytest.raises(StoreNotFoundError, match=words) as caught:
            open_store(place)
        assert "theworld precompute IMAGES --cache" in str(caught.value)
        assert find_stores(place) == []
        assert find_store(place, TINY) is None


def test_a_place_that_cannot_be_looked_into_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for place, words in [(tmp_path / ("x" * 300), "File name too long"), (tmp_path / "loop", "symbolic links")]:
        for look in (find_stores, open_store, lambda cache: find_store(cache, TINY)):
            with pytest.raises(StoreError, match=f"cannot be looked into.*{words}"):
                look(place)


def test_no_store_begins_inside_another(tmp_path: Path) -> None:
    store = create(tmp_path)
    for begin in (create, lambda cache: find_store(cache, TINY), lambda cache: export(store, cache)):
        with pytest.raises(ConfigError, match=f"is a store, not a folder of stores.*{tmp_path};"):
            begin(store.path)
    assert find_stores(store.path) == []


def test_creating_again_opens_what_exists_and_its_shard_size_wins(tmp_path: Path) -> None:
    fill(create(tmp_path, shard_size=4), 5)
    again = create_store(tmp_path, TINY, SPEC, label="other", shard_size=100)
    assert again.shard_size == 4
    assert len(again) == 5
    assert len(find_stores(tmp_path)) == 1


@pytest.mark.parametrize("missing", ["zarr.json", "latents/zarr.json", "tmp", "sources"])
def test_creating_again_completes_a_store_cut_short(tmp_path: Path, missing: str) -> None:
    store = create(tmp_path)
    fill(store, 5)
    path = store.path / missing
    path.rmdir() if path.is_dir() else path.unlink()
    open_store(tmp_path)
    assert create(tmp_path).publish() == 5
    assert zarr.open_array(store.path / "latents", mode="r").shape[0] == 5


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        create(tmp_path / "file" / "cache")


def test_a_folder_that_cannot_be_written_to_is_refused_at_once() -> None:
    with open_folder() as folder:

        def write() -> None:
            with pytest.raises(StoreError, match="--cache folder you may write to"):
                create(folder)

        as_another_user(write)


@pytest.mark.parametrize("label", ["", ".", "../evil", "a/b", "-dash", "x" * 81, "a\n"])
def test_a_label_that_is_no_name_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(ConfigError, match="label"):
        create_store(tmp_path, TINY, SPEC, label=label, shard_size=4)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_latent_space_is_not_written_to(tmp_path: Path) -> None:
    create(tmp_path)
    other = LatentSpec(channels=3, spatial_stride=8, temporal_stride=4, mean=(1.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(StoreMismatchError, match="latent space"):
        create(tmp_path, spec=other)


def manifest_with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: body | changes


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (manifest_with(format=3), StoreError, "newer theworld"),
        (manifest_with(shard_size=10**9), DamagedShardError, "shard_size"),
        (manifest_with(recipe_id="0" * 64), DamagedShardError, "its fields are"),
        (manifest_with(spec={"channels": "3"}), DamagedShardError, "spec"),
        (lambda body: body | {"spec": body["spec"] | {"mean": [0.0]}}, DamagedShardError, "3 channels"),
        (lambda body: body | {"spec": body["spec"] | {"spatial_stride": 64}}, StoreError, "none can be stored"),
        (lambda _: [1], DamagedShardError, "theworld.json"),
    ],
)
def test_a_store_description_with_a_right_seal_is_still_not_trusted(
    tmp_path: Path, change: Callable[[Any], Any], error: type[Exception], words: str
) -> None:
    file = create(tmp_path).path / "theworld.json"
    body = change(json.loads(unseal(file.read_bytes())))
    file.write_bytes(seal(body) if isinstance(body, dict) else seal({"format": body}))
    with pytest.raises(error, match=words):
        open_store(tmp_path)


def test_an_edited_store_description_is_refused(tmp_path: Path) -> None:
    file = create(tmp_path).path / "theworld.json"
    file.write_bytes(file.read_bytes().replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(DamagedShardError, match=r"theworld\.json: its content does not match its seal"):
        open_store(tmp_path)


@pytest.mark.parametrize(
    "change", [{"data_type": "float32"}, {"codecs": []}, {"shape": [0, 3, 3, 2, 5]}, {"shape": 1}, {"node_type": None}]
)
def test_array_metadata_that_contradicts_the_recipe_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = create(tmp_path).path / "latents" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreMismatchError, match=r"latents/zarr\.json"):
        open_store(tmp_path)


def test_attributes_that_others_add_to_the_array_do_no_harm(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 3)
    zarr.open_array(store.path / "latents", mode="r+").attrs["note"] = "seen"
    assert len(open_store(tmp_path)) == 3


def test_a_cache_that_is_not_ours_to_look_into_is_said_in_words() -> None:
    with open_folder() as folder:
        (folder / "closed" / "cache").mkdir(parents=True)
        (folder / "closed").chmod(0)

        def look() -> None:
            for cache in (folder / "closed", folder / "closed" / "cache"):
                with pytest.raises(StoreError, match=r"cannot be looked into: Permission denied"):
                    find_stores(cache)

        as_another_user(look)
