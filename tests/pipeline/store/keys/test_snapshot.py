"""A snapshot is a shortcut: with it, without it and with a wrong one, a store holds the same rows."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from theworld.pipeline.files.places.place import Place
from theworld.pipeline.store import catalog, latent_store
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.keys.index import SNAPSHOT, SNAPSHOT_FROM_SHARDS, Index
from theworld.pipeline.store.keys.snapshot import SNAPSHOT_NEW, read_snapshot, write_snapshot
from theworld.pipeline.store.latent_store import LatentStore

from ....miniatures.store import create, expected, fill, flip, key, write

BOTH = (SNAPSHOT, SNAPSHOT_NEW)


@pytest.fixture(autouse=True)
def small_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stores as small as these, too."""
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 3)


@pytest.fixture
def large(tmp_path: Path) -> LatentStore:
    """A store that is taken for a large one, of 20 shards in the first file and 2 in the second."""
    store = create(tmp_path / "cache")
    fill(store, 80)
    write(store, [80, 81])
    write(store, [82, 83])
    store.publish()
    return store


def records_read(path: Path) -> list[int]:
    """Open a store, and say which records that took; what it holds must be right."""
    opened: list[int] = []
    real = catalog.read_sealed

    def read_sealed(store: Path, number: int, recipe_id: str) -> object:
        opened.append(number)
        return real(store, number, recipe_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "read_sealed", read_sealed)
        store = open_store(path)
    assert len(store) == len(store.keys) == len(store.rows)
    assert store.rows_of(store.keys).tolist() == store.rows.tolist()
    np.testing.assert_array_equal(store.read(store.keys), expected(store, [int(k, 16) for k in store.keys]))
    return opened


def test_a_large_store_opens_from_its_snapshot_and_reads_only_newer_records(large: LatentStore) -> None:
    assert records_read(large.path) == []
    first, second = (large.path / name for name in BOTH)
    written = first.stat().st_ino
    write(large, [84])
    assert records_read(large.path) == [22]
    large.publish()
    assert first.stat().st_ino == written, "only the small file is written"
    assert records_read(large.path) == []
    for number in range(100, 120, 4):
        write(large, list(range(number, number + 4)))
    large.publish()
    assert first.stat().st_ino != written
    assert records_read(large.path) == []
    before = {path: path.stat().st_ino for path in (first, second)}
    open_store(large.path).publish()
    assert {path: path.stat().st_ino for path in (first, second)} == before, "nothing was new"


def test_opening_from_a_snapshot_copies_no_array(large: LatentStore) -> None:
    found = open_store(large.path).index.head
    assert found is not None
    for array in (found.high, found.low, found.rows, found.places, found.frames_crc32c):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_a_record_that_was_moved_away_or_replaced_is_not_taken_from_the_snapshot(large: LatentStore) -> None:
    commits = large.path / "commits"
    (commits / "1.json").rename(large.path / "lost+found" / "1.json")
    again = large.path / "tmp" / "again"
    shutil.copy(commits / "2.json", again)
    again.rename(commits / "2.json")  # another file by its inode, the same by its seal
    shutil.copy(commits / "3.json", again)
    flip(again, -60)  # in its seal
    again.rename(commits / "3.json")
    with pytest.raises(latent_store.DamagedShardError, match=r"commits/3\.json"):
        open_store(large.path)
    (commits / "3.json").unlink()
    assert records_read(large.path) == []
    assert open_store(large.path).keys == tuple(key(n) for n in (*range(4), *range(8, 12), *range(16, 84)))


def test_a_copy_keeps_the_snapshot_of_the_records_that_are_the_same(large: LatentStore, tmp_path: Path) -> None:
    shutil.copytree(large.path, tmp_path / "copy")  # other inodes, other times
    assert records_read(tmp_path / "copy") == []
    (tmp_path / "copy" / "commits" / "5.json").unlink()
    assert records_read(tmp_path / "copy") == []
    before = (tmp_path / "copy" / SNAPSHOT).read_bytes()
    open_store(tmp_path / "copy").publish()
    assert (tmp_path / "copy" / SNAPSHOT).read_bytes() != before, "it now knows the inodes of the copy"
    assert records_read(tmp_path / "copy") == []


def test_a_snapshot_copied_over_another_store_of_the_recipe_speaks_for_none_of_its_records(
    large: LatentStore, tmp_path: Path
) -> None:
    other = create(tmp_path / "other")
    fill(other, 8)
    for start in (200, 204):
        write(other, list(range(start, start + 4)))
    for name in BOTH:
        shutil.copy(large.path / name, other.path / name)
    assert records_read(other.path) == [0, 1, 2, 3]
    assert key(201) in open_store(other.path)
    assert key(9) not in open_store(other.path)


def test_a_number_that_a_snapshot_speaks_for_is_not_given_again(large: LatentStore) -> None:
    for number in (20, 21):
        (large.path / "commits" / f"{number}.json").unlink()
        large.payload_path(number).unlink()
    assert open_store(large.path).next_number == 22
    write(open_store(large.path), [90])
    assert sorted(open_store(large.path).shards)[-2:] == [19, 22]


@pytest.mark.parametrize("name", BOTH)
def test_no_flipped_byte_of_a_snapshot_changes_what_is_read(large: LatentStore, name: str) -> None:
    file = large.path / name
    intact = file.read_bytes()
    alone = [20, 21] if name == SNAPSHOT_NEW else [*range(22)]
    for position in np.random.default_rng(0).integers(0, len(intact), 25).tolist():
        flip(file, position)
        assert records_read(large.path) in ([], alone)
        file.write_bytes(intact)
    for content in (b"", intact[:-1], intact + b"\0", b"\xff" * 100):
        file.write_bytes(content)
        assert records_read(large.path) == alone


def test_a_wrong_checksum_of_a_frame_in_a_snapshot_is_looked_up_in_the_record(large: LatentStore) -> None:
    file = large.path / SNAPSHOT
    content = file.read_bytes()
    crcs = open_store(large.path).index.head.frames_crc32c  # type: ignore[union-attr]
    at = content.index(crcs[:4].tobytes())
    flip(file, at)
    assert records_read(large.path) == []


def test_a_snapshot_of_another_recipe_or_shard_size_is_of_no_use(large: LatentStore) -> None:
    recipe_id = large.recipe.id
    assert read_snapshot(large.place, recipe_id, 4, listed=22) is not None
    assert read_snapshot(large.place, "0" * 64, 4, listed=22) is None
    assert read_snapshot(large.place, recipe_id, 3, listed=22) is None
    assert read_snapshot(large.place, recipe_id, 4, listed=4) is None, "it speaks for many more than there are"


def lie(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[LatentStore], None]:
    def write_lie(store: LatentStore) -> None:
        run = store.index.merged
        assert run is not None
        arrays = {name: getattr(run, name).copy() for name in ("numbers", "shard_rows", "rows", "places")}
        change(arrays)
        write_snapshot(store.place, replace(run, **arrays), store.recipe.id, folder=1)

    return write_lie


@pytest.mark.parametrize(
    "tamper",
    [
        lie(lambda arrays: arrays["places"].__setitem__(0, 2**31)),
        lie(lambda arrays: arrays["rows"].__setitem__(0, -1)),
        lie(lambda arrays: arrays["rows"].__setitem__(0, 2**40)),
        lie(lambda arrays: arrays["numbers"].__setitem__(0, 9)),
        lie(lambda arrays: arrays["shard_rows"].__setitem__(0, 5)),
    ],
)
def test_snapshots_of_hostile_numbers_are_refused(large: LatentStore, tamper: Callable[[LatentStore], None]) -> None:
    """Their seal is right: whoever wrote them can make one."""
    tamper(large)
    assert read_snapshot(large.place, large.recipe.id, 4, listed=22) is None
    assert records_read(large.path) == [*range(22)]


def test_a_snapshot_with_other_tensors_is_of_no_use(large: LatentStore) -> None:
    file = large.path / SNAPSHOT
    tensors = dict(safetensors.numpy.load(file.read_bytes()))
    assert set(tensors) > {"high", "low", "rows", "frames_crc32c"}, "any program reads it"
    for name in tensors:
        file.write_bytes(safetensors.numpy.save({n: t for n, t in tensors.items() if n != name}))
        assert read_snapshot(large.place, large.recipe.id, 4, listed=22) is None
        file.write_bytes(safetensors.numpy.save({**tensors, name: np.array(1, tensors[name].dtype)}))
        assert read_snapshot(large.place, large.recipe.id, 4, listed=22) is None


def test_a_snapshot_that_says_it_is_endless_is_not_read(large: LatentStore) -> None:
    os.truncate(large.path / SNAPSHOT, 2**40)  # sparse
    assert records_read(large.path) == [*range(22)]


def test_small_stores_have_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    store = create(tmp_path)
    fill(store, 18)
    assert SNAPSHOT_FROM_SHARDS > 5
    assert not (store.path / SNAPSHOT).exists()


def test_a_store_opened_to_add_shards_reads_no_record(large: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (large.place, large.recipe, large.spec, 4, large.format, large.layout.version)
    looked: list[Place] = []
    real = catalog.record_tags
    monkeypatch.setattr(catalog, "record_tags", lambda path: (looked.append(path), real(path))[1])
    worker = LatentStore(*arguments, tolerate_damage=True, load=False)
    for number in (30, 31):
        with worker.new_shard(number) as shard:
            shard.add(key(300 + number), expected(large, [300 + number])[0])
            assert shard.commit({}) is not None
    assert looked == [], "its numbers were planned, and free"
    with worker.new_shard(31) as shard:
        shard.add(key(331), expected(large, [331])[0])
        assert shard.commit({}) is None, "the number was taken, and so is the key"
    assert len(looked) == 1
    assert key(330) in open_store(large.path)


Step = tuple[str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "publish", "refresh", "remove", "copy", "harm", "mix", "open"]),
        st.integers(0, 11),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(steps=steps)
def test_snapshot_second_file_and_records_together_always_give_the_rows_of_the_records(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 2)
        path = Path(folder)
        stores = [create(path / "0"), create(path / "0")]
        for number, (step, choice) in enumerate(steps):
            store = stores[choice % 2]
            listed = sorted((store.path / "commits").iterdir())
            snapshots = [store.path / name for name in BOTH if (store.path / name).exists()]
            if step == "write":
                write(store, [choice, choice + 1, 20 + choice])
            elif step == "publish":
                store.publish()
            elif step == "refresh":
                store.refresh()
            elif step == "remove" and listed:
                listed[choice % len(listed)].unlink()
            elif step == "copy":
                shutil.copytree(store.path.parent, path / f"{number + 1}")
                stores = [open_store(path / f"{number + 1}", tolerate_damage=True) for _ in range(2)]
            elif step == "harm" and snapshots:
                file = random.Random(choice).choice(snapshots)
                flip(file, random.Random(number).randrange(file.stat().st_size))
            elif step == "mix" and len(snapshots) == 2:
                shutil.copy(*snapshots)
            elif step == "open":
                stores[choice % 2] = open_store(store.path)
        for store in stores:
            store.refresh()
        truth = Index.from_shards([catalog.shard_of(r, catalog.Stamp(0, 0)) for r in stores[0].records()], 4)
        for store in (*stores, open_store(stores[0].path)):
            assert store.keys == truth.keys
            assert store.rows_of(store.keys).tolist() == truth.find(truth.keys).tolist()
            assert store.holds([key(n) for n in range(40)]).tolist() == [key(n) in truth.keys for n in range(40)]
            assert store.array_rows == truth.array_rows
