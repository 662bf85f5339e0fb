"""Sources are kept as what is new, in small files; damage in them is named."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.sources import table as sources
from theworld.precompute.inputs.rows.manifests import MAX_PATH, MAX_PROMPT

from ....faults.harness import Cut, FaultyFileLayer, layer
from ....miniatures.store import create, flip, key


def files(store: Path) -> list[Path]:
    return sorted((store / "sources").iterdir())


def put(store: Path, content: bytes) -> Path:
    file = store / "sources" / f"{hashlib.sha256(content).hexdigest()}.jsonl"
    file.write_bytes(content)
    return file


def test_sources_add_up_over_runs_and_a_changed_file_shows_all_its_keys(tmp_path: Path) -> None:
    store = create(tmp_path)
    rows = [("a.png", key(1)), ("b \udcff\n.png", key(2)), ("a.png", key(1))]
    assert store.record_sources(rows) == 2
    assert store.record_sources(reversed(rows)) == 0
    assert len(files(store.path)) == 1
    assert store.record_sources([("a.png", key(0)), ("c.png", key(1))]) == 2
    assert store.record_sources([]) == 0
    assert open_store(tmp_path).sources() == {
        "a.png": (key(0), key(1)),
        "b \udcff\n.png": (key(2),),
        "c.png": (key(1),),
    }
    file = files(store.path)[0]
    flip(file, 15)
    with pytest.raises(DamagedShardError, match="does not match its name"):
        store.sources()
    with pytest.raises(DamagedShardError):
        next(store.source_rows())  # no row of a damaged file is handed out


def test_names_and_prompts_as_long_as_a_list_may_hold_come_back(tmp_path: Path) -> None:
    store = create(tmp_path)
    name, prompt = "\U0001f3b2" * MAX_PATH, "\U0001f3b3" * MAX_PROMPT
    store.record_sources([(name, key(1))], {key(1): prompt}, {key(1): 1.25})
    again = open_store(tmp_path)
    assert again.sources() == {name: (key(1),)}
    assert again.prompts() == {key(1): prompt}
    assert again.starts() == {key(1): 1.25}
    assert list(again.source_rows()) == [(name, key(1), prompt, 1.25)]


def test_a_folder_that_grows_every_day_costs_its_size_once(tmp_path: Path) -> None:
    store = create(tmp_path)
    rows = [(f"photos/{number}.jpg", key(number)) for number in range(200)]
    for day in range(10):
        assert store.record_sources(rows[: 20 + 20 * day]) == 20
    assert len(files(store.path)) == 10
    lines = [line for file in files(store.path) for line in file.read_text().splitlines()]
    assert sorted(lines) == sorted(json.dumps({"source": name, "key": of}) for name, of in rows)


def test_what_an_older_release_wrote_counts_as_kept(tmp_path: Path) -> None:
    store = create(tmp_path)
    rows = [("ä.jpg", key(1)), ("b.jpg", key(2))]
    more = {"prompt": "it \N{GRINNING FACE} falls", "start_s": 0.5}
    put(store.path, "".join(json.dumps({"source": name, "key": of} | more) + "\n" for name, of in rows).encode())
    prompts, starts = dict.fromkeys((key(1), key(2)), more["prompt"]), dict.fromkeys((key(1), key(2)), 0.5)
    assert store.record_sources(rows, prompts, starts) == 0  # type: ignore[arg-type]
    assert store.record_sources(rows) == 2, "rows that say something else are other rows"


def test_rows_go_into_files_of_limited_size_that_are_synced_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path)
    monkeypatch.setattr(sources, "FILE_BYTES", 1000)
    monkeypatch.setattr(sources, "_BLOCK_ROWS", 7)
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd))[1])
    rows = [(f"{number}.jpg", key(number)) for number in range(100)]
    assert store.record_sources([*rows, *rows[::-1]]) == 100
    sizes = [file.stat().st_size for file in files(store.path)]
    assert max(sizes) <= 1000
    assert len(sizes) < 12
    assert len(synced) == 2 * len(sizes), "each, and the folder of its name"
    assert store.sources() == {name: (of,) for name, of in rows}


def test_rows_of_a_damaged_file_are_written_again(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.record_sources([("a.png", key(1))])
    flip(files(store.path)[0], 3)
    assert store.record_sources([("a.png", key(1)), ("b.png", key(2))]) == 2


def test_a_job_killed_while_it_records_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FILE_BYTES", 150)
    rows = [(f"{number}.jpg", key(number)) for number in range(6)]
    for cut in range(1, 100):
        folder = tmp_path / str(cut)
        for name in ("sources", "tmp"):
            (folder / name).mkdir(parents=True)
        sources.write_sources(Folder(folder), rows[:1])
        faulty = FaultyFileLayer(cut)
        with layer(faulty), suppress(Cut):
            sources.write_sources(Folder(folder), rows)
        assert rows[0][0] in sources.read_sources(Folder(folder))
        sources.write_sources(Folder(folder), rows)
        assert sources.read_sources(Folder(folder)) == {name: (of,) for name, of in rows}
        if faulty.hit is None:
            break
    assert cut > 8


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b'{"source": 1, "key": "' + b"0" * 32 + b'"}', b'{"source": "a", "key": "x"}', b"{", b"\xff"]
)
def test_a_line_that_is_no_row_is_damage(tmp_path: Path, line: bytes) -> None:
    store = create(tmp_path)
    put(store.path, line + b"\n")
    with pytest.raises(DamagedShardError, match="sources/"):
        store.sources()
