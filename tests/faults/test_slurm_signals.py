"""Jobs of configs/slurm.sh ended by signals at random times: nothing is lost or made twice, and both nodes work.

Each worker notes every batch it begins and has made, so that the store can be compared with what was made.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.harness import SEED, amount
from tests.faults.slurm_jobs import IMAGES, Place, place_to_precompute
from tests.faults.slurm_machines import until, why_not
from theworld.pipeline.store.folder import find_stores, open_store

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

STEPS = 400
"""Diffusion steps: a batch takes one to three seconds."""
START_S, BATCH_S = 20, 1.5
"""What a job takes until its first batch, and a batch, about: to draw moments from."""

NOTES = '''
import importlib.abc, importlib.util, json, os, sys, time

class Notes(importlib.abc.MetaPathFinder):
    """Notes the batches of the world model in a file that all nodes share."""

    def find_spec(self, name, path, target=None):
        if name != "theworld.precompute.worlds.cosmos.predict2":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_note(module):
            execute(module)
            rollout = module.CosmosWorld.rollout

            def noted(world, pixels, keys, recipe):
                note("begun", keys)
                latents = rollout(world, pixels, keys, recipe)
                note("made", keys)
                return latents

            module.CosmosWorld.rollout = noted

        spec.loader.exec_module = execute_and_note
        return spec

def note(what, keys):
    line = json.dumps([what, time.time(), os.uname().nodename, list(keys)])
    with open(os.environ["BATCHES"], "a") as file:
        file.write(line + "\\n")

if "BATCHES" in os.environ:
    sys.meta_path.insert(0, Notes())
'''
"""sitecustomize.py of the jobs: Ray starts the workers, from the package that it ships."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with place_to_precompute() as place:
        folder = place.slurm.shared / "notes"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(NOTES)
        yield place


def batches(file: Path) -> list[tuple[str, float, str, list[str]]]:
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def kept(place: Place, cache: str) -> set[str]:
    folder = place.slurm.shared / cache
    stores = find_stores(folder) if folder.is_dir() else []
    return set(open_store(stores[0]).keys) if stores else set()


def submit(place: Place, cache: str) -> tuple[int, Path]:
    """A job that is never requeued, and the file of its batches."""
    file = place.slurm.shared / f"batches-{time.monotonic_ns()}"
    path = f"{place.slurm.shared}/notes:{os.environ.get('PYTHONPATH', '')}"
    job = place.submit(cache, denoise_steps=STEPS, THEWORLD_MAX_REQUEUE="0", BATCHES=str(file), PYTHONPATH=path)
    return job, file


def test_no_signal_at_any_time_costs_a_finished_batch_on_either_node(
    place: Place, figure: Callable[[str], None]
) -> None:
    draw, began = random.Random(SEED), time.monotonic()
    jobs = on_both = started = after = lost = twice = 0
    codes, made_before, cache = dict[str, int](), set[str](), "cache-0"
    for _ in range(amount("SLURM_SIGNALS", 3)):
        job, file = submit(place, cache)
        jobs += 1
        place.slurm.wait(job, "RUNNING", "COMPLETED", "FAILED")
        if draw.random() < 0.3:  # while the job starts
            time.sleep(draw.random() * START_S)
        else:
            count = draw.randint(1, IMAGES)  # notes: two a batch, and two images in each
            until(
                lambda: len(batches(file)) >= count or place.slurm.job(job)["JobState"] != "RUNNING",  # noqa: B023
                lambda: place.log(job),  # noqa: B023
            )
            time.sleep(draw.random() * BATCH_S)
        sent = time.time()
        words = draw.choice([("--batch", "--signal=TERM"), ()])
        if place.slurm.job(job)["JobState"] == "RUNNING":
            place.slurm.run("scancel", *words, job)
        ended = place.slurm.wait(job)
        code = f"{ended['JobState']} {ended['ExitCode']}"
        codes[code] = codes.get(code, 0) + 1
        log = place.log(job)
        assert code in ("COMPLETED 0:0", "FAILED 75:0") or ended["JobState"] == "CANCELLED", log
        until(lambda: not place.slurm.left(), lambda: str(place.slurm.left()))
        noted = batches(file)
        for host in ("n1", "n2"):
            begun_after = [at for what, at, on, _ in noted if (what, on) == ("begun", host) and at > sent]
            after = max(after, len(begun_after))
        made = [key for what, _, _, keys in noted if what == "made" for key in keys]
        now = kept(place, cache)
        lost += len(set(made) - now)
        twice += len(made) - len(set(made)) + len(set(made) & made_before)
        made_before |= set(made) & now
        for event in place.events(job, "started"):
            started += 1
            on_both += {one["host"] for one in event["where"]} == {"n1", "n2"}  # type: ignore[index, attr-defined]
        if len(now) == IMAGES:  # all is made: begin anew
            cache, made_before = f"cache-{jobs}", set()
    job, _ = submit(place, cache)
    assert place.slurm.wait(job)["JobState"] == "COMPLETED", place.log(job)
    assert len(kept(place, cache)) == IMAGES
    figure(
        f"signals on SLURM: {jobs} jobs ended at random times, {codes}, {lost} finished latents lost, {twice} made "
        f"twice, at most {after} batches begun on a node after a signal was sent, {on_both} of {started} started jobs "
        f"on both nodes, seed {SEED}, {time.monotonic() - began:.0f} s"
    )
    assert (lost, twice) == (0, 0)
    assert on_both == started
    assert after <= 2
