"""Our store against a numpy memmap and other people's formats: reading, writing, opening; ratios in one run.

    python -m benchmarks.store [--peers] [--quick] [--data FOLDER] [--json FILE]

All readers live in one process and take short slices in turn, in random order, so that noise hits all alike; each is
first checked bit by bit. A figure is the lower quartile of its slices, divided by that of `memmap[rows]` in the same
run. Warm: rows in the page cache. Cold: the files were evicted (fsync, POSIX_FADV_DONTNEED) before each batch. Ours are
"verified" when this process has checked each sample before, and "first touch" when a new store has to: the cost of the
checksums. `--peers` installs peers.txt into an environment of its own, build/peers, and measures there.
Elsewhere: the peers (store_peers.py).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
from torch.utils.data import DataLoader, Dataset

from theworld.pipeline.latent_spec import LatentSpec
from theworld.pipeline.recipe import Recipe
from theworld.pipeline.records import read_record, record_path, seal
from theworld.pipeline.store import LatentStore, create_store, find_stores, open_store
from theworld.train.loader import BatchOrder, LatentDataset, Prefetcher

from .store_peers import SHARD, Batches, OpenEpochs, Read, Rows, Samples, Way, key, peers, streams

BATCH, PREFIX, FRAMES = 32, 3, 9
_LONG_SLICE_S = 0.1
SETTINGS = {224: (2048, 512, 8), 64: (8192, 2048, 32)}
"""Pixels -> samples, of which warm, and batches a slice."""
MILLION = 1_000_000
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="also measure peers.txt; installs it first, ~330 MB")
    parser.add_argument("--quick", action="store_true", help="a look in half a minute, not a measurement")
    parser.add_argument("--data", type=Path, help="a folder for the stores, on the disk to measure; they stay")
    parser.add_argument("--json", type=Path, help="all figures go here too")
    options = parser.parse_args()
    if options.peers:
        _enter_environment_of_peers()
    with tempfile.TemporaryDirectory(prefix="theworld-benchmark-") as temporary:
        folder = options.data or Path(temporary)
        report: Figures = {"load_before": os.getloadavg(), "arguments": sys.argv[1:], "machine": platform.platform()}
        for pixels, (count, warm, batches) in SETTINGS.items():
            if options.quick:
                count, warm = count // 8, warm // 2
            samples = make_samples(count, pixels)
            figures = reading(
                samples, folder / f"{pixels}-{count}", warm, batches, with_peers=options.peers, quick=options.quick
            )
            report[f"{pixels} px"] = figures
            show(f"reading {count:,} samples {samples.shape[1:]} float16, batches of {BATCH}", figures)
            report[f"epoch {pixels} px"] = epochs(
                samples, folder / f"{pixels}-{count}", with_peers=options.peers, rounds=2 if options.quick else 3
            )
            show(f"one shuffled epoch of them, batches of {BATCH}", report[f"epoch {pixels} px"])
        samples = make_samples(256 if options.quick else 1024, 224)
        report["writing"] = writing(samples, folder / "writing", rounds=2 if options.quick else 5)
        show(f"writing {len(samples)} samples {samples.shape[1:]}, {SHARD} a shard, each fsynced", report["writing"])
        report["opening"] = opening(folder, MILLION // (10 if options.quick else 1))
        show(f"opening {MILLION // (10 if options.quick else 1):,} samples, {SHARD} a shard", report["opening"])
    report["load_after"] = os.getloadavg()
    print(
        "load average before and after:", *(f"{load[0]:.1f}" for load in (report["load_before"], report["load_after"]))
    )
    print()
    verdicts = ([*promise, "kept" if promise[2] <= promise[1] else "MISSED"] for promise in promises(report))
    table(["promise", "at most", "measured", ""], verdicts)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def make_samples(count: int, pixels: int) -> Samples:
    """(count, 16, 9, pixels / 8, pixels / 8): any bits that are finite, as nothing here compresses."""
    shape = (count, 16, FRAMES, pixels // 8, pixels // 8)
    bits = np.frombuffer(np.random.default_rng(0).bytes(2 * int(np.prod(shape))), np.uint16)
    return (bits & 0xBFFF).view(np.float16).reshape(shape)


# our ways, and numpy's


def write_ours(folder: Path, samples: Samples, format: Literal["zarr", "webdataset"] = "zarr") -> None:
    pixels = 8 * samples.shape[-1]
    spec = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
    recipe = Recipe(world="sha256:" + "0" * 64, height=pixels, width=pixels, rollout_steps=FRAMES - 1)
    store = create_store(folder, recipe, spec, label="benchmark", shard_size=SHARD, format=format)
    for start in range(0, len(samples), SHARD):
        with store.new_shard() as shard:
            for row, latent in enumerate(samples[start : start + SHARD], start):
                shard.add(key(row), latent)
            shard.commit({})
    store.publish()


_buffers: dict[tuple[Path, int], Any] = {}


def open_rows(folder: Path, _: tuple[int, ...]) -> Read:
    store = open_store(folder)

    def read(rows: Rows, frames: int) -> Samples:
        if (folder, frames) not in _buffers:  # outlives the store, as a trainer's would
            _buffers[folder, frames] = store.buffer(BATCH, rollout_steps=frames - 1)
        return store.read_rows(rows, _buffers[folder, frames])

    return read


def open_keys(folder: Path, _: tuple[int, ...]) -> Read:
    store = open_store(folder)
    keys = [key(row) for row in range(len(store))]
    return lambda rows, frames: store.read([keys[row] for row in rows.tolist()], rollout_steps=frames - 1)


def write_memmap(folder: Path, samples: Samples) -> None:
    """One file a shard, as everybody else."""
    for start in range(0, len(samples), SHARD):
        part = samples[start : start + SHARD]
        file = np.memmap(folder / f"{start // SHARD:06d}.bin", np.float16, "w+", shape=part.shape)
        for place, latent in enumerate(part):
            file[place] = latent
        file.flush()


def write_one_memmap(folder: Path, samples: Samples) -> None:
    np.save(folder / "latents.npy", samples)


def _memmap(folder: Path) -> Samples:
    return np.load(folder / "latents.npy", mmap_mode="r")


def open_memmap(folder: Path, _: tuple[int, ...]) -> Read:
    latents = _memmap(folder)
    return lambda rows, frames: latents[rows, :, :frames]


def open_memmap_take(folder: Path, shape: tuple[int, ...]) -> Read:
    latents = _memmap(folder)
    outs = {frames: np.empty((BATCH, shape[0], frames, *shape[2:]), np.float16) for frames in (PREFIX, FRAMES)}

    def read(rows: Rows, frames: int) -> Samples:
        if frames == FRAMES:  # "clip": with the default mode numpy fills a copy of `out` first
            return np.take(latents, rows, 0, out=outs[frames], mode="clip")
        for out, row in zip(outs[frames], rows.tolist(), strict=True):  # of a slice, take would copy all of it first
            out[...] = latents[row, :, :frames]
        return outs[frames]

    return read


class _Batches(Dataset[Any]):
    """A memmap as whole batches."""

    def __init__(self, folder: Path) -> None:
        self.latents = _memmap(folder)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, rows: list[int]) -> tuple[Rows, Samples]:
        return np.array(rows), self.latents[rows]


def epochs_of_memmap(folder: Path) -> Callable[[], Batches]:
    loader = DataLoader(_Batches(folder), BATCH, shuffle=True, collate_fn=lambda batch: batch)
    return lambda: iter(loader)


def epochs_of_ours(folder: Path) -> Callable[[], Batches]:
    dataset = LatentDataset(open_store(folder))

    def epoch() -> Batches:
        rows = list(batches_of(np.random.permutation(len(dataset))))  # made before: a DataLoader tells nobody its rows
        loader = DataLoader(dataset, batch_sampler=[part.tolist() for part in rows], collate_fn=LatentDataset.collate)
        return ((part, batch.numpy()) for part, batch in zip(rows, loader, strict=True))

    return epoch


def epochs_of_prefetcher(folder: Path) -> Callable[[], Batches]:
    dataset = LatentDataset(open_store(folder))

    def epoch() -> Batches:
        order = BatchOrder(len(dataset), batch_size=BATCH, seed=random.randrange(2**31), epochs=1)
        with Prefetcher(dataset, order) as batches:
            for rows, latents in batches:
                yield np.asarray(rows), latents.numpy()

    return epoch


# measuring


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


def check(name: str, read: Read, samples: Samples, warm: int) -> None:
    """Every bit of the warm rows, whole and prefix."""
    for frames in (FRAMES, PREFIX):
        for rows in batches_of(np.arange(warm)):
            expect(name, read(rows, frames), samples[rows, :, :frames])


def expect(name: str, found: Samples, written: Samples) -> None:
    if not np.array_equal(np.ascontiguousarray(found).view(np.uint16), np.ascontiguousarray(written).view(np.uint16)):
        raise SystemExit(f"{name} does not return what was written")


def batches_of(rows: Rows) -> Iterable[Rows]:
    return np.split(rows, range(BATCH, len(rows), BATCH))


def in_turn(ways: list[Way], one: Callable[[Way], float], budget: float, least: int) -> None:
    """Slices round robin in random order, until each way had its seconds and its least number of them."""
    spent, counts = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    while left := [way for way in ways if counts[way] < least or (spent[way] < budget and counts[way] < 200)]:
        for way in random.sample(left, len(left)):
            spent[way] += one(way)
            counts[way] += 1


def quartile(values: list[float]) -> float:
    return float(np.quantile(values, 0.25))


def sync(folder: Path, *, advise: int = os.POSIX_FADV_NORMAL) -> None:
    """Write the files below a folder out."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, advise)
            os.close(descriptor)


def evict(folder: Path) -> None:
    """Drop them from the page cache, too; what somebody maps stays."""
    sync(folder, advise=os.POSIX_FADV_DONTNEED)


def process_io() -> dict[str, int]:
    """Bytes this process has asked the kernel for by read calls (rchar), and had fetched from the disk (read_bytes)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(fields[name]) for name in ("rchar", "read_bytes")}


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


def writing(samples: Samples, folder: Path, rounds: int) -> list[Figures]:
    """CPU and wall seconds, the least of some rounds in turn. Without checksums their functions do nothing."""

    def plain(to: Path, what: Samples) -> None:
        for start in range(0, len(what), SHARD):
            with (to / f"{start // SHARD:06d}.bin").open("wb") as file:
                for latent in what[start : start + SHARD]:
                    file.write(latent.data)

    def without_checksums(to: Path, what: Samples, format: Literal["zarr", "webdataset"]) -> None:
        with no_checksums():
            write_ours(to, what, format)

    ways: dict[str, Callable[[Path, Samples], None]] = {
        "memmap": write_memmap,
        "file.write": plain,
        "ours, zarr, without checksums": lambda to, what: without_checksums(to, what, "zarr"),
        "ours, zarr": write_ours,
        "ours, webdataset, without checksums": lambda to, what: without_checksums(to, what, "webdataset"),
        "ours, webdataset": lambda to, what: write_ours(to, what, "webdataset"),
    }
    wall, cpu = defaultdict(list), defaultdict(list)
    for _ in range(rounds):
        for name, write in random.sample(list(ways.items()), len(ways)):
            folder.mkdir(parents=True)
            cpu_started, started = time.process_time(), time.perf_counter()
            write(folder, samples)
            sync(folder)  # again, for ours
            cpu[name].append(time.process_time() - cpu_started)
            wall[name].append(time.perf_counter() - started)
            shutil.rmtree(folder)
    return [
        {
            "way": name,
            "CPU s": min(cpu[name]),
            "CPU x": min(cpu[name]) / min(cpu["memmap"]),
            "s": min(wall[name]),
            "x": min(wall[name]) / min(wall["memmap"]),
        }
        for name in ways
    ]


class _NoHash:
    def __init__(self, *_: object) -> None: ...
    def update(self, data: object) -> None: ...
    def hexdigest(self) -> str:
        return "0" * 64


class _NoShortHash(_NoHash):
    def hexdigest(self) -> str:
        return "0" * 32


@contextmanager
def no_checksums() -> Iterator[None]:
    with ExitStack() as patches:
        for target, stand_in in (
            ("google_crc32c.value", lambda *_: 0),
            ("google_crc32c.extend", lambda *_: 0),
            ("theworld.pipeline.shard_writer.hashlib", mock.Mock(sha256=_NoHash)),
            ("theworld.pipeline.shard_writer.xxhash", mock.Mock(xxh3_128=_NoShortHash)),
        ):
            patches.enter_context(mock.patch(target, stand_in))
        yield


def opening(folder: Path, count: int) -> list[Figures]:
    """Seconds to open a store of so many samples in a fresh process; the records are real, the payloads not there."""
    folder = folder / f"opening-{count}"
    if not folder.exists():
        write_ours(folder, make_samples(1, 64))
        [path] = find_stores(folder)
        _pretend(open_store(path), count)
    [path] = find_stores(folder)
    figures: list[Figures] = []
    for name, snapshot in (("snapshot", True), ("records alone", False)):
        if snapshot:
            open_store(path).publish()
        else:
            (path / "index.safetensors").unlink()
        runs = [json.loads(_python("-c", _OPEN, str(path), key(0))) for _ in range(3)]
        figures.append({"way": name} | {field: min(run[field] for run in runs) for field in runs[0]})
    return figures


_OPEN = """
import json, sys, time
from pathlib import Path
started = time.perf_counter()
from theworld.pipeline.store import open_store
imported = time.perf_counter()
store = open_store(Path(sys.argv[1]))
samples, row = len(store), store.row_of(sys.argv[2])
opened = time.perf_counter()
assert row == 0
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"import s": imported - started, "open s": opened - imported, "samples": samples, "peak MB": peak}))
"""


def _pretend(store: LatentStore, count: int) -> None:
    """Replace the store's one record by those of `count` samples."""
    record = read_record(store.path, 0, store.recipe.id).model_dump(mode="json")
    record_path(store.path, 0).unlink()
    for number, start in enumerate(range(0, count, SHARD)):
        keys = [key(row) for row in range(start, min(count, start + SHARD))]
        record |= {"shard": number, "keys": keys, "rows": len(keys), "first_frames_crc32c": "0" * 8 * len(keys)}
        record["bytes"] = store.layout.payload_bytes(len(keys))
        record_path(store.path, number).write_bytes(seal(record))


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


# printing, and the environment of the peers


def show(title: str, figures: list[Figures]) -> None:
    columns = [column for column in figures[0] if column not in ("slices", "prefix us", "fastest x")]
    print(f"\n{title}\n")
    table(columns, ([row[column] for column in columns] for row in figures))


def table(columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    def words(value: Any) -> str:
        return value if isinstance(value, str) else f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}"

    for line in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(map(words, line))} |", flush=True)


def promises(report: Figures) -> Iterator[tuple[str, float, float]]:
    """What, at most, measured."""
    for pixels in SETTINGS:
        rows = {row["way"]: row for row in report[f"{pixels} px"]}
        for format in ("zarr", "webdataset"):
            ours, what = rows[f"ours, {format}, read_rows, verified"], f"{pixels} px, {format}"
            yield f"{what}: warm x memmap", 1.5, ours["warm x"]
            yield f"{what}: cold x memmap", 1.5, ours["cold x"]
            yield f"{what}: a prefix asks for x the bytes", 0.4, ours["asked, prefix"] / ours["asked, whole"]
            yield f"{what}: a prefix fetches x the bytes from disk", 0.4, ours["disk, prefix"] / ours["disk, whole"]
            theirs = [row for name, row in rows.items() if not name.startswith(("ours", "memmap", "numpy"))]
            for state in ("warm us", "cold us") if theirs else ():
                best = min(theirs, key=itemgetter(state))
                yield f"{what}: {state[:4]} x the fastest peer, {best['way']}", 1, ours[state] / best[state]
    for row in report["writing"]:
        if row["way"].endswith("without checksums"):
            yield f"writing, {row['way']}: CPU x memmap", 1.1, row["CPU x"]
    snapshot = report["opening"][0]
    yield f"opening {snapshot['samples']:,} samples, {snapshot['way']}: s", 1, snapshot["open s"]


def _enter_environment_of_peers() -> None:
    """Go on in build/peers: this environment's packages below, the pinned peers above. Made where it is not there."""
    root = Path(__file__).parents[1]
    wanted, home = Path(__file__).with_name("peers.txt"), root / "build" / "peers"
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if Path(sys.prefix) == home:
        return
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        print(f"installing {wanted} into {home}", flush=True)
        venv.create(home, clear=True, with_pip=True)
        [site] = home.glob("lib/python*/site-packages")
        (site / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", wanted], check=True)
        stamp.write_text(wanted.read_text())
    os.execv(python, [str(python), "-m", "benchmarks.store", *sys.argv[1:]])


if __name__ == "__main__":
    main()
