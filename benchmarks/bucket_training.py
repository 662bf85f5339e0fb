"""How long a training waits for latents from a bucket, for benchmarks/bucket.py.

Real updates of the training loop (updates.py), in blocks of shards as `theworld train` orders them, on a server that
waits 30 ms a request. Waiting is the loop's own count, with and without its first batch, which nothing can read ahead.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from theworld.pipeline import LatentSpec, Recipe, create_store, open_store
from theworld.pipeline.store.reading.shard_cache import ShardCache
from theworld.train import LatentDataset
from theworld.train.data.batches import pack
from theworld.train.training.inputs import TrainData

from .bucket_server import BUCKET, server_of
from .store_ways import Figures
from .subjects import SETTINGS, STEPS, Setting, examples, key_of, rollouts, world_model
from .updates import Turn, take_turn

WAYS = ("disk", "cold local cache", "warm local cache")
TRAINED = ("worldlet", "wide latents")
LATENCY_S = 0.03
SHARD, WINDOW, QUESTIONS = 64, 8, 5


class _Timed(TrainData):
    """Notes how long the first batch of a training took."""

    first_s: ClassVar[list[float]] = []

    def batches(self, *given: Any, **named: Any) -> Generator[dict[str, Tensor]]:
        began = time.monotonic()
        with closing(TrainData.batches(self, *given, **named)) as batches:
            first = next(batches)
            self.first_s[:] = [time.monotonic() - began]
            yield first
            yield from batches


@dataclass(frozen=True, slots=True)
class _Waits:
    turn: Turn
    updates: int
    first_s: float
    """Until the first batch was there."""

    @property
    def later(self) -> float:
        """The share of the time in which the loop had no batch, the first one left out."""
        return self.turn.waited - self.first_s / (self.updates * self.turn.middle)


def training(folder: Path, *, rounds: int, quick: bool) -> list[Figures]:
    """A row of figures a setting and a way."""
    torch.set_num_threads(1)
    figures: list[Figures] = []
    for name in TRAINED:
        updates = 12 if quick else 48
        figures += _setting(folder / name.replace(" ", "-"), name, updates, rounds)
    return figures


def _setting(folder: Path, name: str, updates: int, rounds: int) -> list[Figures]:
    setting = SETTINGS[name]
    count = setting.images * updates
    path = write(folder, setting, count)
    lm, model = world_model(setting)
    rows = pack(examples(count, QUESTIONS), QUESTIONS)
    shards = Path(tempfile.mkdtemp(prefix="theworld-shards-", dir=folder))
    try:
        with server_of(folder) as server:
            server.set_latency(LATENCY_S)

            def train(way: str) -> _Waits:
                if way == "cold local cache":
                    shutil.rmtree(shards)
                store = open_store(path if way == "disk" else f"s3://{BUCKET}/cache")
                store.use_local_cache(ShardCache(shards), window=WINDOW)
                if way == "warm local cache":  # by another process, so to say: this one has to find its shards
                    other = open_store(f"s3://{BUCKET}/cache")
                    other.use_local_cache(ShardCache(shards), window=WINDOW)
                    other.read_rows(other.rows[::SHARD], other.buffer(-(-count // SHARD)))
                data = _Timed(rows, LatentDataset(store))
                order = {"shuffle": "blocks", "shuffle_window": WINDOW}
                return _Waits(take_turn(lm, model, data, setting.images, updates, **order), updates, *data.first_s)

            turns: dict[str, list[_Waits]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in random.sample(WAYS, len(WAYS)):
                    turns[way].append(train(way))
    finally:
        shutil.rmtree(shards, ignore_errors=True)
    losses = [turn.turn.loss for each in turns.values() for turn in each]
    assert max(losses) - min(losses) < 1e-3, f"the ways read different latents: {losses}"
    return [
        {
            "setting": f"{name}, {setting.world_tokens} tokens",
            "way": f"{name}, {way}",
            "latents from": way,
            "updates": updates,
            "ms an update": 1e3 * statistics.median(turn.turn.middle for turn in turns[way]),
            "first batch ms": 1e3 * statistics.median(turn.first_s for turn in turns[way]),
            "waits, %": 100 * statistics.median(turn.turn.waited for turn in turns[way]),
            "without the first batch, %": 100 * statistics.median(turn.later for turn in turns[way]),
        }
        for way in WAYS
    ]


def write(folder: Path, setting: Setting, count: int) -> Path:
    """A store of so many random rollouts below `folder/cache`; its path."""
    spec = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
    side = 8 * setting.side
    recipe = Recipe(world="sha256:" + "0" * 64, height=side, width=side, rollout_steps=STEPS)
    store = create_store(folder / "cache", recipe, spec, label="benchmark", shard_size=SHARD)
    latents = rollouts(setting, count).numpy()
    for start in range(len(store), count, SHARD):
        with store.new_shard() as shard:
            for number in range(start, min(start + SHARD, count)):
                shard.add(key_of(number), latents[number])
            shard.commit({})
    store.publish()
    return store.path
