"""A shard's number belongs to one writer, and a record is published once and read back as it was."""

import os
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import DamagedShardError, StoreError
from theworld.pipeline.files import atomic
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.files.sealed import seal
from theworld.pipeline.store import commit
from theworld.pipeline.store.keys.index import record_tags
from theworld.pipeline.store.records import ShardRecord, read_record

from ..files.test_atomic import PatchedOs, finished

RECIPE_ID = "ab" * 32


def record(**changes: Any) -> ShardRecord:
    fields: dict[str, Any] = {
        "shard": 0,
        "recipe_id": RECIPE_ID,
        "keys": ("0" * 32, "1" * 32),
        "rows": 2,
        "bytes": 100,
        "xxh3_128": "0" * 32,
        "sha256": "0" * 64,
        "frames_crc32c": "0000000100000002",
        "created": "2026-01-01T00:00:00+00:00",
        "facts": {"host": "here"},
    }
    return ShardRecord.model_construct(**(fields | changes), format=changes.get("format", 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tmp", "commits", "latents/c"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_record_whose_link_was_made_and_not_acknowledged_is_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS asks a second time where no answer came, and is told that the name is taken: by the first asking."""

    def twice(temp: Path, target: Path) -> None:
        os.link(temp, target)
        os.link(temp, target)

    monkeypatch.setattr(atomic, "os", PatchedOs(link=twice))
    commit.publish_record(Folder(folder), record())
    with pytest.raises(StoreError, match="exists"):
        commit.publish_record(Folder(folder), record())


def test_a_payload_takes_the_first_free_number(folder: Path) -> None:
    def payload_of(number: int) -> str:
        return f"latents/c/{number}/0/payload"

    numbers = [
        commit.place_payload(Folder(folder), finished(folder, bytes([n])), payload_of, first=first, top="latents/c")
        for n, first in enumerate([3, 3, 0, 4])
    ]
    assert numbers == [3, 4, 0, 5]
    assert [(folder / payload_of(number)).read_bytes() for number in numbers] == [b"\0", b"\1", b"\2", b"\3"]


def test_a_record_comes_back_as_it_was_published(folder: Path) -> None:
    commit.publish_record(Folder(folder), record(shard=7))
    assert set(record_tags(Folder(folder))) == {7}
    assert read_record(Folder(folder), 7, RECIPE_ID) == record(shard=7)
    with pytest.raises(StoreError, match="exists"):
        commit.publish_record(Folder(folder), record(shard=7))


def test_only_names_of_records_are_taken_for_records(folder: Path) -> None:
    for name in ("0.json", "12.json", "012.json", "3.json~", ".4.json", "x.json", "9999999999.json", "5"):
        (folder / "commits" / name).touch()
    assert set(record_tags(Folder(folder))) == {0, 12}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shard": 6}, "shard 6"),
        ({"recipe_id": "cd" * 32}, "recipe cdcdcd"),
        ({"keys": ("0" * 32, "0" * 32)}, "distinct keys"),
        ({"keys": ("0" * 32,)}, "distinct keys"),
        ({"keys": ("0" * 32, "../../../../etc/passwd")}, "32 hexadecimal digits"),
        ({"keys": ("0" * 32, "A" * 32)}, "32 hexadecimal digits"),
        ({"keys": ("0" * 31, "1" * 33)}, "32 hexadecimal digits"),
        ({"frames_crc32c": "00000001"}, "frames_crc32c"),
        ({"first_frames_crc32c": "0000000100000002"}, "no first_frames_crc32c"),
        ({"format": 1}, "a record of format 1 has first_frames_crc32c"),
        ({"format": 1, "frames_crc32c": None, "first_frames_crc32c": "0" * 32}, "first_frames_crc32c differ"),
        ({"bytes": -1}, "bytes"),
        ({"rows": "2"}, "rows"),
        ({"format": 3}, "format"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_record_with_a_right_seal_and_wrong_content_is_damage(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    fields = {name: getattr(record(), name) for name in ShardRecord.model_fields} | {"shard": 5}
    (folder / "commits" / "5.json").write_bytes(seal(fields | changes))
    with pytest.raises(DamagedShardError, match=words) as caught:
        read_record(Folder(folder), 5, RECIPE_ID)
    for part in ("commits/5.json", "lost+found", "theworld precompute"):
        assert part in str(caught.value)
