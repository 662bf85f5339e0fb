"""Our engine against the stock pipeline, on the embedded worldlet: images a CPU second, alternating in one process.

    python -m benchmarks.precompute [--images 16] [--rounds 5]

Both make `--steps` 8 rollouts at 64x64 with 10 denoise steps, guidance off, zero text. The stock pipeline is called as
its users call it, one image at a time; its own batch of the same size is measured beside it. What differs is stated by
the ratios alone: batching, the one-frame encode, the skipped last forward, modulation by frame, no cross-attention to
512 zeros. CPU seconds of one thread are counted, so that other work on the machine changes the figures little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler

from theworld.pipeline import Recipe, key_of_bytes
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.source import resolve_world
from theworld.precompute.worlds.wan.vae import load_part

from .stock import stock_latents, stock_pipeline

STEPS, DENOISE_STEPS, SIZE, BATCH = 8, 10, 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = resolve_world(None)
    world = CosmosWorld.load(source.folder)
    pipeline = stock_pipeline(
        load_part(CosmosTransformer3DModel, source.folder, "transformer", device="cpu").eval(),
        load_part(AutoencoderKLWan, source.folder, "vae", device="cpu").eval(),
        FlowMatchEulerDiscreteScheduler.from_pretrained(source.folder / "scheduler"),
    )
    images = torch.rand(options.images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    keys = [key_of_bytes(bytes([i % 256, i // 256])) for i in range(options.images)]
    recipe = Recipe(world=source.identity, height=SIZE, width=SIZE, rollout_steps=STEPS, denoise_steps=DENOISE_STEPS)

    def run_stock(batch: int) -> None:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            stock_latents(pipeline, part, range(len(part)), rollout_steps=STEPS, denoise_steps=DENOISE_STEPS)

    def run_ours(batch: int) -> None:
        for start in range(0, len(images), batch):
            world.rollout(images[start : start + batch], keys[start : start + batch], recipe)

    ways: dict[str, Callable[[], None]] = {
        "stock pipeline, one image a call": lambda: run_stock(1),
        f"stock pipeline, batches of {BATCH}": lambda: run_stock(BATCH),
        "ours, one image a call": lambda: run_ours(1),
        f"ours, batches of {BATCH}": lambda: run_ours(BATCH),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    run_stock(1), run_ours(BATCH)  # warm
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    floor = statistics.median(seconds["stock pipeline, one image a call"])
    print("| way | images a CPU second (median) | x stock |\n|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {options.images / median:.2f} | {floor / median:.1f} |")


if __name__ == "__main__":
    main()
