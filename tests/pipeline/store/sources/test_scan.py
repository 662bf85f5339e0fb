"""Keys and names of inputs, found without parsing: the same as by parsing, and nothing of a file that is not sound."""

from pathlib import Path

import pytest

from theworld.pipeline.store.keys.packed_keys import pack_keys, unpack_keys
from theworld.pipeline.store.sources import scan as source_scan
from theworld.pipeline.store.sources.scan import source_blocks, sources_of
from theworld.pipeline.store.upkeep import verify as verify_module
from theworld.pipeline.store.upkeep.verify import verify

from ....miniatures.store import create, fill, flip, key

NAMES = ['"key": "', '\\"key": "0', 'a\n"key": "', "é\ud800", "plain.png", ""]


@pytest.mark.parametrize("block_bytes", [7, 64, 2**22])
def test_a_scan_finds_what_parsing_finds_whatever_inputs_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(source_scan, "_BLOCK_BYTES", block_bytes)
    store = create(tmp_path)
    rows = [(name, key(number)) for number, name in enumerate(NAMES)]
    store.record_sources(rows, {key(0): NAMES[0], key(1): "of its own"}, {key(2): 1.5})
    unsound: list[str] = []
    found = [
        (block.source(row), digits)
        for block in source_blocks(store.place, unsound=unsound)
        for row, digits in enumerate(unpack_keys(block.keys))
    ]
    assert sorted(found) == sorted(rows)
    assert unsound == []
    assert sources_of(store.place, pack_keys([key(2), key(9)])) == {key(2): [NAMES[2]]}


def test_nothing_is_taken_from_a_file_that_is_not_what_was_written(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.record_sources([("a.png", key(0))])
    (file,) = (store.path / "sources").iterdir()
    flip(file, 14)
    unsound: list[str] = []
    assert list(source_blocks(store.place, unsound=unsound)) == []
    assert unsound == [file.relative_to(store.path).as_posix()]


def test_of_very_many_inputs_names_says_that_they_were_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "_QUICK_SOURCES_BYTES", 10)
    store = create(tmp_path)
    fill(store, 4)
    store.record_sources([("a.png", key(0)), ("later.png", key(9))])
    (note,) = verify(store.path).findings
    assert "--read" in note.message
    (unmade,) = verify(store.path, level="read").findings
    assert "later.png" in unmade.message
    (file,) = (store.path / "sources").iterdir()
    flip(file, 14)
    assert [finding.what for finding in verify(store.path).damage] == ["log"]
