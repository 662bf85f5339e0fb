"""Format 2 of the store against format 1, and what xarray makes of both; ratios in one run, of CPU seconds.

    python -m benchmarks.store_formats [--samples N] [--pixels P]

Needs `pip install -e '.[xarray]'`. "As it came" is `xr.open_zarr(STORE)` of a store of format 1, with a task for every
inner chunk, which there is a frame. Each figure is the least of some rounds, the ways in turn; files in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from theworld.pipeline import LatentStore, find_stores, open_store
from theworld.pipeline.files.sealed import seal, unseal
from theworld.pipeline.store.folder import open_to_write

from .store import table
from .store_peers import SHARD, Samples, key
from .store_ways import make_samples, write_ours

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--pixels", type=int, default=224)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of format 1, as it came
    samples = make_samples(options.samples, options.pixels)
    # standardised latents, not any bits, as a mean is asked for
    samples[:] = np.random.default_rng(0).standard_normal(samples.shape[1:]).astype(np.float16)
    with tempfile.TemporaryDirectory(prefix="theworld-benchmark-") as folder:
        stores = {version: begin(Path(folder) / str(version), samples, version) for version in (1, 2)}
        written = in_turn({version: lambda store=store: write(store, samples) for version, store in stores.items()})
        opened = in_turn({version: lambda store=store: open_store(store.path) for version, store in stores.items()})
        one, two = (open_store(store.path) for store in stores.values())
        memmap = np.memmap(Path(folder) / "memmap", samples.dtype, "w+", shape=samples.shape)
        memmap[:] = samples
        memmap.flush()
        rows, buffer = np.random.default_rng(1).permutation(len(samples)), two.buffer(32)
        bare = np.empty((32, samples[0].nbytes), np.uint8)
        means = in_turn(
            {
                "format 1, as it came": lambda: mean(xarray.open_zarr(one.path)),
                "format 2, as it came": lambda: mean(xarray.open_zarr(two.path)),
                "format 1, as_xarray": lambda: mean(one.as_xarray()),
                "format 2, as_xarray": lambda: mean(two.as_xarray()),
            }
        )
        read = in_turn(
            {
                "memmap": lambda: mapped(memmap, rows),
                "preadv": lambda: read_bare(Path(folder) / "memmap", rows, bare),
                "format 1": lambda: shuffled(one, rows, buffer=one.buffer(32)),
                "format 2": lambda: shuffled(two, rows, buffer=buffer),
            },
            rounds=3 * ROUNDS,
        )
        tasks = {name: len(ds["latents"].data.dask) for name, ds in views(one, two).items()}
    base = means["format 1, as it came"]
    print(f"{len(samples)} samples {samples.shape[1:]} float16, {SHARD} a shard; CPU seconds, and x format 1\n")
    table(["what", "format 1", "format 2", "x"], [
        ["write", written[1], written[2], written[2] / written[1]],
        ["open", opened[1], opened[2], opened[2] / opened[1]],
        ["shuffled batches of 32", read["format 1"], read["format 2"], read["format 2"] / read["format 1"]],
    ])  # fmt: skip
    for name in ("format 2", "preadv"):
        print(f"\nshuffled batches of 32, {name} x memmap: {read[name] / read['memmap']:.3g}")
    print()
    table(["mean over a store", "CPU s", "x", "tasks"], [[n, s, s / base, tasks[n]] for n, s in means.items()])


def begin(folder: Path, samples: Samples, version: int) -> LatentStore:
    """An empty store of format 1 or 2."""
    write_ours(folder, samples[:0])
    [path] = find_stores(folder)
    if version == 1:
        manifest = json.loads(unseal((path / "theworld.json").read_bytes()))
        (path / "theworld.json").write_bytes(seal({**manifest, "format": 1}))
        for name in ("latents", "key", "time_s"):
            shutil.rmtree(path / name)
        (path / "zarr.json").unlink()
    return open_to_write(path)


def write(store: LatentStore, samples: Samples) -> None:
    """All samples, once more at each call."""
    for start in range(0, len(samples), SHARD):
        with store.new_shard() as shard:
            for row, latent in enumerate(samples[start : start + SHARD], start):
                shard.add(key(row + len(store)), latent)
            shard.commit({})


def views(one: LatentStore, two: LatentStore) -> dict[str, Any]:
    return {
        "format 1, as it came": xarray.open_zarr(one.path),
        "format 2, as it came": xarray.open_zarr(two.path),
        "format 1, as_xarray": one.as_xarray(),
        "format 2, as_xarray": two.as_xarray(),
    }


def mean(dataset: xarray.Dataset) -> float:
    return float(dataset["latents"].mean(dtype="float64").compute())


def shuffled(store: LatentStore, rows: Any, buffer: Any) -> None:
    for part in np.split(rows, range(32, len(rows), 32)):
        store.read_rows(part, buffer)


def mapped(memmap: Any, rows: Any) -> None:
    for part in np.split(rows, range(32, len(rows), 32)):
        memmap[part]


def read_bare(path: Path, rows: Any, buffer: Any) -> None:
    """The same rows by the system call alone: the least that reading files can take."""
    memory, size = [memoryview(row) for row in buffer], buffer.shape[1]
    with path.open("rb", buffering=0) as file:
        for part in np.split(rows, range(32, len(rows), 32)):
            for sample, row in enumerate(part.tolist()):
                os.preadv(file.fileno(), [memory[sample]], row * size)


def in_turn(ways: dict[Any, Callable[[], object]], rounds: int = ROUNDS) -> dict[Any, float]:
    """CPU seconds of each way, the least of some rounds."""
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            least[name] = min(least[name], time.process_time() - began)
    return least


if __name__ == "__main__":
    main()
