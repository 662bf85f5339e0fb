"""The lean forward of Cosmos-Predict2 against that of diffusers: blocks of the 2B's width, random weights, in turns.

python -m benchmarks.forward                  CPU seconds, operations, and whether the bits are the same
python -m benchmarks.forward --compile        and what compiled blocks change in the worldlet's rollouts
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from theworld.precompute.worlds.builtin import WEIGHTS
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.network.compiling import compile_world

from .real_sizes import cosmos_2b
from .stock import both_forwards, forward_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=128, help="pixels of the square image")
    parser.add_argument("--frames", type=int, default=9, help="latent frames")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cells = options.side // 8
    with torch.device("meta"):
        theirs, ours = (_flops(way) for way in _ways(28, torch.float32, options.frames, 28, 28))
    print(f"operations at 224x224, 28 blocks: {theirs / 1e12:.2f} and {ours / 1e12:.2f} TFLOP, x {ours / theirs:.3f}")
    print("\n| dtype | diffusers, CPU s | lean, CPU s | x diffusers | bits |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        ways = _ways(options.blocks, dtype, options.frames, cells, cells)
        equal = torch.equal(*(way() for way in ways))
        seconds: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for way, times in zip(ways, seconds, strict=True):
                started = time.process_time()
                way()
                times.append(time.process_time() - started)
        theirs, ours = (statistics.median(times) for times in seconds)
        bits = "the same" if equal else "DIFFERENT"
        print(f"| {dtype} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} | {bits} |")
    if options.compile:
        print("\n| compiled, worldlet | largest difference | rms |\n|---|---|---|")
        for name in ("float32", "bfloat16"):
            largest, rms = _change_by_compiling(name)
            print(f"| {name} | {largest:.2g} | {rms:.2g} |")


def _ways(blocks: int, dtype: torch.dtype, *shape: int) -> list[Callable[[], Tensor]]:
    stock = torch.nn.Module.to(cosmos_2b(num_layers=blocks), dtype)  # its own warns of parts that it has not
    return both_forwards(stock, *forward_inputs(stock, 1, *shape))


def _flops(way: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def _change_by_compiling(dtype: str) -> tuple[float, float]:
    """Largest difference of the predicted frames of six pictures, and the largest rms of one of them."""
    world = CosmosWorld.load(WEIGHTS, compute_dtype=dtype)
    observed = world.encode(torch.rand(6, 3, 64, 64) * 2 - 1)
    noise = torch.randn(6, 16, 9, 8, 8)
    before = world.denoise(observed, noise, denoise_steps=10)
    compile_world(world, "cpu")
    after = world.denoise(observed, noise, denoise_steps=10)
    difference = (after - before)[:, :, 1:]
    return difference.abs().max().item(), difference.square().mean((1, 2, 3, 4)).sqrt().max().item()


if __name__ == "__main__":
    main()
