"""configs/slurm.sh on a real SLURM: two nodes, a second user, every way to end a job. Takes minutes: `make slurm`.

The machines are namespaces of this one (slurm_machines.py); where they cannot be made, the tests are skipped and say
why.
"""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterator

import pytest

from tests.faults.slurm_jobs import SLOW, Place, place_to_precompute
from tests.faults.slurm_machines import NEIGHBOUR, until, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with place_to_precompute() as place:
        yield place


def test_two_nodes_make_a_set_once_and_leave_nothing_behind(place: Place) -> None:
    job = place.submit("two")
    assert place.slurm.wait(job)["JobState"] == "COMPLETED", place.log(job)
    [started] = place.events(job, "started")
    assert {one["host"] for one in started["where"]} == {"n1", "n2"}  # type: ignore[index]
    place.assert_exact("two", job)
    place.assert_nothing_left()
    log = place.log(job)
    assert "2 workers on 2 nodes: n1, n2" in log
    assert not re.search("killed|cancel|terminat|error|8\\.8\\.8\\.8", log, re.IGNORECASE), log
    for path in (place.slurm.shared / "two").rglob("*"):  # as the umask of whoever submitted says
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_a_neighbour_on_the_node_cannot_reach_what_a_job_runs(place: Place) -> None:
    job = place.submit("private", denoise_steps=SLOW)
    place.wait_for_shards(job, 1)
    folder = f"/tmp/theworld-{job}-0"
    assert place.slurm.run("stat", "-c", "%a", folder, user=0).strip() == "700"
    for words in (("ls", f"{folder}/r"), ("mv", f"{folder}/r", f"{folder}/s"), ("mv", folder, "/tmp/theirs")):
        with pytest.raises(subprocess.CalledProcessError, match="non-zero exit status"):
            place.slurm.run(*words, user=NEIGHBOUR)
    token = next(place.slurm.shared.glob(".theworld-*"))
    assert stat.S_IMODE(token.stat().st_mode) == 0o700
    assert stat.S_IMODE((token / "token").stat().st_mode) == 0o600
    place.slurm.run("scancel", job)
    place.slurm.wait(job)
    place.assert_nothing_left()


def test_a_job_that_gets_the_signal_is_requeued_and_goes_on(place: Place) -> None:
    job = place.submit("signal", denoise_steps=SLOW)
    for restarts in range(2):
        place.wait_for_shards(job, 1 + len(place.events(job, "shard")))
        place.slurm.run("scancel", "--batch", "--signal=TERM", job)
        until(lambda restarts=restarts: place.slurm.job(job)["Restarts"] == str(restarts + 1), lambda: place.log(job))
    assert place.slurm.wait(job)["JobState"] == "COMPLETED", place.log(job)
    assert place.log(job).count("were committed to") == 2
    place.assert_exact("signal", job)
    place.assert_nothing_left()


@pytest.mark.parametrize(
    ("limits", "attempts", "why"),
    [
        ({}, 3, "the last three attempts committed nothing"),
        ({"THEWORLD_MAX_REQUEUE": "0"}, 1, "it was requeued 0 times"),
    ],
    ids=["fruitless", "too often"],
)
def test_a_job_is_not_requeued_for_ever(place: Place, limits: dict[str, str], attempts: int, why: str) -> None:
    job = place.submit(f"ever{attempts}", denoise_steps=SLOW, **limits)
    for attempt in range(attempts):  # while its workers load
        until(lambda attempt=attempt: len(place.events(job, "plan")) > attempt, lambda: place.log(job))
        place.slurm.run("scancel", "--batch", "--signal=TERM", job)
        until(lambda attempt=attempt: len(place.events(job, "interrupted")) > attempt, lambda: place.log(job))
    assert place.slurm.wait(job)["ExitCode"] == "75:0"
    assert place.events(job, "shard") == []
    assert f"not requeued: {why}" in place.log(job)
    place.assert_nothing_left()


def test_scancel_keeps_what_is_committed_and_the_same_command_goes_on(place: Place) -> None:
    first = place.submit("cancelled", denoise_steps=SLOW)
    place.wait_for_shards(first, 1)
    place.slurm.run("scancel", first)
    assert place.slurm.wait(first)["JobState"] == "CANCELLED"
    place.assert_nothing_left()
    assert "were committed to" in place.log(first)
    second = place.submit("cancelled", denoise_steps=SLOW)
    assert place.slurm.wait(second)["JobState"] == "COMPLETED", place.log(second)
    place.assert_exact("cancelled", first, second)
    place.assert_nothing_left()


def test_before_its_time_is_over_a_job_commits_and_is_requeued(place: Place) -> None:
    job = place.submit("time", "--time=30", "--signal=B:TERM@60", denoise_steps=SLOW)
    place.wait_for_shards(job, 1)
    hours, minutes, _ = map(int, place.slurm.job(job)["RunTime"].split(":"))
    place.slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}", user=0)
    until(lambda: place.slurm.job(job)["Restarts"] != "0", lambda: place.log(job), 400)
    assert place.events(job, "interrupted"), place.log(job)
    place.slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30", user=0)
    assert place.slurm.wait(job)["JobState"] == "COMPLETED", place.log(job)
    place.assert_exact("time", job)
    place.assert_nothing_left()


def test_an_array_makes_each_part_once(place: Place) -> None:
    job = place.submit("array", "--array=1-2", "--nodes=1", "--output=theworld-%A_%a.log")
    for task in (1, 2):
        assert place.slurm.wait(f"{job}_{task}")["JobState"] == "COMPLETED"
    place.assert_exact("array", f"{job}_1", f"{job}_2")
    place.assert_nothing_left()


def test_a_job_outlives_a_node_that_dies_and_takes_it_again_when_it_is_back(place: Place) -> None:
    job = place.submit("dead", "--no-kill", denoise_steps=SLOW)
    place.wait_for_shards(job, 1)
    place.slurm.kill_node("n2")
    place.wait_for_shards(job, 2 + len(place.events(job, "shard")))
    place.slurm.start_node_again("n2")
    place.slurm.wait(job)
    place.assert_exact("dead", job)
    place.assert_nothing_left()
