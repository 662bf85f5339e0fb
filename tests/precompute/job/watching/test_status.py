"""`theworld status` reads what jobs wrote, and asks nothing of them: running, ended, killed, on any machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.miniatures.store import create
from tests.miniatures.store import write as add
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import StoreNotFoundError
from theworld.precompute.job.watching.events import JOBS
from theworld.precompute.job.watching.status import Status, lines_of, read_status

NOW = 1_000_000.0
Line = dict[str, Any]


def begun(at: float, part: str | None = None, **more: Any) -> Line:
    fields = {"inputs": "/in/photos", "part": part, "cache": "/there/cache", "host": "node7", "pid": 5, "slurm": None}
    return {"time": at, "event": "begun", **fields, **more}


def planned(at: float, todo: int, done: int = 0, store: str = "cache") -> Line:
    return {"time": at, "event": "plan", "todo": todo, "done": done, "store": store, "images": todo + done}


def started(at: float, store: str, workers: int = 2) -> Line:
    fields = {"workers": workers, "nodes": 1, "ready_s": 4.0, "load_s": 3.0}
    return {"time": at, "event": "started", "store": f"/there/cache/{store}", **fields}


def shard(at: float, written: int, done: int) -> Line:
    return {"time": at, "event": "shard", "written": written, "elsewhere": 0, "done": done}


def alive(at: float, **figures: Any) -> Line:
    return {"time": at, "event": "alive", **figures}


def write(cache: Path, name: str, *lines: Line, end: str = "") -> Path:
    file = cache / JOBS / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return file


def seen(place: Path, now: float = NOW) -> Status:
    found = read_status(place)
    return Status(found.tasks, found.stores, found.unreadable, now=now)


def rows(status: Status) -> list[dict[str, Any]]:
    return status.to_json()["tasks"]


def test_a_running_job_says_how_far_it_is_how_fast_and_what_it_took(tmp_path: Path) -> None:
    failed = {"time": NOW - 20, "event": "failure", "reason": "decode", "message": "m", "source": "a", "attempts": 1}
    write(
        tmp_path, "a", begun(NOW - 200), planned(NOW - 150, 100, done=20), started(NOW - 100, "s"),
        shard(NOW - 30, 39, 40), failed,
        alive(NOW - 10, done=40, made=5, workers=2, worker_hours=0.1, gpu_hours=0.05),
    )  # fmt: skip
    [row] = rows(seen(tmp_path))
    assert (row["state"], row["done_before"], row["done"], row["made"], row["todo"]) == ("running", 20, 40, 5, 100)
    assert (row["percent"], row["per_s"], row["left_s"]) == (54, 0.5, 110)
    assert (row["failures"], row["worker_hours"], row["gpu_hours"]) == ({"decode": 1}, 0.1, 0.05)
    assert (row["written"], row["shards"], row["workers"], row["nodes"]) == (39, 1, 2, 1)


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([], "listing"),
        ([planned(NOW - 300, 4)], "loading"),
        ([planned(NOW - 300, 4), started(NOW - 290, "s")], "running"),
        ([{"time": NOW - 280, "event": "interrupted", "message": "SIGTERM"}], "interrupted"),
        ([{"time": NOW - 280, "event": "failed", "message": "the disk is full"}], "failed"),
        ([{"time": NOW - 280, "event": "finished", "reasons": {}, "store": "cache/s"}], "finished"),
    ],
)
def test_a_job_that_has_not_ended_is_stale_once_it_is_silent_for_too_long(
    tmp_path: Path, lines: list[Line], state: str
) -> None:
    write(tmp_path, "a", begun(NOW - 300), *lines)
    [task] = seen(tmp_path).tasks
    assert task.latest.state_at(NOW - 270, 180) == state
    has_ended = state in ("interrupted", "failed", "finished")
    assert task.latest.state_at(NOW, 180) == (state if has_ended else "stale")


def test_attempts_at_one_task_are_one_row_also_while_the_latest_lists_its_inputs(tmp_path: Path) -> None:
    write(
        tmp_path, "1", begun(NOW - 900, "1/2"), planned(NOW - 890, 10), started(NOW - 880, "s"),
        shard(NOW - 870, 4, 4), alive(NOW - 860, worker_hours=1.0),
    )  # fmt: skip
    ended = {"time": NOW - 90, "event": "interrupted", "message": "SIGTERM: 2 were committed", "worker_hours": 0.5}
    again = [begun(NOW - 120, "1/2"), planned(NOW - 110, 6, 4, "cache/s"), started(NOW - 100, "s")]
    write(tmp_path, "2", *again, shard(NOW - 95, 2, 2), ended)
    write(tmp_path, "3", begun(NOW - 5, "1/2", host="node8"))
    write(tmp_path, "4", begun(NOW - 5, "2/2"))
    first, second = rows(seen(tmp_path))
    assert (first["attempts"], first["state"], first["host"]) == (3, "listing", "node8")
    assert (first["written"], first["shards"], first["worker_hours"]) == (6, 2, 1.5)
    assert (second["part"], second["attempts"]) == ("2/2", 1)


def test_two_jobs_that_do_the_same_at_once_are_two_rows(tmp_path: Path) -> None:
    write(tmp_path, "1", begun(NOW - 100, host="a"), planned(NOW - 90, 9, store="cache/s"), alive(NOW - 5))
    write(tmp_path, "2", begun(NOW - 50, host="b"), planned(NOW - 40, 9, store="cache/s"), alive(NOW - 5))
    assert [(row["host"], row["state"]) for row in rows(seen(tmp_path))] == [("a", "loading"), ("b", "loading")]


def test_own_latents_are_told_from_those_of_others(tmp_path: Path) -> None:
    store = create(tmp_path / "cache", shard_size=8)
    add(store, range(5))
    add(store, range(5, 8))
    name = store.path.name
    write(tmp_path / "cache", "1", begun(NOW - 9), planned(NOW - 8, 5), started(NOW - 7, name), shard(NOW - 6, 5, 5))
    for place in (store.path, tmp_path / "cache", tmp_path):
        [share] = seen(place).stores
        assert (share.latents, share.shards, share.of_tasks, share.of_others) == (8, 2, 5, 3)
    told = "\n".join(lines_of(seen(tmp_path)))
    assert "8 latents in 2 shards, 5 of them made by these tasks, 3 by others" in told


def test_a_store_shows_its_own_jobs_alone(tmp_path: Path) -> None:
    store = create(tmp_path)
    write(tmp_path, "1", begun(NOW - 9), planned(NOW - 8, 5), started(NOW - 7, store.path.name))
    write(tmp_path, "2", begun(NOW - 9, "1/2"), planned(NOW - 8, 5), started(NOW - 7, "another"))
    assert [row["part"] for row in rows(seen(store.path))] == [None]
    assert len(rows(seen(tmp_path))) == 2


def test_a_line_that_is_being_written_is_waited_for_and_others_that_are_no_events_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path, "1", begun(NOW - 9), end='{"time": 1, "ev')
    assert seen(tmp_path).unreadable == ()
    with file.open("a") as out:
        out.write('\n[]\n{"time": "x", "event": "shard", "written": -3, "done": true}\n')
    found = seen(tmp_path)
    assert found.unreadable == (f"2 lines of {file} are no events and are left out",)
    assert [(row["written"], row["done"]) for row in rows(found)] == [(0, 0)]


def test_events_in_a_file_that_was_named_are_found_from_the_cache_and_by_their_own_name(tmp_path: Path) -> None:
    named = tmp_path / "mine.jsonl"
    attempts = [begun(NOW - 99), planned(NOW - 98, 3), begun(NOW - 9), planned(NOW - 8, 3)]
    other = begun(NOW - 7, cache="/there/another")
    named.write_text("".join(json.dumps(line) + "\n" for line in [*attempts, other]))
    cache = tmp_path / "cache"
    pointer = {"time": NOW, "event": "elsewhere", "file": str(named), "cache": "/there/cache", "host": "node7"}
    write(cache, "1", pointer)
    [row] = rows(seen(cache))
    assert (row["attempts"], row["state"], row["events"]) == (2, "loading", str(named))
    assert len(rows(seen(named))) == 2
    named.rename(tmp_path / "gone")
    write(cache, "2", begun(NOW))
    [problem] = seen(cache).unreadable
    assert re.search(r"mine\.jsonl cannot be read here: No such file.*written on node7", problem)


def test_the_command_prints_a_row_a_task_and_what_all_have_done(tmp_path: Path) -> None:
    for number in (1, 2):
        lines = [begun(NOW, f"{number}/2", slurm=f"8_{number}"), planned(NOW, 10), started(NOW, "s"), shard(NOW, 4, 4)]
        write(tmp_path, str(number), *lines)
    told = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert re.search(r"1/2 +stale, no line for .* 4 of 10 +40 .*8_1", told.stdout)
    assert "2 tasks: 2 stale; 8 of 20 done (40 %)" in told.stdout
    assert "the same command again resumes it" in told.stdout
    total = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).stdout)["total"]
    assert (total["states"], total["done"], total["wanted"]) == ({"stale": 2}, 8, 20)


def test_where_no_job_was_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no job has left events .*--cache"):
        read_status(tmp_path)
