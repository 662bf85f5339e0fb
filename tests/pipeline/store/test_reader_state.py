"""What a reader remembers between calls (open files, checked frames, records) must never vouch for other bytes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.files import open_files
from theworld.pipeline.store.folder import LatentStore, StoreFormat, open_store
from theworld.pipeline.store.reading import row_reader

from ...miniatures.store import FRAME_BYTES, ROW_BYTES, TINY, create, expected, fill, flip, key, write
from ..files.test_atomic import PatchedOs

FORMATS: tuple[StoreFormat, ...] = ("zarr", "webdataset")


def take_away(store: LatentStore, number: int) -> None:
    (store.path / "commits" / f"{number}.json").unlink()
    store.payload_path(number).unlink()


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_that_took_the_number_of_one_already_read_is_read_itself(tmp_path: Path, format: StoreFormat) -> None:
    writer = create(tmp_path, format=format)
    write(writer, [0, 1])
    reader = open_store(tmp_path)
    reader.read([key(0), key(1)])
    take_away(writer, 0)
    reader.refresh()
    assert len(reader) == 0
    writer.refresh()
    write(writer, [2, 3])
    assert list(writer.shards) == [0]
    reader.refresh()
    np.testing.assert_array_equal(reader.read([key(2), key(3)]), expected(reader, [2, 3]))


def test_a_shard_that_came_back_damaged_is_checked_anew(tmp_path: Path) -> None:
    writer = create(tmp_path)
    write(writer, [0, 1])
    reader = open_store(tmp_path)
    reader.read([key(0)])
    kept = (writer.path / "commits" / "0.json").read_bytes()
    (writer.path / "commits" / "0.json").unlink()
    reader.refresh()
    (writer.path / "commits" / "0.json").write_bytes(kept)
    flip(writer.payload_path(0), 5)
    reader.refresh()
    with pytest.raises(DamagedShardError, match="checksums"):
        reader.read([key(0)])


@pytest.mark.parametrize("steps", [0, 1])
def test_frames_beyond_those_that_were_checked_are_checked_when_they_are_read(tmp_path: Path, steps: int) -> None:
    store = create(tmp_path)
    fill(store, 4)
    store.read(store.keys, rollout_steps=steps)
    flip(store.payload_path(0), 2 * ROW_BYTES + 2 * FRAME_BYTES)  # last frame of row 2
    store.read(store.keys, rollout_steps=steps)
    with pytest.raises(DamagedShardError, match="row 2 does not match"):
        store.read(store.keys)


def test_a_replaced_file_is_checked_again_after_a_close_and_the_same_file_is_not(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 4)
    store.read(store.keys)
    checked = store._reader._files.current()[0].checked
    store.close()
    store.read(store.keys)
    assert store._reader._files.current()[0].checked is checked
    store.close()
    payload = store.payload_path(0)
    content = bytearray(payload.read_bytes())
    content[5] ^= 1
    payload.unlink()
    payload.write_bytes(content)
    with pytest.raises(DamagedShardError, match="row 0 does not match"):
        store.read(store.keys)


def test_no_more_files_stay_open_than_allowed_and_the_one_not_used_for_longest_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "_process", open_files._Process())  # stores of other tests may still be open
    monkeypatch.setattr(open_files, "soft_limit", lambda: 4)
    monkeypatch.setattr(open_files, "raise_limit", lambda: False)
    store = create(tmp_path, shard_size=1)
    fill(store, 4)
    opened: list[list[int]] = []
    for number in (0, 1, 2, 1, 3):
        store.read([key(number)])
        opened.append(sorted(store._reader._files.current()))
    assert opened == [[0], [0, 1], [1, 2], [1, 2], [1, 3]]


def test_a_record_that_was_healed_is_no_longer_damage(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 4)
    record = store.path / "commits" / "0.json"
    content = record.read_bytes()
    for part, damage, samples in ((content[:-5], 1, 0), (content, 0, 4)):
        other = store.path / "tmp" / "other"  # another inode, as a copy or a restored backup has
        other.write_bytes(part)
        other.replace(record)
        store.refresh()
        assert (len(store.damage), len(store)) == (damage, samples)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("first", [0, 1, 7])
def test_a_file_system_that_gives_a_few_bytes_at_a_time_is_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: StoreFormat, steps: int, first: int
) -> None:
    """Also where the first answer brings nothing: only a second empty one says that the file has ended."""
    recipe = TINY.model_copy(update={"height": 256, "width": 256})  # frames large enough to be read by channel in a tar
    store = create(tmp_path, format=format, recipe=recipe)
    write(store, [0, 1, 2])
    wanted = store.read([key(2), key(0)], rollout_steps=steps).copy()
    np.testing.assert_array_equal(wanted, expected(store, [2, 0])[:, :, : 1 + steps])
    limits = iter([first])

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        limit = next(limits, 1000)
        return os.preadv(fd, [buffers[0][:limit]], offset) if limit else 0

    monkeypatch.setattr(row_reader, "os", PatchedOs(preadv=preadv))
    fresh = open_store(tmp_path)
    np.testing.assert_array_equal(fresh.read([key(2), key(0)], rollout_steps=steps), wanted)
