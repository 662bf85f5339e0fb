"""Bytes that are not the bytes committed are named, never read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.files.sealed import seal, unseal
from theworld.pipeline.store.folder import find_store, open_store

from ...miniatures.store import FRAME_BYTES, ROW_BYTES, TINY, create, expected, fill, flip, key, write
from ...permissions import become_a_pipe


def test_every_flipped_bit_of_a_latent_is_found_by_reading_it(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 4)
    payload = store.payload_path(0)
    intact = payload.read_bytes()
    row_bytes = ROW_BYTES
    draw = np.random.default_rng(0)
    for place, position in draw.integers(0, (4, 3 * FRAME_BYTES), (300, 2)).tolist():
        position += place * row_bytes
        flip(payload, position, int(draw.integers(8)))
        store = open_store(tmp_path)
        with pytest.raises(DamagedShardError, match=f"row {position // row_bytes}"):
            store.read(store.keys)
        others = [key(n) for n in range(4) if n != position // row_bytes]
        np.testing.assert_array_equal(store.read(others), expected(store, [int(k, 16) for k in others]))
        payload.write_bytes(intact)
    np.testing.assert_array_equal(store.read(store.keys), expected(store, range(4)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("harm", "words"),
    [(truncate, "bytes, its record states"), (grow, "its record states"), (Path.unlink, "No such file"),
     (become_a_pipe, "bytes, its record states")],
)  # fmt: skip
def test_a_payload_of_another_size_is_damage(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    fill(create(tmp_path), 8)
    store = open_store(tmp_path)
    harm(store.payload_path(1))
    with pytest.raises(DamagedShardError, match=words) as caught:
        store.read([key(5)])
    for part in (str(store.payload_path(1)), "commits/1.json", "lost+found", "theworld precompute"):
        assert part in str(caught.value)
    np.testing.assert_array_equal(store.read([key(0)]), expected(store, [0]))


def test_a_payload_cut_while_open_is_damage(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 4)
    store.read([key(0)])
    os.truncate(store.payload_path(0), 3 * ROW_BYTES + 10)
    with pytest.raises(DamagedShardError, match="ends within row 3"):
        store.read([key(3)])


def test_the_payload_of_another_shard_is_damage_though_its_checksums_are_right(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 8)
    shutil.copyfile(store.payload_path(1), store.payload_path(0))
    with pytest.raises(DamagedShardError, match="not the one its record describes"):
        store.read([key(0)], rollout_steps=0)


def test_a_touched_record_stops_training_but_not_precomputing(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 8)
    record = store.path / "commits" / "0.json"
    flip(record, 40)
    with pytest.raises(DamagedShardError, match=r"commits/0\.json.*seal"):
        open_store(tmp_path)
    for again in (create(tmp_path), find_store(tmp_path, TINY), open_store(tmp_path, tolerate_damage=True)):
        assert again is not None
        assert again.keys == tuple(key(n) for n in range(4, 8))
        assert len(again.damage) == 1
        assert "commits/0.json" in again.damage[0]


def test_moving_a_damaged_record_away_and_writing_again_heals(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 8)
    flip(store.payload_path(1), 10)
    (store.path / "commits" / "1.json").rename(store.path / "lost+found" / "1.json")
    again = create(tmp_path)
    missing = [n for n in range(8) if key(n) not in again]
    assert missing == [4, 5, 6, 7]
    write(again, missing)
    reader = open_store(tmp_path)
    np.testing.assert_array_equal(reader.read([key(n) for n in range(8)]), expected(store, range(8)))
    assert [record.shard for record in reader.records()] == [0, 2]


@pytest.mark.parametrize("changes", [{"rows": 9}, {"bytes": 2**40}])
def test_a_record_that_states_impossible_sizes_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    store = create(tmp_path)
    fill(store, 4)
    file = store.path / "commits" / "0.json"
    body = json.loads(unseal(file.read_bytes())) | changes
    body["keys"] = [key(n) for n in range(body["rows"])]
    body["frames_crc32c"] = "0" * 24 * body["rows"]
    file.write_bytes(seal(body))
    with pytest.raises(DamagedShardError, match=r"it states [49] rows"):
        open_store(tmp_path)


def test_a_record_whose_facts_would_fill_the_memory_is_damage(tmp_path: Path) -> None:
    fill(create(tmp_path), 4)
    [record] = open_store(tmp_path).records()
    file = open_store(tmp_path).path / "commits" / "0.json"
    file.write_bytes(seal({**record.model_dump(mode="json"), "facts": {"a": [[]] * 2_500_000}}))
    with pytest.raises(DamagedShardError, match=r"0\.json: its JSON may hold 5,000,.* values, and the limit"):
        open_store(tmp_path)
