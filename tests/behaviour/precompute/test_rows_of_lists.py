"""Rows with several inputs, from the command to the store and back: names in the ledger, a second try, lookups."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.command_line import Done, theworld
from theworld.pipeline.store.folder import LatentStore, find_stores, open_store
from theworld.precompute.inputs.lookup import InputLookup


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for value, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (tmp_path / "photos" / name).write_bytes(png(80 * value))
    return tmp_path


def encode(place: Path, inputs: str, *more: str) -> Done:
    fixed = ["--kind", "posterior", "--size", "64x64", "--cache", "latents", "--in-process"]
    return theworld("precompute", inputs, *fixed, *more, cwd=place)


def store_of(place: Path) -> LatentStore:
    [path] = find_stores(place / "latents")
    return open_store(path)


def all_found(store: LatentStore, place: Path, **options: Any) -> bool:
    lookup = InputLookup(store, place, **options)
    return all(lookup.load(key).pixels.numel() for key in store.keys)


def test_an_input_of_a_row_that_failed_is_tried_again_under_its_own_name(place: Path) -> None:
    rows = [{"images": ["a.png", "sub\\c.png"]}, {"images": ["b.png", "late.png"]}]
    (place / "l.json").write_text(json.dumps(rows))
    first = encode(place, "l.json", "--image-root", "photos")
    assert first.code == 3, first.err
    assert "note: l.json: files found by another spelling of their paths: 1 (backslashes 1)" in first.err
    store = store_of(place)
    assert [failure.source for failure in store.failures()] == ["l.json:2[1]"]
    assert sorted(store.sources()) == ["a.png", "b.png", "sub\\c.png"]
    (place / "photos" / "late.png").write_bytes(png(250))
    second = encode(place, "l.json", "--image-root", "photos", "--retry-failed")
    assert second.code == 0, second.err
    store = store_of(place)
    assert (len(store), list(store.failures())) == (4, [])


def test_inputs_of_lists_are_found_again_by_the_list_or_the_folder(place: Path) -> None:
    (place / "l.jsonl").write_text(json.dumps({"mine": [" a.png", "b.png", "sub\\c.png"]}))
    assert encode(place, "l.jsonl", "--image-root", "photos", "--column", "mine").code == 0
    store = store_of(place)
    assert len(store) == 3
    assert all_found(store, place / "photos")
    assert all_found(store, place / "l.jsonl", column="mine", image_root=place / "photos")
    assert not any(InputLookup(store, place, named_by_user=False).has(key) for key in store.keys)


def test_inputs_of_tables_and_of_samples_in_tars_are_found_again(place: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [[{"bytes": png(value), "path": None} for value in row] for row in ([1, 2], [3], [4, 5, 6])]
    parquet.write_table(pa.table({"images": cells}), place / "t.parquet")
    assert encode(place, "t.parquet").code == 0
    assert sorted(store_of(place).sources())[:2] == ["t.parquet#0[0]", "t.parquet#0[1]"]
    assert all_found(store_of(place), place / "t.parquet")
    assert encode(place, "t.parquet").code == 0, "all are done"
    with tarfile.open(place / "s.tar", "w") as tar:
        for value in range(4):
            for suffix, content in (("rgb.png", png(100 + value)), ("mask.png", png(200 + value))):
                info = tarfile.TarInfo(f"{value}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    asked = theworld("precompute", "s.tar", "--kind", "posterior", "--size", "64x64", "--cache", "other", cwd=place)
    assert (asked.code, (place / "other").exists()) == (2, False)
    fixed = ["--kind", "posterior", "--size", "64x64", "--cache", "other", "--in-process"]
    assert theworld("precompute", "s.tar", *fixed, "--column", "rgb.png", cwd=place).code == 0
    [path] = find_stores(place / "other")
    store = open_store(path)
    assert sorted(store.sources()) == [f"s.tar:{value}.rgb.png" for value in range(4)]
    assert all_found(store, place / "s.tar")
