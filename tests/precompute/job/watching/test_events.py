"""One file of events a run of a task: nobody else writes to it, and a job that is refused leaves none."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import pytest

from tests.miniatures.image_store import make_images
from theworld.pipeline.errors import ConfigError
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.job.watching import events as module
from theworld.precompute.job.watching.events import JOBS, Events


def files_in(cache: Path) -> list[Path]:
    return sorted((cache / JOBS).glob("*.jsonl"))


def test_each_run_has_a_file_of_its_own_named_by_its_part_and_machine(tmp_path: Path) -> None:
    config = PrecomputeConfig(images=tmp_path, cache=tmp_path / "cache", part="2/3")
    runs = [Events.of_task(config) for _ in range(3)]
    for run in runs:
        run.write("alive")
        run.close()
    files = files_in(config.cache)
    assert len(files) == 3
    assert all("-part2of3-" in file.name for file in files)
    assert [file.read_text().count("\n") for file in files] == [1, 1, 1]


def test_a_file_that_was_named_is_pointed_to_once_and_has_one_writer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_S", 0.1)
    file = tmp_path / "events.jsonl"
    config = PrecomputeConfig(images=tmp_path, cache=tmp_path / "cache", events=file)
    first = Events.of_task(config)
    at_once = Events.of_task(config)
    assert "another job writes to" in at_once.problem
    at_once.write("begun")
    first.close()
    again = Events.of_task(config)  # a second attempt
    again.write("begun")
    assert again.problem == ""
    assert file.read_text().count("\n") == 1
    own, pointer = files_in(config.cache)
    assert '"begun"' in own.read_text()
    said = json.loads(pointer.read_text())
    assert (said["event"], said["file"], said["cache"]) == ("elsewhere", str(file), str(config.cache))


def test_a_job_that_is_refused_and_a_dry_run_leave_nothing(tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 1)
    for config in (
        PrecomputeConfig(images=tmp_path / "missing", cache=tmp_path / "new" / "cache"),
        PrecomputeConfig(images=images, cache=tmp_path / "new" / "cache", size="32x32", dry_run=True),
    ):
        if config.dry_run:
            run_precompute(config)
        else:
            with pytest.raises(ConfigError, match="missing"):
                run_precompute(config)
        assert not (tmp_path / "new").exists()


def test_a_cache_that_cannot_take_events_is_told_of_and_stops_no_job(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / JOBS).write_text("a file of the user's")
    events = Events.of_task(PrecomputeConfig(images=tmp_path, cache=tmp_path / "cache"))
    events.write("alive")
    assert JOBS in events.problem


def test_events_that_cannot_be_written_are_told_of_and_harm_no_later_one(tmp_path: Path) -> None:
    """As on a disk that is full for a while: it takes a part of a line, or none of it."""
    events = Events(tmp_path / "events.jsonl")
    events.write("begun")
    assert not events.lost
    size = (tmp_path / "events.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        events.write("shard")
        assert events.lost
        events.write("shard")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    events.write("finished")
    begun, torn, finished = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in (begun, finished)] == ["begun", "finished"]
    assert len(torn) == 10


@pytest.mark.parametrize("torn", ["", '{"event": "begun"}\n', '{"event": "begun"}\n{"eve'])
def test_events_of_a_second_attempt_do_not_go_on_in_a_line_of_the_first(tmp_path: Path, torn: str) -> None:
    (tmp_path / "events.jsonl").write_text(torn)
    Events(tmp_path / "events.jsonl").write("begun")
    *before, begun = (tmp_path / "events.jsonl").read_text().splitlines()
    assert (before, json.loads(begun)["event"]) == (torn.splitlines(), "begun")


def test_a_pipe_that_nobody_reads_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe cannot be written: nobody reads this pipe"):
        Events(tmp_path / "pipe")


def test_a_heartbeat_is_written_whatever_the_job_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    events = Events.of_task(PrecomputeConfig(images=tmp_path, cache=tmp_path / "cache"))
    events.figures = lambda: {"done": 7}
    [file] = files_in(tmp_path / "cache")
    with events.beating():
        while not file.stat().st_size:
            time.sleep(0.005)
    events.close()
    assert {json.loads(line)["done"] for line in file.read_text().splitlines()} == {7}
