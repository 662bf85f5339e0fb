"""A worker that is fast to start and to kill: real job, Ray and store around it, and a latent made of its key alone.

As a program it is a driver that can be killed:
python -m tests.faults.fault_store IMAGES CACHE EVENTS WORKERS [--address A] [--nodes N] [--pause S]
Actors import this file, so nothing heavy stands at its top.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from theworld import pipeline
from theworld.pipeline.errors import ImageError, TheWorldError
from theworld.pipeline.failures import FailureReason
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.workers.ray_local import StopSign

if TYPE_CHECKING:
    from theworld.precompute.job.config import PrecomputeConfig

PAUSE_S = 0.05
"""A shard's work: the time in which to be killed."""
ABORTING = "abort"
"""Start of the name of an input that takes its worker with it."""
SHAPE = (16, 1, 2, 2)


class FaultSample(NamedTuple):
    source: str
    key: str
    path: str


@dataclass(frozen=True)
class FaultReceipt:
    written: int
    undone: int = 0
    elsewhere: int = 0
    failures: tuple[Any, ...] = ()
    bytes_written: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    unrated_s: float = 0.0
    batch_size: int = 8
    batches: int = 1
    device: str = "fault"
    peak_bytes: int | None = None


class FaultWorker:
    """Called like a `Worker`: writes shards of latents made of the keys, and ends its process where a name says so."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._store = open_store(Path(setup["store"]), tolerate_damage=True)
        self._stop_sign = StopSign(setup["stop_sign"])
        self._pause_s = setup["pause_s"]

    def load_s(self) -> float:
        return 0.0

    def check_in(self, sample: FaultSample) -> dict[str, str]:
        if not Path(sample.path).is_file():
            raise ImageError(FailureReason.MISSING, f"{sample.path} cannot be read")
        return {"host": socket.gethostname(), "package": str(*pipeline.__path__), "raylet": str(os.getppid())}

    def process(
        self, samples: Sequence[FaultSample], shard_number: int | None, fitted: Mapping[str, int] | None = None
    ) -> FaultReceipt:
        del fitted
        """In batches of one, as far as a real worker goes."""
        with self._store.new_shard(shard_number) as shard:
            for sample in samples:
                if self._stop_sign.is_up():
                    break
                if sample.source.startswith(ABORTING):
                    os.abort()
                time.sleep(self._pause_s / len(samples))
                shard.add(sample.key, latent_of(sample.key))
            written = len(shard)
            if written:
                shard.commit({"host": "fault"})
        return FaultReceipt(written=written, undone=len(samples) - written, seconds={"rollout": PAUSE_S})


def latent_of(key: str) -> NDArray[np.float32]:
    """The latent of a key: of values that every stored dtype holds exactly, another for each key."""
    return np.random.default_rng(int(key, 16)).integers(-2048, 2048, SHAPE).astype(np.float32) / np.float32(256)


def config_of(images: Path, cache: Path, events: Path, *, workers: int = 2) -> PrecomputeConfig:
    """The job that a driver runs, on this machine."""
    from theworld.precompute.job.config import PrecomputeConfig

    return PrecomputeConfig(
        images=images,
        cache=cache,
        steps=0,
        size="16x16",
        device="cpu",
        workers=workers,
        shard_size=4,
        events=events,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("events", type=Path)
    parser.add_argument("workers", type=int)
    parser.add_argument("--address")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--pause", type=float, default=PAUSE_S)
    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")  # what a person would see

    from theworld.precompute.inputs.listing.inputs import Sample
    from theworld.precompute.job.run import run_precompute
    from theworld.precompute.job.workers import ray_pool as pools

    pools.worker_class = lambda: FaultWorker  # type: ignore[assignment, return-value]
    pools._ray_setup = lambda setup, _: {**setup, "pause_s": options.pause}  # type: ignore[assignment]
    # an actor that unpickles a Sample imports torch, which takes longer than all it does here
    reduced = lambda sample: (FaultSample, (sample.source, sample.key, str(sample.location.path)))  # noqa: E731
    Sample.__reduce__ = reduced  # type: ignore[method-assign]
    config = config_of(options.images, options.cache, options.events, workers=options.workers)
    config = config.model_copy(update={"address": options.address, "nodes": options.nodes})
    try:
        print(json.dumps(run_precompute(config).to_json()), flush=True)
    except TheWorldError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    from tests.faults import fault_store  # so that actors find its classes by this name, and not in __main__

    fault_store.main()
