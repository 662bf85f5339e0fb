"""Training from the store against rollouts in the loop: the same questions, batches, order and loss.

    python -m benchmarks.train --only live [--updates 8] [--rounds 3]

The embedded world rolls 48 of its own scenes forward once per setting; then the same few updates are trained from the
store and with rollouts in the loop, in turn. Seconds are those of the loop (metrics.json): no start, no checks. Both
sides have the same threads; the store's reader has two more, which wait. The losses of the first update must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from theworld.pipeline import LatentStore, open_store
from theworld.precompute import PrecomputeConfig, run_precompute
from theworld.precompute.live.batches import LiveBatches
from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.train import TrainConfig, train

SCENES, BATCH, DENOISE_STEPS = 48, 8, 10
SETTINGS = (5, 9)
"""T, latent frames of a rollout."""
_AGREE = 1e-3


def main(options: argparse.Namespace) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        questions = write_scenes(folder / "scenes", splits={"train": SCENES}, seed=0, families=["buckets"], jobs=1)
        stores = {frames: _store(questions.parent / "images", folder / f"T{frames}", frames) for frames in SETTINGS}
        load = os.getloadavg()[0]
        print(f"\n{BATCH} images an update, {torch.get_num_threads()} thread(s), load {load:.1f} before\n")
        print("| T | from the store, updates/s | rollouts in the loop | ratio | rollout s an image | loss differs by |")
        print("|---|---|---|---|---|---|")
        for frames, store in stores.items():
            seconds: dict[str, list[float]] = {"store": [], "live": []}
            first: dict[str, float] = {}
            live = LiveBatches(store, questions.parent / "images", size=BATCH, device="cpu")
            rolled = images = 0.0
            for turn in range(options.rounds):
                for way in seconds:
                    out = folder / f"{way}{frames}-{turn}"
                    config = TrainConfig(
                        store=store.path, questions=questions, train_steps=options.updates, batch_size=BATCH,
                        device="cpu", out=out,
                    )  # fmt: skip
                    train(config, live=live if way == "live" else None)
                    metrics = json.loads((out / "metrics.json").read_text())
                    seconds[way].append(metrics["seconds"])
                    first[way] = metrics["loss"][0]["loss"]
                    if facts := metrics.get("rolled_out_live"):
                        rolled, images = rolled + facts["seconds"], images + facts["images"]
            differs = abs(first["store"] - first["live"])
            assert differs < _AGREE, f"the two ways learn from different latents: losses {first}"
            middle = {way: options.updates / statistics.median(values) for way, values in seconds.items()}
            print(
                f"| {frames} | {middle['store']:.3f} | {middle['live']:.3f} | {middle['store'] / middle['live']:.1f} | "
                f"{rolled / images:.3f} | {differs:.1e} |",
                flush=True,
            )


def _store(images: Path, cache: Path, frames: int) -> LatentStore:
    config = PrecomputeConfig(
        images=images,
        cache=cache,
        steps=frames - 1,
        denoise_steps=DENOISE_STEPS,
        batch_size=BATCH,
        device="cpu",
        in_process=True,
    )
    return open_store(run_precompute(config).store)
