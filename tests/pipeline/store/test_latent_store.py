"""A store keeps latents bit for bit, and stays plain Zarr for everyone else."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError, DamagedShardError, LatentShapeError, MissingLatentError
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.store import catalog
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.reading import row_reader

from ...miniatures.store import FRAME_BYTES, ROW_BYTES, TINY, create, expected, fill, flip, key, latent, write


def test_plain_zarr_opens_a_store_and_sees_the_same_bits(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 6)
    array = zarr.open_group(store.path, mode="r")["latents"]
    assert isinstance(array, zarr.Array)
    assert array.shape == (6, 3, 3, 2, 4)
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array[:], expected(store, range(6)))
    for number in range(6):
        np.testing.assert_array_equal(array[store.row_of(key(number))], latent(number))


def test_rows_without_a_latent_are_nan_in_plain_zarr(tmp_path: Path) -> None:
    store = create(tmp_path)
    write(store, [0])
    write(store, range(1, 5))
    orphan = store.payload_path(2)  # what a writer leaves that dies between payload and record
    orphan.parent.mkdir(parents=True)
    orphan.touch()
    write(store, [5, 6])
    orphan.unlink()
    assert store.publish() == 3 * 4 + 2
    values = np.asarray(zarr.open_array(store.path / "latents", mode="r")[:])
    rows = [store.row_of(key(n)) for n in range(7)]
    assert rows == [0, 4, 5, 6, 7, 12, 13]
    np.testing.assert_array_equal(values[rows], expected(store, range(7)))
    assert np.isnan(np.delete(values, rows, axis=0)).all()


@given(
    channels=st.integers(1, 5),
    rollout_steps=st.integers(0, 4),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    shard_size=st.integers(1, 5),
    count=st.integers(1, 9),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    format=st.sampled_from(["zarr", "webdataset"]),
    data=st.data(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_latents_of_any_shape_come_back_in_any_order_and_prefix(
    tmp_path_factory: pytest.TempPathFactory,
    channels: int,
    rollout_steps: int,
    rows: int,
    columns: int,
    shard_size: int,
    count: int,
    dtype: Any,
    format: Any,
    data: st.DataObject,
) -> None:
    recipe = Recipe(world="w", height=16 * rows, width=16 * columns, rollout_steps=rollout_steps, dtype=dtype)
    spec = LatentSpec(
        channels=channels, spatial_stride=8, temporal_stride=4, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    store = create(tmp_path_factory.mktemp("cache"), recipe=recipe, spec=spec, shard_size=shard_size, format=format)
    fill(store, count)
    again = open_store(store.path.parent)
    assert again.keys == tuple(key(number) for number in range(count))
    wanted = data.draw(st.lists(st.integers(0, count - 1), max_size=6))
    steps = data.draw(st.integers(0, rollout_steps))
    whole = expected(store, range(count))
    keys = [key(n) for n in wanted]
    for read in (again.read(keys, rollout_steps=steps), again.read(keys, rollout_steps=steps)):  # checked, then trusted
        np.testing.assert_array_equal(read, whole[wanted][:, :, : steps + 1])
    out = np.empty((len(keys), channels, 1 + steps, 2 * rows, 2 * columns), again.dtype)
    np.testing.assert_array_equal(again.read(keys, rollout_steps=steps, out=out), whole[wanted][:, :, : steps + 1])
    assert again.format == format
    assert (again.recipe, again.spec, again.shard_size) == (recipe, spec, shard_size)


def test_a_prefix_costs_one_read_a_sample_of_its_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path)
    fill(store, 4)
    reads: list[tuple[int, int]] = []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        reads.append((offset, sum(map(len, buffers))))
        return os.preadv(fd, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(row_reader, "os", SimpleNamespace(**vars(os) | {"preadv": preadv}))
        store.read([key(2), key(0)], rollout_steps=1)
    assert reads == [(2 * ROW_BYTES, 2 * FRAME_BYTES), (0, 2 * FRAME_BYTES)]


def test_the_callers_buffer_is_filled_and_checked(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 2)
    out = np.empty((1, 3, 2, 2, 4), np.float16)
    assert store.read([key(1)], rollout_steps=1, out=out) is out
    np.testing.assert_array_equal(out[0], latent(1)[:, :2])
    frozen = out.copy()
    frozen.flags.writeable = False
    for wrong in (out[:, :, :1], out.astype(np.float32), frozen):
        with pytest.raises(LatentShapeError, match=r"writeable float16 array of shape \(1, 3, 2, 2, 4\)"):
            store.read([key(1)], rollout_steps=1, out=wrong)


@pytest.mark.parametrize("steps", [-1, 3])
def test_more_steps_than_were_rolled_out_are_refused(tmp_path: Path, steps: int) -> None:
    store = create(tmp_path)
    fill(store, 1)
    with pytest.raises(ConfigError, match=f"rollouts of 2 steps, {steps} were asked for"):
        store.read([key(0)], rollout_steps=steps)


def test_a_missing_latent_says_where_it_is_missing_and_how_to_make_it(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 2)
    with pytest.raises(MissingLatentError) as caught:
        store.read([key(0), key(9)])
    for part in (key(9), str(store.path), TINY.id[:12], "theworld precompute", f"--cache {tmp_path}"):
        assert part in str(caught.value)


def test_what_is_no_key_or_no_list_of_keys_is_said(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 2)
    with pytest.raises(ConfigError, match=rf"keys are a list, got the text '{key(0)}': pass \[key\]"):
        store.read(key(0))
    with pytest.raises(MissingLatentError, match=r"key a\.png, which is no key: .* key_of_file\(path\)"):
        store.read(["a.png"])


def test_a_shard_whose_keys_others_have_committed_is_dropped(tmp_path: Path) -> None:
    first, second = create(tmp_path), create(tmp_path)
    with second.new_shard() as shard:
        shard.add(key(0), latent(0))
        write(first, [0, 1])
        assert shard.commit({}) is None
    assert second.keys == (key(0), key(1))
    assert [record.shard for record in second.records()] == [0]


def test_a_key_in_two_shards_is_visible_once_in_the_lower(tmp_path: Path) -> None:
    first, second = create(tmp_path), create(tmp_path)
    with second.new_shard() as shard:
        shard.add(key(1), latent(1))
        shard.add(key(2), latent(2))
        write(first, [0, 1])
        assert shard.commit({}) is not None
    first.refresh()
    for store in (first, second, open_store(tmp_path)):
        assert store.keys == (key(0), key(1), key(2))
        assert [store.row_of(k) for k in store.keys] == [0, 1, 5]


def test_a_lower_shard_seen_later_takes_its_keys_over(tmp_path: Path) -> None:
    store = create(tmp_path)
    write(store, [0, 1])
    hidden = store.path / "commits" / "0.json"
    hidden.rename(tmp_path / "aside")
    store.refresh()
    write(store, [1, 2])
    assert store.keys == (key(1), key(2))
    (tmp_path / "aside").rename(hidden)
    store.refresh()
    assert store.keys == (key(0), key(1), key(2))
    assert store.row_of(key(1)) == 1
    np.testing.assert_array_equal(store.read(store.keys), expected(store, range(3)))


def test_refresh_opens_only_records_it_has_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create(tmp_path)
    fill(writer, 8)
    reader = open_store(tmp_path)
    opened: list[int] = []

    def read_sealed(path: Path, number: int, recipe_id: str) -> Any:
        opened.append(number)
        return real(path, number, recipe_id)

    real = catalog.read_sealed
    monkeypatch.setattr(catalog, "read_sealed", read_sealed)
    reader.refresh()
    assert opened == []
    write(writer, [8])
    opened.clear()
    reader.refresh()
    assert opened == [2]
    assert key(8) in reader
    assert len(reader) == 9


def test_publishing_the_shape_ends_at_the_last_row_however_writers_race(tmp_path: Path) -> None:
    store = create(tmp_path, shard_size=16)
    assert store.publish() == 0
    fill(store, 27)
    assert zarr.open_array(store.path / "latents", mode="r").shape[0] == 27
    write(store, [27])
    stale = open_store(tmp_path)
    replace, late = Folder.replace, [True]

    def replace_after_a_commit(*arguments: Any, **options: Any) -> None:
        if late:  # between the listing and the write, another writer commits and publishes a higher N
            late.clear()
            write(store, [28])
            store.publish()
        replace(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "replace", replace_after_a_commit)
        assert stale.publish() == 3 * 16 + 1
    assert zarr.open_array(store.path / "latents", mode="r").shape[0] == 49


@pytest.mark.parametrize(("seconds", "asked"), [(0.0, 0), (0.01, 3)])
def test_a_batch_whose_first_read_waits_for_the_disk_is_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, asked: int
) -> None:
    store = create(tmp_path)
    fill(store, 8)
    hints: list[tuple[int, int]] = []
    now = 0.0  # on a clock that only reads move
    monkeypatch.setattr(row_reader, "perf_counter", lambda: now)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal now
        now += seconds
        return os.preadv(fd, buffers, offset)

    patched = {"preadv": preadv, "posix_fadvise": lambda _, offset, size, __: hints.append((offset, size))}
    with monkeypatch.context() as patch:
        patch.setattr(row_reader, "os", SimpleNamespace(**vars(os) | patched))
        read = store.read([key(n) for n in (6, 0, 3, 1)], rollout_steps=1)
    np.testing.assert_array_equal(read, expected(store, [6, 0, 3, 1])[:, :, :2])
    row = ROW_BYTES
    assert hints == [(0, 2 * FRAME_BYTES), (3 * row, 2 * FRAME_BYTES), (row, 2 * FRAME_BYTES)][:asked]


def test_a_disk_that_fails_in_the_middle_of_a_read_is_damage_of_that_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel gives the bytes before a bad sector first, and its EIO only to who asks for more."""
    store = create(tmp_path)
    fill(store, 2)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset % 4096 >= 100:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.preadv(fd, [buffers[0][: 100 - offset % 4096]], offset)

    monkeypatch.setattr(row_reader, "os", SimpleNamespace(**vars(os) | {"preadv": preadv}))
    with pytest.raises(DamagedShardError, match=r"shard 0.*row 0 cannot be read: Input/output error.*cache repair"):
        store.read([key(0)])


def test_a_refresh_that_meets_damage_leaves_keys_and_latents_in_agreement(tmp_path: Path) -> None:
    writer = create(tmp_path)
    fill(writer, 8)
    reader = open_store(tmp_path)
    assert len(reader.keys) == 8
    write(writer, [8])
    commits = writer.path / "commits"
    (commits / "0.json").unlink()
    flip(commits / "2.json", 20)
    with pytest.raises(DamagedShardError, match=r"commits/2\.json"):
        reader.refresh()
    assert reader.holds(reader.keys).all()
    (commits / "2.json").unlink()
    reader.refresh()
    assert reader.keys == tuple(key(n) for n in range(4, 8))


def test_a_record_that_is_gone_is_said_in_words(tmp_path: Path) -> None:
    fill(create(tmp_path), 8)
    store = open_store(tmp_path)
    (store.path / "commits" / "1.json").unlink()
    with pytest.raises(DamagedShardError, match=r"shard 1.*moved away"):
        store.records()


def test_what_linux_alone_has_is_not_needed(tmp_path: Path) -> None:
    """macOS knows none of these names: a store is written there, and read from a cold disk."""
    done = subprocess.run([sys.executable, "-c", _WITHOUT_LINUX, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


_WITHOUT_LINUX = """
import errno, os, sys
for module, name in [
    (errno, "EUCLEAN"),
    *((os, name) for name in dir(os) if name.startswith("POSIX_FADV_")),
    *((os, name) for name in ("posix_fadvise", "posix_fallocate", "memfd_create", "sched_getaffinity", "fdatasync")),
]:
    delattr(module, name)
from pathlib import Path
from tests.miniatures.store import create, fill
from theworld.pipeline.store.reading import row_reader
from theworld.pipeline.store.upkeep import repair, transfer, verify
from theworld.pipeline.store.folder import open_store
row_reader._PATIENCE_S = -1.0
fill(create(Path(sys.argv[1])), 8)
store = open_store(Path(sys.argv[1]))
print(len(store.read(store.keys)))
"""
