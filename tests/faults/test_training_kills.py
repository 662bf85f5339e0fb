"""Trainings killed at random times and resumed end in the files an undisturbed one leaves, bit by bit.

A training is a forked process, killed with SIGKILL at a random moment and begun again with what it left, until one came
to its end before its kill. Only kills that met a training in the middle count.
"""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from theworld.train.runs.partial import is_partial, resumed_config
from theworld.train.training import loop
from theworld.train.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from theworld.train.training.train import train

from ..miniatures.training import lay_out, same, settings
from .harness import SEED, amount, finish, start

Tell = Callable[[str], None]


def work(house: Path, changes: dict[str, Any], tell: Tell) -> None:
    """Begin, or go on with, the run `killed`."""
    out = house / "killed"
    tell("begun")
    if not is_partial(out):
        train(settings(house, out=out, **changes))
    else:
        path = out.with_name("killed.partial")
        train(resumed_config(path, {}), resume=path)
    tell("end")


def kill_at_random(house: Path, changes: dict[str, Any], whole: float, draw: random.Random) -> tuple[int, int]:
    """One training, killed until it ends; returns kills, and how many of them left a checkpoint behind."""
    kills = with_checkpoint = 0
    while not (house / "killed").exists():
        child = start(lambda tell: work(house, changes, tell))
        time.sleep(draw.uniform(0.0, 0.9 * whole))
        words = finish(*child, kill=True)
        if words[-1:] != ["end"] and not (house / "killed").exists():
            kills += 1
            checkpoint = house / "killed.partial" / "checkpoint.safetensors"
            if checkpoint.exists():
                read_checkpoint(checkpoint)  # whole, whenever the kill came
                with_checkpoint += 1
    shutil.rmtree(house / "killed.partial", ignore_errors=True)
    return kills, with_checkpoint


KINDS: tuple[dict[str, Any], ...] = (
    {"checkpoint_every": 1},
    {"checkpoint_every": 3, "micro_batch": 2, "group_by_length": True},
    {"checkpoint_every": 2, "validate_every": 2, "checkpoint_minutes": 0.0},
)


@pytest.mark.slow
def test_a_training_killed_at_random_is_the_one_that_was_not(tmp_path: Path, figure: Callable[[str], None]) -> None:
    runs, draw, began = amount("TRAININGS", 3), random.Random(SEED), time.monotonic()
    house = lay_out(tmp_path, validation=3)
    train(settings(house, out=house / "warm"))  # or every process would load the libraries again
    kills = held = 0
    for run in range(runs):
        changes = {"train_steps": 24, "seed": run, **KINDS[run % len(KINDS)]}
        started = time.monotonic()
        train(settings(house, out=house / "straight", **changes))
        found = kill_at_random(house, changes, time.monotonic() - started, draw)
        kills, held = kills + found[0], held + found[1]
        assert same(house / "straight", house / "killed"), f"run {run} differs after {found[0]} kills"
        for name in ("straight", "killed"):
            shutil.rmtree(house / name)
    took = time.monotonic() - began
    figure(f"trainings killed and resumed: {runs}, {kills} kills ({held} past a checkpoint), all equal, {took:.0f} s")
    assert kills >= runs


@pytest.mark.slow
def test_the_kills_notice_a_resume_that_forgets_the_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "put_optimizer_state", lambda *_: None)
    house = lay_out(tmp_path)
    changes = {"train_steps": 24, "checkpoint_every": 1}
    train(settings(house, out=house / "straight", **changes))

    def die_late(house: Path) -> None:
        def and_die(path: Path, checkpoint: Checkpoint) -> None:
            write_checkpoint(path, checkpoint)
            if checkpoint.state["update"] == 12:
                os.kill(os.getpid(), 9)

        loop.write_checkpoint = and_die
        train(settings(house, out=house / "killed", **changes))

    child, pipe = start(lambda _: die_late(house))
    os.close(pipe)
    os.waitpid(child, 0)
    finish(*start(lambda tell: work(house, changes, tell)))
    assert not same(house / "straight", house / "killed")
