"""The whole job against the bare engine, one worker against two, and where a worker's time goes.

    python -m benchmarks.job [--seconds 180] [--only job|workers|encode]

job       The worldlet at its own size, 8 steps. `theworld precompute` with one Ray worker, about `--seconds` long, in
          turns with the engine alone in this process, with as many threads: every 20 s the worker is halted (and its
          halts left out of its time) while the engine has 10 s, so that a machine whose speed changes changes it for
          both; with fewer `--seconds`, turns are shorter. Images a second, loading left out on both sides. Aim: the job
          reaches 0.95 of the engine. Decode is what was waited for.
workers   A world model that sleeps half a second a batch of 8 in place of computing, so that two workers need no second
          processor: images a second of 1 and 2 workers, and of one that gets its next task only when it has ended the
          last. Aim: two make 1.9 times as many.
encode    Kind posterior. An autoencoder sleeps in place of computing, and so does each read of an image, as a large one
          takes its time: decoding alone, encoding alone, and the job in this process, where encoding a batch takes 0.5,
          1 and 2 times as long as decoding it. Decoding alone is measured before and after each job. Aim: the job
          reaches 0.9 of the slower of the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from theworld.pipeline import LatentSpec, Recipe, key_of_bytes
from theworld.pipeline.machine import usable_cores
from theworld.precompute import PrecomputeConfig, list_inputs, run_precompute
from theworld.precompute.inputs.listing.inputs import Sample
from theworld.precompute.job.workers import pool as in_process
from theworld.precompute.job.workers import ray_pool as pools
from theworld.precompute.job.workers.decode_ahead import decode_ahead
from theworld.precompute.job.workers.worker import Worker, WorkerSetup
from theworld.precompute.rollout.kind import Loaded
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.source import resolve_world

BATCH, SIZE, STEPS, DENOISE_STEPS = 8, 64, 8, 10
NAP_S = 0.5
TURN_S = 10.0
READ_S = 0.05


class _Sleeping:
    """Takes as long as a world model on a device of its own would, and computes nothing."""

    def __init__(self, spec: LatentSpec, frames: int, cells: int, nap_s: float) -> None:
        self.spec = spec
        self._shape = spec.channels, frames, cells, cells
        self._nap_s = nap_s

    def rollout(self, images: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        del images, recipe
        time.sleep(self._nap_s)
        return torch.zeros(len(keys), *self._shape)

    def posterior(self, images: Tensor) -> Tensor:
        time.sleep(self._nap_s)
        return torch.zeros(len(images), *self._shape)


class SleepingWorker(Worker):
    """A worker but for its world model."""

    nap_s = NAP_S

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        frames, cells = self._store.sample_shape[1:3]
        self._world = _Sleeping(self._store.spec, frames, cells, self.nap_s)  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="about how long the job runs")
    parser.add_argument("--only", choices=("job", "workers", "encode"))
    parser.add_argument("--decoders", type=int, default=usable_cores(), help="of the job that encodes")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        if options.only in ("job", None):
            measure_job(Path(name), options.seconds)
        if options.only in ("workers", None):
            measure_workers(Path(name), min(options.seconds, 60.0))
        if options.only in ("encode", None):
            measure_encode(Path(name), min(options.seconds, 60.0), options.decoders)


def measure_job(folder: Path, seconds: float) -> None:
    threads = usable_cores()
    torch.set_num_threads(threads)
    engine = Engine()
    engine.run(TURN_S / 2)  # warm
    batches = max(8, round(engine.run(TURN_S).rate * seconds / BATCH))  # whole ones: copies would fill up the last
    images = make_images(folder / "images", batches * BATCH)
    turn_s = min(TURN_S, max(3.0, seconds / 18))
    command = [sys.executable, "-m", "theworld.pipeline.cli", "precompute", str(images), "--json", "--workers", "1"]
    flags = [
        "--steps",
        str(STEPS),
        "--denoise-steps",
        str(DENOISE_STEPS),
        "--size",
        f"{SIZE}x{SIZE}",
        "--batch-size",
        str(BATCH),
        "--device",
        "cpu",
    ]
    events = folder / "events"
    flags += ["--cache", str(folder / "cache"), "--events", str(events)]
    turns: list[Turn] = []
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE) as job:
        while not (events.exists() and '"event": "started"' in events.read_text()) and job.poll() is None:
            time.sleep(0.1)
        halted = 0.0
        while not ended(job, 2 * turn_s):
            processes = psutil.Process(job.pid).children(recursive=True)
            workers = [one for one in processes if one.name().startswith("ray::Worker")]
            if not workers:  # it is about to end
                continue
            [worker] = workers
            halt = time.perf_counter()
            worker.suspend()
            turns.append(engine.run(turn_s))
            worker.resume()
            halted += time.perf_counter() - halt
        assert job.stdout is not None
        report = json.load(job.stdout)
    spent = report["seconds"] - halted
    alone, rate = sum(turn.images for turn in turns) / sum(turn.seconds for turn in turns), report["written"] / spent
    slowest, fastest = min(turn.rate for turn in turns), max(turn.rate for turn in turns)
    print(f"\n{report['written']} images, {spent:.0f} s, {threads} threads\n")
    print("| way | images/s | x engine |\n|---|---|---|")
    print(f"| engine alone ({len(turns)} turns, {slowest:.2f} to {fastest:.2f}) | {alone:.2f} | 1.00 |")
    print(f"| theworld precompute, one Ray worker | {rate:.2f} | {rate / alone:.3f} |\n")
    print("| a worker's time | s | share |\n|---|---|---|")
    for phase, took in {"load": report["load_s"], **report["worker_seconds"]}.items():
        if phase == "rollout":
            took -= halted
        share = "" if phase == "load" else f"{took / spent:.1%}"
        print(f"| {phase} | {took:.2f} | {share} |")


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ends within so long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


@dataclass(frozen=True)
class Turn:
    """What was made in a while."""

    images: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.images / self.seconds


class Engine:
    """The bare engine of the embedded world."""

    def __init__(self) -> None:
        source = resolve_world(None)
        card = source.card
        self._world = CosmosWorld.load(source.folder, compute_dtype=card.compute_dtype)
        self._recipe = Recipe(
            world=source.identity,
            height=SIZE,
            width=SIZE,
            rollout_steps=STEPS,
            denoise_steps=DENOISE_STEPS,
            compute_dtype=card.compute_dtype,
        )
        self._pixels = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self._keys = [key_of_bytes(bytes([i])) for i in range(BATCH)]

    def run(self, seconds: float) -> Turn:
        """About so long."""
        made, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            self._world.rollout(self._pixels, self._keys, self._recipe)
            made += BATCH
        return Turn(made, elapsed)


def measure_workers(folder: Path, seconds: float) -> None:
    pools.worker_class = lambda: SleepingWorker
    images = make_images(folder / "small", max(64, round(seconds * BATCH / NAP_S)))
    rates: dict[str, float] = {}
    ahead = pools.AHEAD
    for name, workers, pools.AHEAD in (
        ("1 worker", 1, ahead),
        ("2 workers", 2, ahead),
        ("1 worker, one task at a time", 1, 1),
    ):
        report = run_precompute(
            PrecomputeConfig(
                images=images,
                cache=folder / name,
                steps=STEPS,
                size=f"{SIZE}x{SIZE}",
                device="cpu",
                workers=workers,
                batch_size=BATCH,
                shard_size=2 * BATCH,  # small, so that what happens between shards shows
            )
        )
        rates[name] = report.written / report.work.seconds
    pools.AHEAD = ahead
    print(f"\n{len(list(images.iterdir()))} images, {NAP_S} s a batch of {BATCH}, shards of {2 * BATCH}\n")
    print("| sleeping world | images/s | x 1 worker | of the world model's own |\n|---|---|---|---|")
    for name, rate in rates.items():
        own = rate / (BATCH / NAP_S * (2 if name.startswith("2") else 1))
        print(f"| {name} | {rate:.2f} | {rate / rates['1 worker']:.2f} | {own:.3f} |")


class SlowReader(SleepingWorker):
    """Its decoders take as long for an image as for a large one."""

    def _load(self, sample: Sample) -> Loaded:
        time.sleep(READ_S)
        return super()._load(sample)


def measure_encode(folder: Path, seconds: float, decoders: int) -> None:
    in_process.worker_class = lambda: SlowReader
    settings: dict[str, Any] = {
        "kind": "posterior",
        "size": f"{SIZE}x{SIZE}",
        "device": "cpu",
        "in_process": True,
        "batch_size": BATCH,
        "decoders": decoders,
    }
    few = make_images(folder / "few", 2 * BATCH)
    store = run_precompute(PrecomputeConfig(images=few, cache=folder / "cache", **settings)).store
    setup = WorkerSetup(world_folder=None, store=str(store), device="cpu", batch_size=BATCH, decoders=decoders)
    worker = SlowReader(setup)
    images = make_images(folder / "many", BATCH * max(8, round(seconds * decoders / READ_S / 12 / BATCH)))
    samples = list_inputs(images, KINDS["posterior"]).samples

    def decode_s() -> float:
        started = time.perf_counter()
        for _ in decode_ahead(samples, worker._load, lambda: BATCH, decoders):
            pass
        return (time.perf_counter() - started) / len(samples)

    decode_s()  # warm
    print(f"\n{len(samples)} images, {READ_S} s to read each, batches of {BATCH}, {decoders} decoders; ms an image\n")
    print("| encode alone | decode alone, before and after | the job | of the rate of the slower |\n|---|---|---|---|")
    for factor in (0.5, 1.0, 2.0):
        before = decode_s()
        SleepingWorker.nap_s = factor * before * BATCH
        report = run_precompute(PrecomputeConfig(images=images, cache=folder / f"{factor}", **settings))
        after = decode_s()
        encode, job = SleepingWorker.nap_s / BATCH, report.work.seconds / report.written
        share = max(encode, statistics.mean((before, after))) / job
        print(f"| {encode * 1e3:.1f} | {before * 1e3:.1f}, {after * 1e3:.1f} | {job * 1e3:.1f} | {share:.3f} |")


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{number:06d}.png")
    return folder


if __name__ == "__main__":
    main()
