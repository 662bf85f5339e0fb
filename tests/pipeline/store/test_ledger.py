"""Failures are kept, however files are merged; damage in them is named, and a killed writer loses nothing."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.files.sealed import seal
from theworld.pipeline.store import ledger
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.ledger import Failure, FailureLog

from ...faults.harness import Cut, FaultyFileLayer, layer
from ...miniatures.store import create, flip, key

GONE = Failure(source="gone \udcff.png", key=None, reason="missing", message="no such file", attempts=1)
BAD = Failure(source="bad.png", key=key(1), reason="decode", message="not an image", attempts=1)


def files(store: Path) -> list[Path]:
    return sorted((store / "failed").iterdir())


def write_as_before(store: Path, failure: Failure) -> None:
    """A file an input, as releases before wrote it."""
    fields = {name: getattr(failure, name) for name in ("source", "key", "reason", "message", "attempts")}
    (store / "failed" / failure.file_name).write_bytes(seal({**fields, "format": 1}))


def test_a_failure_is_kept_once_an_input_until_it_is_cleared(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.record_failure(GONE)
    store.record_failure(BAD)
    store.record_failure(Failure(source="copy.png", key=key(1), reason="nan", message="NaN", attempts=2))
    assert [(f.source, f.attempts) for f in open_store(tmp_path).failures()] == [("copy.png", 2), (GONE.source, 1)]
    store.clear_failure(BAD)
    store.clear_failure(BAD)
    assert store.failures() == open_store(tmp_path).failures() == [GONE]
    flip(files(store.path)[0], 20)
    with pytest.raises(DamagedShardError, match="failed/"):
        open_store(tmp_path).failures()


def test_many_failures_are_one_file_and_the_same_again_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path)
    failures = [replace(GONE, source=f"gone/{number}.jpg") for number in range(300)]
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd))[1])
    store.record_failures(failures)
    assert (len(files(store.path)), len(synced)) == (1, 2), "the file and its folder"
    inode = files(store.path)[0].stat().st_ino
    for failure in failures:
        store.record_failure(failure)
    open_store(tmp_path).record_failures(failures)
    assert len(synced) == 2
    assert [path.stat().st_ino for path in files(store.path)] == [inode]
    store.clear_failures(failures)
    assert files(store.path) == []
    assert open_store(tmp_path).failures() == []


def test_failures_one_by_one_end_in_few_files(tmp_path: Path) -> None:
    store = create(tmp_path)
    failures = [replace(GONE, source=f"{number:02}.jpg") for number in range(40)]
    for failure in failures:
        store.record_failure(failure)
    assert len(files(store.path)) <= 6
    assert open_store(tmp_path).failures() == failures


def test_files_of_an_older_release_are_read_replaced_and_cleared(tmp_path: Path) -> None:
    store = create(tmp_path)
    for failure in (GONE, BAD):
        write_as_before(store.path, failure)
    assert store.failures() == [BAD, GONE]
    store.record_failures([GONE, BAD])
    assert len(files(store.path)) == 2, "nothing is new"
    store.record_failure(replace(BAD, attempts=2))
    assert open_store(tmp_path).failures() == [replace(BAD, attempts=2), GONE]
    store.clear_failures([BAD, GONE])
    assert files(store.path) == []


def test_two_processes_write_at_once_and_both_are_kept(tmp_path: Path) -> None:
    one, two = create(tmp_path), create(tmp_path)
    one.record_failure(GONE)
    two.record_failure(BAD)  # merges the file that `one` knows
    one.record_failure(replace(GONE, source="third.png"))
    assert {f.source for f in two.failures()} == {GONE.source, "bad.png", "third.png"}
    two.clear_failure(GONE)
    assert {f.source for f in one.failures()} == {"bad.png", "third.png"}


def test_a_reader_whose_file_is_merged_before_it_is_opened_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path)
    store.record_failure(GONE)
    real, merged = ledger.read_failures_file, [False]

    def read_late(*arguments: Any) -> Any:
        if not merged[0]:
            merged[0] = True
            store.record_failure(BAD)
        return real(*arguments)

    monkeypatch.setattr(ledger, "read_failures_file", read_late)
    assert FailureLog(store.place).failures() == [BAD, GONE]


@pytest.mark.parametrize("change", [{"attempts": True}, {"key": "x"}, {"source": 1}, {"more": 1}, {"format": 2}])
def test_a_failure_row_with_wrong_types_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    store = create(tmp_path)
    fields = {"source": "a", "key": None, "reason": "decode", "message": "m", "attempts": 1, "format": 1}
    (store.path / "failed" / f"{'0' * 32}.json").write_bytes(seal(fields | change))
    with pytest.raises(DamagedShardError, match="failed/"):
        store.failures()
    create(tmp_path).record_failure(GONE)  # a damaged file does not keep a job from noting another


@pytest.mark.parametrize("change", [{"version": -1}, {"version": 2**60}, {"version": 1.5}, {"forgotten": 1}])
def test_a_row_whose_version_is_none_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    store = create(tmp_path)
    store.record_failure(GONE)
    (file,) = files(store.path)
    content = json.dumps(json.loads(file.read_bytes()) | change).encode() + b"\n"
    file.unlink()
    (store.path / "failed" / f"{ledger.hashlib.sha256(content).hexdigest()}.jsonl").write_bytes(content)
    with pytest.raises(DamagedShardError, match="version"):
        FailureLog(store.place).failures()


def test_a_writer_killed_between_any_two_steps_loses_no_failure(tmp_path: Path) -> None:
    def before(folder: Path) -> None:
        folder.mkdir()
        for name in ("failed", "tmp"):
            (folder / name).mkdir()
        write_as_before(folder, BAD)
        FailureLog(Folder(folder)).record([GONE, replace(GONE, source="kept.png")])

    def act(folder: Path) -> None:
        log = FailureLog(Folder(folder))
        log.record([replace(BAD, attempts=2), replace(GONE, source="new.png")])
        log.clear([GONE])

    for cut in itertools.count(1):
        folder = tmp_path / str(cut)
        before(folder)
        faulty = FaultyFileLayer(cut)
        with layer(faulty), suppress(Cut):
            act(folder)
        left = {failure.source: failure.attempts for failure in FailureLog(Folder(folder)).failures()}
        assert left["kept.png"] == 1
        assert left["bad.png"] in (1, 2)
        act(folder)
        after = {failure.source: failure.attempts for failure in FailureLog(Folder(folder)).failures()}
        assert after == {"bad.png": 2, "kept.png": 1, "new.png": 1}
        if faulty.hit is None:
            break
    assert cut > 10


Event = tuple[str, int, int]


@settings(max_examples=25, deadline=None)
@example(events=[*(("record", number, 1) for number in range(4)), ("clear", 2, 1), ("record", 2, 2)])
@given(
    events=st.lists(
        st.tuples(st.sampled_from(["record", "record", "clear", "old", "again"]), st.integers(0, 5), st.integers(1, 3))
    ),
)
def test_a_log_is_a_dictionary_whoever_writes(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name in ("failed", "tmp"):
            (path / name).mkdir()
        logs = [FailureLog(Folder(path)), FailureLog(Folder(path))]
        known: dict[str, Failure] = {}
        for what, number, attempts in events:
            failure = replace(GONE, source=f"{number}.png", attempts=attempts)
            log = logs[attempts % 2]
            if what == "record":
                log.record([failure])
                known[failure.source] = failure
            elif what == "clear":
                log.clear([failure])
                known.pop(failure.source, None)
            elif what == "old" and failure.source not in known and not files(path):
                write_as_before(path, failure)
                known[failure.source] = failure
            elif what == "again":
                logs[attempts % 2] = FailureLog(Folder(path))
        expected = sorted(known.values(), key=lambda failure: failure.source)
        assert [log.failures() for log in (*logs, FailureLog(Folder(path)))] == [expected] * 3
        if not known:
            assert files(path) == []
