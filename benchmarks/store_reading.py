"""Time reading from a store and from other formats: batches warm and cold, and whole shuffled epochs."""

from __future__ import annotations

import gc
import random
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .store_peers import OpenEpochs, Read, Samples, Way, peers, streams
from .store_ways import (
    BATCH,
    FRAMES,
    PREFIX,
    Figures,
    batches_of,
    epochs_of_memmap,
    epochs_of_ours,
    epochs_of_prefetcher,
    evict,
    open_keys,
    open_memmap,
    open_memmap_take,
    open_rows,
    sync,
    write_one_memmap,
    write_ours,
)

_LONG_SLICE_S = 0.1


def reading(samples: Samples, folder: Path, warm: int, batches: int, *, with_peers: bool, quick: bool) -> list[Figures]:
    """One row of figures a way."""

    def ours(format: Literal["zarr", "webdataset"]) -> list[Way]:
        at = f"ours-{format}"
        return [
            Way(f"ours, {format}, read_rows, verified", at, open_rows, lambda to, what: write_ours(to, what, format)),
            Way(f"ours, {format}, read_rows, first touch", at, open_rows, reopen="always"),
            Way(f"ours, {format}, read(keys), verified", at, open_keys),
        ]

    ways = [
        Way("memmap[rows]", "memmap", open_memmap, write_one_memmap, reopen="cold"),
        Way("numpy.take(memmap, out=)", "memmap", open_memmap_take, reopen="cold"),
        *ours("zarr"),
        *ours("webdataset"),
        *(peers() if with_peers else []),
    ]
    for way in ways:
        if way.write and not (folder / way.folder).exists():
            (folder / way.folder).mkdir(parents=True)
            way.write(folder / way.folder, samples)
        sync(folder / way.folder)
    reads: dict[Way, Read] = {}

    def reader(way: Way) -> Read:
        if way not in reads:
            reads[way] = way.open(folder / way.folder, samples.shape[1:])
        return reads[way]

    for way in ways:
        check(way.name, reader(way), samples, warm)
    reads.clear()
    gc.collect()
    gc.freeze()  # else each collection below walks through all that was imported
    for way in ways:
        for rows in batches_of(np.arange(len(samples))) if way.folder.startswith("ours") else ():
            reader(way)(rows, FRAMES)  # all verified from here on, but by a way that opens anew
    seconds: dict[tuple[Way, int, str], list[float]] = defaultdict(list)
    cpu: dict[tuple[Way, int], list[float]] = defaultdict(list)
    traffic: dict[tuple[Way, int, str], list[float]] = defaultdict(list)
    shuffled = np.random.default_rng(1)

    def slice_of(way: Way, frames: int, state: Literal["warm", "cold"]) -> float:
        at = folder / way.folder
        if way.reopen == "always":
            reads.pop(way, None)
        if state == "cold":  # whoever maps these files must let go of them, or they stay
            for other in ways:
                if other.folder == way.folder and other.reopen == "cold":
                    reads.pop(other, None)
            gc.collect()
        read = reader(way)
        if state == "warm":
            before = seconds[way, frames, state][-1:] or [0.0]
            some = max(2, min(batches, int(_LONG_SLICE_S / (1e-9 + BATCH * before[0]))))
            # permuted once: a first touch must not come twice
            chosen = list(batches_of(shuffled.permutation(warm)[: BATCH * some]))
        else:
            chosen = [shuffled.permutation(len(samples))[:BATCH]]
            evict(at)
        io = process_io()
        cpu_started, started = time.process_time(), time.perf_counter()
        for rows in chosen:
            read(rows, frames)
        took, cpu_took = time.perf_counter() - started, time.process_time() - cpu_started
        wanted = sum(map(len, chosen)) * samples[0].nbytes
        for name, before in io.items():
            traffic[way, frames, f"{state} {name}"].append((process_io()[name] - before) / wanted)
        seconds[way, frames, state].append(took / sum(map(len, chosen)))
        if state == "warm":
            cpu[way, frames].append(cpu_took / sum(map(len, chosen)))
        return took

    for frames in (FRAMES, PREFIX):
        for way in ways:  # buffers are made, streams under way
            reader(way)(np.arange(BATCH), frames)
        in_turn(ways, partial(slice_of, frames=frames, state="warm"), 0.2 if quick else 1.5, 2 if quick else 8)
    for frames in (FRAMES, PREFIX):
        in_turn(ways, partial(slice_of, frames=frames, state="cold"), 0.1 if quick else 1.0, 2 if quick else 5)

    def against_base(values: dict[Any, list[float]], way: Way, *what: Any) -> float:
        return quartile(values[way, *what]) / quartile(values[ways[0], *what])

    return [
        {
            "way": way.name,
            "warm us": 1e6 * quartile(seconds[way, FRAMES, "warm"]),
            "warm x": against_base(seconds, way, FRAMES, "warm"),
            "CPU x": against_base(cpu, way, FRAMES),
            "fastest x": min(seconds[way, FRAMES, "warm"]) / min(seconds[ways[0], FRAMES, "warm"]),
            "prefix us": 1e6 * quartile(seconds[way, PREFIX, "warm"]),
            "prefix x": against_base(seconds, way, PREFIX, "warm"),
            "cold us": 1e6 * quartile(seconds[way, FRAMES, "cold"]),
            "cold x": against_base(seconds, way, FRAMES, "cold"),
            "cold prefix x": against_base(seconds, way, PREFIX, "cold"),
            "asked, whole": quartile(traffic[way, FRAMES, "warm rchar"]),
            "asked, prefix": quartile(traffic[way, PREFIX, "warm rchar"]),
            "disk, whole": quartile(traffic[way, FRAMES, "cold read_bytes"]),
            "disk, prefix": quartile(traffic[way, PREFIX, "cold read_bytes"]),
            "slices": [len(seconds[way, frames, state]) for state in ("warm", "cold") for frames in (FRAMES, PREFIX)],
        }
        for way in ways
    ]


def epochs(samples: Samples, folder: Path, *, with_peers: bool, rounds: int) -> list[Figures]:
    """One shuffled epoch in batches, the least of some rounds in turn. Warm: not the first one. Cold: the first one."""
    ways: dict[str, tuple[str, OpenEpochs]] = {
        "DataLoader over memmap": ("memmap", epochs_of_memmap),
        "DataLoader over ours, zarr": ("ours-zarr", epochs_of_ours),
        "Prefetcher over ours, zarr": ("ours-zarr", epochs_of_prefetcher),
        "Prefetcher over ours, webdataset": ("ours-webdataset", epochs_of_prefetcher),
        **(streams() if with_peers else {}),
    }
    seconds, cpu = defaultdict(list), defaultdict(list)
    opened = {name: start(folder / at) for name, (at, start) in ways.items()}
    for name, epoch in opened.items():
        seen = np.zeros(len(samples), np.int64)
        for rows, latents in epoch():
            expect(name, latents, samples[rows])
            np.add.at(seen, rows, 1)
        if (seen != 1).any():
            raise SystemExit(f"{name} does not return each sample once")
    for state in ("warm", "cold"):
        for _ in range(rounds):
            for name, (at, start) in random.sample(list(ways.items()), len(ways)):
                if state == "cold":
                    opened.clear()
                    gc.collect()
                    opened[name] = start(folder / at)
                    evict(folder / at)
                cpu_started, started = time.process_time(), time.perf_counter()
                count = sum(len(rows) for rows, _ in opened[name]())
                seconds[name, state].append((time.perf_counter() - started) / count)
                cpu[name, state].append((time.process_time() - cpu_started) / count)
    base = next(iter(ways))
    return [
        {
            "way": name,
            "warm us": 1e6 * min(seconds[name, "warm"]),
            "warm x": min(seconds[name, "warm"]) / min(seconds[base, "warm"]),
            "warm CPU x": min(cpu[name, "warm"]) / min(cpu[base, "warm"]),
            "cold us": 1e6 * min(seconds[name, "cold"]),
            "cold x": min(seconds[name, "cold"]) / min(seconds[base, "cold"]),
        }
        for name in ways
    ]


def check(name: str, read: Read, samples: Samples, warm: int) -> None:
    """Every bit of the warm rows, whole and prefix."""
    for frames in (FRAMES, PREFIX):
        for rows in batches_of(np.arange(warm)):
            expect(name, read(rows, frames), samples[rows, :, :frames])


def expect(name: str, found: Samples, written: Samples) -> None:
    if not np.array_equal(np.ascontiguousarray(found).view(np.uint16), np.ascontiguousarray(written).view(np.uint16)):
        raise SystemExit(f"{name} does not return what was written")


def in_turn(ways: list[Way], one: Callable[[Way], float], budget: float, least: int) -> None:
    """Slices round robin in random order, until each way had its seconds and its least number of them."""
    spent, counts = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    while left := [way for way in ways if counts[way] < least or (spent[way] < budget and counts[way] < 200)]:
        for way in random.sample(left, len(left)):
            spent[way] += one(way)
            counts[way] += 1


def quartile(values: list[float]) -> float:
    return float(np.quantile(values, 0.25))


def process_io() -> dict[str, int]:
    """Bytes this process has asked the kernel for by read calls (rchar), and had fetched from the disk (read_bytes)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(fields[name]) for name in ("rchar", "read_bytes")}
