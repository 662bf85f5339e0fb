"""configs/slurm.sh on a real SLURM: two nodes, a second user, every way to end a job. Takes minutes: `make slurm`.

The machines are namespaces of this one (slurm_machines.py); where they cannot be made, the tests are skipped and say
why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.slurm_machines import NEIGHBOUR, RESEARCHER, Slurm, slurm_cluster, why_not
from tests.miniatures.image_store import make_images
from tests.miniatures.world_model import save_mini_world
from tests.patience import patience
from theworld.pipeline.store.folder import find_stores, open_store
from theworld.pipeline.store.upkeep.verify import verify

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ROOT = Path(__file__).parents[2]
IMAGES = 24
SLOW = 800
"""Diffusion steps of a job that is to be cut: a batch takes seconds."""


@dataclass
class Place:
    """A cluster with inputs, a world model and `theworld` on it."""

    slurm: Slurm

    def submit(self, cache: str, *options: str, denoise_steps: int = 2, **environment: str) -> int:
        """`sbatch configs/slurm.sh` on nodes without GPUs."""
        words = ["--gpus-per-node=0", "--cpus-per-task=1", *options, ROOT / "configs" / "slurm.sh", "images"]
        words += ["--steps", "4", "--world", "world", "--size", "32x32", "--denoise-steps", denoise_steps]
        words += ["--batch-size", "2", "--shard-size", "4", "--cache", cache]
        return self.slurm.submit(*words, PYTHONPATH=os.environ.get("PYTHONPATH", ""), **environment)

    def log(self, job: int) -> str:
        return (self.slurm.shared / f"theworld-{job}.log").read_text()

    def events(self, name: object, *kinds: str) -> list[dict[str, object]]:
        file = self.slurm.shared / f"theworld-{name}.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [event for event in map(json.loads, lines) if event["event"] in kinds]

    def wait_for_shards(self, job: int, count: int) -> None:
        until(lambda: len(self.events(job, "shard")) >= count, lambda: self.log(job))

    def assert_exact(self, cache: str, *names: object) -> None:
        """Every image has its latent once, and no job made one that another had made."""
        [path] = find_stores(self.slurm.shared / cache)
        store = open_store(path)
        assert len(store) == IMAGES
        keys = [key for record in store.records() for key in record.keys]
        assert len(keys) == len(set(keys)) == IMAGES
        assert verify(path, level="deep").damage == ()
        made = sum(int(str(event["written"])) for name in names for event in self.events(name, "shard"))
        assert made == IMAGES

    def assert_nothing_left(self) -> None:
        """No process, folder or token of a job on any node."""
        until(lambda: not self.left(), lambda: str(self.left()))

    def left(self) -> list[str]:
        found = [str(path) for path in self.slurm.shared.glob(".theworld-*")]
        for node in self.slurm.nodes:
            found += [line for line in self.slurm.processes(node) if "sbatch" not in line]
            found += self.slurm.run("find", "/tmp", "-maxdepth", "1", "-name", "theworld-*", node=node).split()
        return found


def until(condition: Callable[[], bool], say: Callable[[], str], limit_s: float = 300) -> None:
    end = time.monotonic() + patience(limit_s)
    while not condition():
        assert time.monotonic() < end, say()
        time.sleep(0.3)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with slurm_cluster(2) as slurm:
        make_images(slurm.shared / "images", IMAGES)
        save_mini_world(slurm.shared / "world")
        (slurm.shared / "bin").mkdir()
        ray = shutil.which("ray") or str(Path(sys.executable).parent / "ray")
        for name, words in (("theworld", "-m theworld"), ("python", ""), ("ray", ray)):
            script = slurm.shared / "bin" / name
            script.write_text(f'#!/bin/sh\nexport OMP_NUM_THREADS=1\nexec {sys.executable} {words} "$@"\n')
            script.chmod(0o755)
        for path in slurm.shared.rglob("*"):
            os.chown(path, RESEARCHER, RESEARCHER)
        yield Place(slurm)


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
        with pytest.raises(subprocess.CalledProcessError, match=""):
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


def test_a_job_that_commits_nothing_is_not_requeued_for_ever(place: Place) -> None:
    job = place.submit("fruitless", denoise_steps=SLOW, THEWORLD_MAX_REQUEUE="1")
    for restarts in range(2):
        until(lambda restarts=restarts: len(place.events(job, "started")) > restarts, lambda: place.log(job))
        place.slurm.run("scancel", "--batch", "--signal=TERM", job)
        until(lambda restarts=restarts: len(place.events(job, "interrupted")) > restarts, lambda: place.log(job))
    assert place.slurm.wait(job)["ExitCode"] == "75:0"
    assert "not requeued: it was requeued 1 times" in place.log(job)
    place.assert_nothing_left()


def test_scancel_keeps_what_is_committed_and_the_same_command_goes_on(place: Place) -> None:
    first = place.submit("cancelled", denoise_steps=SLOW)
    place.wait_for_shards(first, 1)
    place.slurm.run("scancel", first)
    assert place.slurm.wait(first)["JobState"] == "CANCELLED"
    place.assert_nothing_left()
    second = place.submit("cancelled", denoise_steps=SLOW)
    assert place.slurm.wait(second)["JobState"] == "COMPLETED", place.log(second)
    place.assert_exact("cancelled", first, second)


def test_before_its_time_is_over_a_job_commits_and_is_requeued(place: Place) -> None:
    job = place.submit("time", "--time=1", "--signal=B:TERM@25", denoise_steps=3 * SLOW)
    until(lambda: place.slurm.job(job)["Restarts"] != "0", lambda: place.log(job), 400)
    assert place.events(job, "interrupted"), place.log(job)
    place.slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30", user=0)
    assert place.slurm.wait(job)["JobState"] == "COMPLETED", place.log(job)
    place.assert_exact("time", job)


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
