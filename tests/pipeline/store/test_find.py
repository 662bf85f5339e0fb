"""Stores are found by the recipe that they state, whatever their folders are called."""

import json
import shutil
import time
from pathlib import Path

import pytest

from theworld.pipeline.errors import DamagedShardError, StoreError
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.files.sealed import seal
from theworld.pipeline.store.find import moved_store, store_of
from theworld.pipeline.store.folder import create_store, find_store, find_stores, open_store
from theworld.pipeline.store.upkeep.transfer import merge

from ...miniatures.store import SPEC, TINY, create, fill, key, write


def test_a_renamed_store_is_found_and_grown(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 4)
    renamed = store.path.rename(tmp_path / "cats-for-the-paper")
    found = find_store(tmp_path, TINY)
    assert found is not None
    assert found.path == renamed
    again = create(tmp_path)
    write(again, [4, 5])
    assert find_stores(tmp_path) == [renamed]
    assert len(open_store(renamed)) == 6


def test_a_copy_beside_a_store_is_an_error_that_names_both_and_the_way_out(tmp_path: Path) -> None:
    store = create(tmp_path / "cache")
    fill(store, 4)
    backup = Path(shutil.copytree(store.path, store.path.parent / f"backup-{store.path.name}"))
    for look in (create, lambda cache: find_store(cache, TINY)):
        with pytest.raises(StoreError, match="holds the recipe") as caught:
            look(tmp_path / "cache")
        assert all(str(path) in str(caught.value) for path in (store.path, backup))
        assert "cache merge" in str(caught.value)
    merge(backup, [open_store(store.path)])
    backup.rename(tmp_path / "elsewhere")
    assert create(tmp_path / "cache").path == store.path


def test_a_link_to_a_store_beside_it_is_no_second_store(tmp_path: Path) -> None:
    store = create(tmp_path)
    (tmp_path / "latest").symlink_to(store.path.name)
    assert create(tmp_path).path == store.path
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "other-name").symlink_to(store.path)
    assert create(tmp_path / "linked").path == tmp_path / "linked" / "other-name"


def test_a_name_that_belongs_to_another_recipe_is_left_to_it(tmp_path: Path) -> None:
    other = create(tmp_path, recipe=TINY.model_copy(update={"seed": 1}))
    taken = other.path.rename(tmp_path / f"tiny-{TINY.id[:12]}")
    store = create(tmp_path)
    assert store.path not in (taken, other.path)
    assert create(tmp_path).path == store.path
    assert open_store(taken).recipe.seed == 1


@pytest.mark.parametrize("name", ["renamed", "tiny-xyz"])
def test_a_damaged_description_is_noticed_under_any_name(tmp_path: Path, name: str) -> None:
    store = create(tmp_path)
    file = store.path / "theworld.json"
    file.write_bytes(file.read_bytes().replace(b'"seed":0', b'"seed":1'))
    store.path.rename(tmp_path / name)
    with pytest.raises(DamagedShardError, match=r"theworld\.json"):
        find_store(tmp_path, TINY)


def test_a_run_remembers_a_store_that_was_renamed_since(tmp_path: Path) -> None:
    store = create(tmp_path)
    assert moved_store(store.path, TINY.id) == store.path
    renamed = store.path.rename(tmp_path / "renamed")
    assert moved_store(store.path, TINY.id) == renamed
    assert moved_store(store.path, "0" * 64) == store.path
    assert moved_store(tmp_path / "no" / "where", TINY.id) == tmp_path / "no" / "where"


def test_a_thousand_stores_of_other_recipes_are_looked_through_in_no_time(tmp_path: Path) -> None:
    store = create(tmp_path)
    body = json.loads((store.path / "theworld.json").read_bytes())
    del body["seal"]
    for number in range(1000):
        folder = tmp_path / f"other-{number}"
        folder.mkdir()
        (folder / "theworld.json").write_bytes(seal(body | {"recipe_id": f"{number:064x}"}))
    began = time.process_time()
    assert store_of(Folder(tmp_path), TINY.id) == store.place
    assert time.process_time() - began < 1.0


def test_a_label_gives_only_the_first_name(tmp_path: Path) -> None:
    store = create(tmp_path)
    assert create_store(tmp_path, TINY, SPEC, label="other", shard_size=4).path == store.path
    assert key(0) not in store
