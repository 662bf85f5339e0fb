"""Real jobs over a real Ray whose workers, raylets, GCS and drivers are killed: the set is exact in the end.

`fault_store` stands for the world model. After all kills the same command runs undisturbed, and then: visible is what
was planned, less what is in the ledger; each payload is right; nothing is there twice; one more run does no work.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import find_stores, open_store
from theworld.precompute.job.run import run_precompute

from ..patience import patience
from .fault_store import ABORTING, config_of, latent_of
from .harness import SEED, amount, check_payload

LIMIT_S = patience(240)
"""For a run to end by itself, on a machine that is busy with other things."""
ROOT = Path(__file__).parents[2]


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(SEED)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:05d}.png")
    return folder


class Run:
    """One driver process and what became of it."""

    def __init__(self, images: Path, cache: Path, *, workers: int = 2, **environment: str) -> None:
        self.events = cache.parent / "events"
        command = [sys.executable, "-m", "tests.faults.fault_store", images, cache, self.events, workers]
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def count_events(self, name: str = "") -> int:
        return self.events.read_text().count(f'"event": "{name}') if self.events.exists() else 0

    def wait_until(self, done: Callable[[], bool]) -> bool:
        """False where the run ended before."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            if done():
                return True
            assert time.monotonic() < deadline, f"nothing happens: {self.end(kill=True)}"
            time.sleep(0.01)
        return False

    def at_work(self, shards: int = 1) -> bool:
        """Wait until so many more shards are done; False where the run ended before."""
        before = self.count_events("shard")
        return self.wait_until(lambda: self.count_events("shard") >= before + shards)

    def children(self, name: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if child.name().startswith(name):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def end(self, *, kill: bool = False) -> tuple[int, dict[str, Any]]:
        """Exit code and what it printed; `kill` kills it first."""
        if kill:
            self.process.kill()
        said, errors = self.process.communicate(timeout=LIMIT_S)
        try:
            return self.process.returncode, json.loads(said.splitlines()[-1])
        except (IndexError, ValueError):
            return self.process.returncode, {"stderr": errors[-2000:]}


def check_exact(images: Path, cache: Path, *, quarantined: Collection[str] = ()) -> dict[str, Any]:
    """Run undisturbed, judge everything, and run once more for nothing."""
    code, report = Run(images, cache).end()
    assert code == 0, report
    [path] = find_stores(cache)
    store = open_store(path)
    planned = {path.name: key_of_file(path) for path in images.iterdir()}
    assert {failure.source for failure in store.failures()} == set(quarantined)
    assert set(store.keys) == {key for name, key in planned.items() if name not in quarantined}
    assert len(store.keys) == len(set(store.keys))
    assert store.damage == ()
    for key, latent in zip(store.keys, store.read(store.keys), strict=True):
        np.testing.assert_array_equal(latent, latent_of(key))
    for record in store.records():
        check_payload(store.payload_path(record.shard), record)
    rows = sum(record.rows for record in store.records())
    # in this process, as nothing is left for which Ray would start
    second = run_precompute(config_of(images, cache, cache.parent / "events"))
    assert (second.written, len(second.plan.todo)) == (0, 0)
    return {"samples": len(store), "made twice": rows - len(store)}


@pytest.fixture
def folder() -> Any:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.slow
def test_workers_drivers_and_parts_of_ray_that_are_killed_lose_and_double_nothing(
    folder: Path, figure: Callable[[str], None]
) -> None:
    workers, drivers, raylets = (amount(name, 1) for name in ("WORKER_KILLS", "DRIVER_KILLS", "RAYLET_KILLS"))
    draw, began = random.Random(SEED), time.monotonic()
    images, cache = make_images(folder / "in", 60 + 20 * (workers + drivers + 2 * raylets)), folder / "cache"
    # workers die inside runs, and each run ends by a kill of its driver, or of a part of its Ray
    ends = ["driver"] * drivers + ["raylet", "gcs_server"] * raylets
    ends = draw.sample(ends, len(ends))
    left, killed = workers, {"worker": 0, "driver": 0, "raylet": 0, "gcs_server": 0}
    for position, end in enumerate(ends):
        run = Run(images, cache)
        share = math.ceil(left / (len(ends) - position))
        for _ in range(share):
            if not run.at_work(draw.randint(1, 3)):
                break
            if victims := run.children("ray::FaultWorker"):
                draw.choice(victims).kill()
                killed["worker"] += 1
                left -= 1
        if not run.at_work():
            code, report = run.end()
            assert code == 0, report
            break
        killed[end] += 1
        if end == "driver":
            run.end(kill=True)
            continue
        started = time.monotonic()
        run.children(end)[0].kill()
        code, report = run.end()
        assert time.monotonic() - started < patience(60), "it took its time to notice"
        assert code == 75, report
        assert f"{end} died" in report["error"]
        assert "run the same command again" in report["error"].lower()
    found = check_exact(images, cache)
    figure(
        f"jobs: {killed} killed of {workers, drivers, raylets}, {found}, seed {SEED}, {time.monotonic() - began:.0f} s"
    )
    assert killed["worker"] >= workers // 2
    ended = sum(killed.values()) - killed["worker"]
    assert ended >= len(ends) // 2
    assert found["made twice"] <= 8 * ended, "more was repeated than was in flight"


@pytest.mark.slow
def test_an_input_that_kills_its_worker_is_found_and_no_stale_cluster_is_joined(folder: Path) -> None:
    images = make_images(folder / "in", 63)
    Image.new("RGB", (9, 9)).save(images / f"{ABORTING}.png")
    # what a crashed `ray start` and a forgotten shell leave behind
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    left = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_TMPDIR": str(folder)}
    run = Run(images, folder / "cache", **left)
    code, report = run.end()
    assert code == 0, report
    assert (report["written"], report["reasons"]) == (63, {"rollout": 1})
    # shards of four, and another may have been in flight with it: some are tried again, by themselves, and succeed
    assert report["retries"] <= 2 + math.log2(4) + 3
    [failure] = open_store(folder / "cache").failures()
    assert failure.source == f"{ABORTING}.png"
    check_exact(images, folder / "cache", quarantined={failure.source})


SIGNALS = [(signal.SIGTERM, True), (signal.SIGUSR1, False), (signal.SIGINT, True), (signal.SIGHUP, True)]
"""Each, and whether all processes of the job get it, as from a terminal, a service manager or a batch system. The quick
part tries one of either; tests/faults/test_signals.py sends all of them, to a job in one process."""


@pytest.mark.slow
@pytest.mark.usefixtures("hears_signals")
def test_a_signal_ends_a_run_in_order_and_the_same_command_goes_on(folder: Path) -> None:
    images, cache = make_images(folder / "in", 240), folder / "cache"
    done = 0
    for number, to_all in SIGNALS[: amount("JOB_SIGNALS", 2)]:
        run = Run(images, cache)
        assert run.at_work(3), number.name
        of_ray = run.children("")
        if to_all:
            os.killpg(run.process.pid, number)
        else:
            run.process.send_signal(number)
        code, report = run.end()
        assert not [each for each in of_ray if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        assert not [*Path(tempfile.gettempdir()).glob(f"tw-{run.process.pid}-*")]
        assert code == 75, report
        before, done = done, len(open_store(cache))
        assert done >= before + 12
        assert f"interrupted by {number.name}" in report["error"]
        assert "remain" in report["error"]
        assert json.loads(run.events.read_text().splitlines()[-1])["event"] == "interrupted"
    check_exact(images, cache)
