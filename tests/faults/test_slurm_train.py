"""configs/slurm_train.sh on a real SLURM: torchrun on two hosts, a signal, a dead process, another number of processes.

The machines are namespaces of this one, as in test_slurm.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.slurm_machines import Slurm, slurm_cluster, until, why_not
from tests.miniatures.lm import SMALL_TRAINING
from tests.miniatures.training import lay_out
from theworld.train.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ROOT = Path(__file__).parents[2]
UPDATES = 60


@dataclass
class Place:
    """A cluster with a store, questions and a language model on it."""

    slurm: Slurm

    def submit(self, run: str, *settings: object, nodes: int = 2) -> int:
        """`sbatch configs/slurm_train.sh` on nodes without GPUs: a process on each, three updates a second."""
        words: list[object] = ["--gpus-per-node=0", "--cpus-per-task=1", f"--nodes={nodes}"]
        words += [ROOT / "configs" / "slurm_train.sh", f"runs/{run}", "cache", "--questions", "cache/questions.jsonl"]
        said = SMALL_TRAINING | {"batch_size": 24, "micro_batch": 1, "train_steps": UPDATES, "checkpoint_every": 2}
        for name, value in said.items():
            words += [f"--{name.replace('_', '-')}", value]
        words += ["--lm", "lm", "--lora-dropout", 0, *settings]
        return self.slurm.submit(*words, PYTHONPATH=os.environ.get("PYTHONPATH", ""))

    def log(self, job: int) -> str:
        file = self.slurm.shared / f"theworld-{job}.log"
        return (file.read_text() if file.exists() else "") + self.slurm.logs()

    def update(self, run: str) -> int:
        """The update of the last checkpoint."""
        file = self.slurm.shared / "runs" / f"{run}.partial" / "checkpoint.safetensors"
        return int(read_checkpoint(file).state["update"]) if file.exists() else 0

    def wait_for_update(self, job: int, run: str, after: int) -> None:
        until(lambda: self.update(run) > after, lambda: self.log(job))

    def metrics(self, run: str) -> dict[str, object]:
        return json.loads((self.slurm.shared / "runs" / run / "metrics.json").read_text())

    def assert_nothing_left(self) -> None:
        until(lambda: not self.slurm.left(), lambda: str(self.slurm.left()))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with slurm_cluster(2) as slurm:
        lay_out(slurm.shared, images=60)
        slurm.install()
        yield Place(slurm)


def test_a_signal_and_a_scancel_and_then_one_host_instead_of_two(place: Place) -> None:
    job = place.submit("signal")
    place.wait_for_update(job, "signal", 0)
    place.slurm.run("scancel", "--batch", "--signal=TERM", job)
    until(lambda: place.slurm.job(job)["Restarts"] == "1", lambda: place.log(job))
    stopped = place.update("signal")
    log = place.log(job)
    assert log.count("SIGUSR1: stopping after this update, with a checkpoint") == 1, log  # not once a process
    assert f"stopped after update {stopped} (SIGUSR1)" in log
    assert "exitcode  : 75" in log
    assert "torchrun ended with 1" in log
    assert "requeued: it resumes from the last checkpoint" in log

    place.wait_for_update(job, "signal", stopped)
    place.slurm.run("scancel", job)
    assert place.slurm.wait(job)["JobState"] == "CANCELLED"
    place.assert_nothing_left()

    again = place.submit("signal", nodes=1)
    assert place.slurm.wait(again)["JobState"] == "COMPLETED", place.log(again)
    metrics = place.metrics("signal")
    assert (metrics["train_steps"], metrics["processes"], metrics["resumed"]) == (UPDATES, 1, 2)
    place.assert_nothing_left()


@pytest.mark.parametrize("what", ["process", "node"])
def test_when_a_process_or_a_node_dies_the_job_goes_on_from_the_last_checkpoint(place: Place, what: str) -> None:
    job = place.submit(what)
    place.wait_for_update(job, what, 0)
    if what == "process":
        place.slurm.run("pkill", "-KILL", "-f", "^[^ ]+ -u -m theworld", node="n2")
    else:
        place.slurm.kill_node("n2")
    until(lambda: place.slurm.job(job)["Restarts"] == "1", lambda: place.log(job))
    if what == "process":
        assert "Signal 9 (SIGKILL)" in place.log(job)
        assert "another process of this training does not answer any more, in update" in place.log(job)
    else:
        place.slurm.start_node_again("n2")
    assert place.slurm.wait(job)["JobState"] == "COMPLETED", place.log(job)
    metrics = place.metrics(what)
    assert (metrics["train_steps"], metrics["processes"], metrics["resumed"]) == (UPDATES, 2, 1)
    place.assert_nothing_left()


def test_a_training_that_cannot_begin_is_not_requeued(place: Place) -> None:
    job = place.submit("wrong", "--steps", 99)
    assert place.slurm.wait(job)["JobState"] == "FAILED"
    assert place.slurm.job(job)["Restarts"] == "0"
    assert "--steps 99 asks for more than cache holds" in place.log(job)
    assert "not requeued: this attempt left no new checkpoint" in place.log(job)
    place.assert_nothing_left()
