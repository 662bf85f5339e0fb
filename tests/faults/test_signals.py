"""Jobs that are ended by signals at random times: no batch that was finished is thrown away, and none is made twice.

Each job is a fork of this process, so that it starts in milliseconds; the world model is a miniature of the real
classes whose batches take a set time. Signals come from the first line of the job on: while it lists, hashes, loads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from theworld.pipeline.errors import Interrupted
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import find_stores, open_store
from theworld.precompute.inputs import sandbox
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.job.signals import Signals
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld

from ..miniatures.image_store import make_images
from ..miniatures.world_model import save_mini_world
from ..patience import patience
from .harness import SEED, amount

BATCH_S, BATCH, IMAGES = 0.03, 2, 40
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def config(folder: Path) -> PrecomputeConfig:
    return PrecomputeConfig(
        images=folder / "in", cache=folder / "cache", world=str(folder / "world"), steps=1, size="32x32",
        denoise_steps=2, compute_dtype="float32", device="cpu", in_process=True, batch_size=BATCH, shard_size=16,
    )  # fmt: skip


def start(folder: Path, log: Path) -> int:
    """Fork a job that notes the keys of every batch it has made; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sandbox.GUARDED = False  # its process takes longer to start than the whole job
        rollout = CosmosWorld.rollout
        lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def noted(self: CosmosWorld, pixels: torch.Tensor, keys: Sequence[str], recipe: Recipe) -> torch.Tensor:
            os.write(lines, f"{json.dumps(['begun', time.time(), list(keys)])}\n".encode())
            latents = rollout(self, pixels, keys, recipe)
            time.sleep(BATCH_S)
            os.write(lines, f"{json.dumps(['made', time.time(), list(keys)])}\n".encode())
            return latents

        CosmosWorld.rollout = noted  # type: ignore[method-assign, assignment]
        with Signals().caught():  # as the command does, before it imports torch
            os.write(lines, b'["ready", 0, []]\n')
            run_precompute(config(folder), progress=Progress.silent())
            os._exit(0)  # signals are still caught: one that comes now comes too late, and does not kill
    except Interrupted as error:
        code = error.exit_code
    except BaseException:
        log.with_suffix(".error").write_text(traceback.format_exc())
        code = 1
    finally:
        os._exit(code)


def events(log: Path) -> list[tuple[str, float, list[str]]]:
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    save_mini_world(tmp_path / "world")
    make_images(tmp_path / "in", IMAGES)
    return tmp_path


def ended(pid: int) -> int:
    deadline = time.monotonic() + patience(60)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


@pytest.mark.usefixtures("hears_signals")
def test_no_signal_at_any_time_costs_a_finished_batch(folder: Path, figure: Callable[[str], None]) -> None:
    draw = random.Random(SEED)
    began, jobs, lost, after, codes = time.monotonic(), 0, 0, 0, dict[int, int]()
    whole_s = 1.5
    for _ in range(amount("SIGNALS", 8)):
        log, number = folder / f"log-{jobs}", draw.choice(ENDING)
        jobs += 1
        pid = start(folder, log)
        while not events(log):
            time.sleep(0.001)
        time.sleep(draw.random() ** 2 * whole_s)
        sent = time.time()
        os.kill(pid, number)
        code = ended(pid)
        codes[code] = codes.get(code, 0) + 1
        error = log.with_suffix(".error")
        assert code in (0, 75), (code, number, error.read_text() if error.exists() else "")
        made = events(log)
        after = max(after, sum(1 for what, at, _ in made if what == "begun" and at > sent))
        stores = find_stores(folder / "cache") if (folder / "cache").is_dir() else []
        kept: set[str] = set(open_store(stores[0]).keys) if stores else set()
        lost += sum(1 for what, _, keys in made if what == "made" and not set(keys) <= kept)
        if code == 0:  # all is made: begin anew
            check_exact(folder)
            (folder / "cache").rename(folder / f"done-{jobs}")
    assert ended(start(folder, folder / "log-last")) == 0
    check_exact(folder)
    figure(
        f"signals: {jobs} jobs ended at random times, exit codes {codes}, {lost} finished batches lost, at most "
        f"{after} batches begun after a signal, seed {SEED}, {time.monotonic() - began:.0f} s"
    )
    assert lost == 0
    assert after <= 1, "more than the batch in hand was made after a signal"


def check_exact(folder: Path) -> None:
    """Every input has one latent, and nothing was made twice."""
    store = open_store(find_stores(folder / "cache")[0])
    rows: Any = sum(shard.rows for shard in store.shards.values())
    assert (len(store), rows, store.damage) == (IMAGES, IMAGES, ())
