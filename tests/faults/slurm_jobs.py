"""Jobs of configs/slurm.sh on the cluster of slurm_machines.py, and what is true of each at its end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.slurm_machines import Slurm, slurm_cluster, until
from tests.miniatures.image_store import make_images
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.store.folder import find_stores, open_store
from theworld.pipeline.store.upkeep.verify import verify

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
        path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        return self.slurm.submit(*words, **(path | environment))

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
        until(lambda: not self.slurm.left(), lambda: str(self.slurm.left()))


@contextmanager
def place_to_precompute() -> Iterator[Place]:
    """Two nodes with all that a job needs."""
    with slurm_cluster(2) as slurm:
        make_images(slurm.shared / "images", IMAGES)
        save_mini_world(slurm.shared / "world")
        slurm.install()
        yield Place(slurm)
