"""Time reading from a bucket: samples by requests, whole shards by way of the local cache, and other libraries."""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from theworld.pipeline import LatentStore, open_store
from theworld.pipeline.store.reading.shard_cache import ShardCache
from theworld.pipeline.store.reading.shard_fetch import RANGE_BYTES
from theworld.train import BlockSampler, LatentDataset, Prefetcher
from theworld.train.data.sampler import SHUFFLE_WINDOW

from .bucket_server import BUCKET, ServerProcess
from .store_peers import SHARD, Rows, Samples, write_mds, write_zarr
from .store_reading import expect
from .store_ways import BATCH, Figures, batches_of, make_samples, write_ours

URL = f"s3://{BUCKET}/ours"
LATENCY_S = 0.03
PIXELS = 224
_TURN_S = 1.0
_CHECKED = 4
"""Batches of each way that are compared bit by bit."""


def write_all(folder: Path, count: int, *, with_peers: bool) -> Samples:
    """The same samples as each reader's own files; what is there already stays."""
    samples = make_samples(count, PIXELS)
    writers: dict[str, Callable[[Path, Samples], object]] = {"ours": write_ours}
    if with_peers:
        writers |= {"zarr": write_zarr, "mds": write_mds, "raw": lambda to, what: what.tofile(to / "latents.bin")}
    for name, write in writers.items():
        if not (folder / name).exists():
            (folder / name).mkdir(parents=True)
            write(folder / name, samples)
    return samples


def ranges(server: ServerProcess, samples: Samples, folder: Path, *, with_peers: bool, rounds: int) -> list[Figures]:
    """Shuffled batches, a request a sample: at no latency and at `LATENCY_S`, and other libraries there."""
    ways: dict[str, tuple[float, Callable[[list[Rows]], Iterator[Samples]]]] = {}
    server.set_latency(0)
    ours = _stream_ranges(open_store(URL))
    ways["ours, ranges, no latency"] = (0, ours)
    ways["ours, ranges"] = (LATENCY_S, ours)
    if with_peers:
        from .bucket_peers import peers

        ways |= {name: (LATENCY_S, stream) for name, stream in peers(samples.shape[1:], folder).items()}
    drawn = np.random.default_rng(1)
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    counts = defaultdict(list)
    batches = dict.fromkeys(ways, _CHECKED)

    def turn(name: str, *, is_checked: bool = False) -> None:
        latency, stream = ways[name]
        chosen = list(batches_of(drawn.permutation(len(samples))))[: batches[name]]
        server.set_latency(latency)
        server.counts()
        cpu_started, started = time.process_time(), time.perf_counter()
        for rows, found in zip(chosen, stream(chosen), strict=True):
            if is_checked:
                expect(name, found, samples[rows])
        took, cpu_took = time.perf_counter() - started, time.process_time() - cpu_started
        rows_read = sum(map(len, chosen))
        batches[name] = max(2, min(len(samples) // BATCH, int(_TURN_S * rows_read / took / BATCH)))
        if not is_checked:
            rates[name].append(rows_read / took)
            cpu[name].append(cpu_took / rows_read)
            counts[name].append((server.counts(), rows_read))

    for name in ways:
        turn(name, is_checked=True)
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            turn(name)
    base = "ours, ranges"
    return [
        {
            "way": name,
            "samples/s": statistics.median(rates[name]),
            "ours is x": _ratio(rates[base], rates[name]),
            "client CPU ms": 1e3 * statistics.median(cpu[name]),
            "server busy": statistics.median(each.busy for each, _ in counts[name]),
            "requests a sample": statistics.median(each.requests / rows for each, rows in counts[name]),
            "bytes / needed": statistics.median(
                each.payload_bytes / (rows * samples[0].nbytes) for each, rows in counts[name]
            ),
        }
        for name in ways
    ]


def first_batch(server: ServerProcess, samples: Samples, rounds: int) -> Figures:
    """The first batch by ranges from a store that was just opened, in turn with single requests."""
    server.set_latency(LATENCY_S)
    took, single = [], []
    for number in range(rounds):
        store = open_store(URL)
        buffer = store.buffer(BATCH)
        chosen = store.rows[np.random.default_rng(number).permutation(len(samples))[:BATCH]]
        started = time.perf_counter()
        store.read_rows(chosen, buffer)
        took.append(time.perf_counter() - started)
        started = time.perf_counter()
        store.read_rows(chosen[:1], buffer)
        single.append(time.perf_counter() - started)
    return {
        "way": f"first batch of {BATCH} by ranges",
        "s": statistics.median(took),
        "requests' time": statistics.median(took) / LATENCY_S,
        "x one sample read alone": _ratio(took, single),
    }


def cache(server: ServerProcess, samples: Samples, folder: Path, *, with_peers: bool, rounds: int) -> list[Figures]:
    """Whole epochs by way of the local cache: the first, which fetches, and a second; and MDS, which fetches files."""
    server.set_latency(LATENCY_S)
    rates: dict[str, list[float]] = defaultdict(list)
    cpu, first = defaultdict(list), defaultdict(list)
    traffic, counts = defaultdict(list), defaultdict(list)

    def ours(name: str, store: LatentStore) -> None:
        epoch(name, (latents for _, latents in read_in_blocks(store, seed=len(rates[name]))))

    def epoch(name: str, batches: Iterable[Any]) -> None:
        server.counts()
        cpu_started, started, count = time.process_time(), time.perf_counter(), 0
        for latents in batches:
            if not count:
                first[name].append(time.perf_counter() - started)
            count += len(latents)
        rates[name].append(count / (time.perf_counter() - started))
        cpu[name].append((time.process_time() - cpu_started) / count)
        counts[name].append(server.counts())
        traffic[name].append(counts[name][-1].payload_bytes / payload_bytes)

    payload_bytes = sum(shard.bytes for shard in open_store(URL).shards.values())
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="theworld-shards-", dir=folder.parent) as local:
            store = open_store(URL)
            store.use_local_cache(ShardCache(Path(local)), window=SHUFFLE_WINDOW)
            ours("ours, local cache, first epoch", store)
            ours("ours, local cache, second epoch", store)
        if with_peers:
            from .bucket_peers import stream_mds

            epoch("MDS, first epoch", (latents for _, latents in stream_mds()))
    base = rates["ours, local cache, first epoch"]
    return [
        {
            "way": name,
            "samples/s": statistics.median(rates[name]),
            "ours is x": _ratio(base, rates[name]),
            "client CPU ms": 1e3 * statistics.median(cpu[name]),
            "first batch s": statistics.median(first[name]),
            "server busy": statistics.median(each.busy for each in counts[name]),
            "requests": statistics.median(each.requests for each in counts[name]),
            "bytes / store": statistics.median(traffic[name]),
            "window / epoch": min(1.0, SHUFFLE_WINDOW * SHARD / len(samples)),
        }
        for name in rates
    ]


def warm(server: ServerProcess, folder: Path, rounds: int, epochs: int) -> list[Figures]:
    """Epochs through the loader from a warm cache, and from the same store on disk, in turn.

    The store on disk is copied first, in pieces as large as those that are fetched: the kernel keeps what is written in
    large pieces in large pages, and copies from them faster.
    """
    [path] = (path for path in (folder / "ours").iterdir() if path.is_dir())
    local = Path(tempfile.mkdtemp(prefix="theworld-shards-", dir=folder.parent))
    copy = Path(tempfile.mkdtemp(prefix="theworld-store-", dir=folder.parent))
    try:
        cached = open_store(URL)
        cached.use_local_cache(ShardCache(local), window=SHUFFLE_WINDOW)
        shutil.copytree(path, copy / path.name, copy_function=_copy_in_large_pieces)
        stores = {"store on disk": open_store(copy / path.name), "warm local cache": cached}
        seconds: dict[str, list[float]] = defaultdict(list)
        cpu: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds + 1):
            for name in stores if number % 2 else reversed(stores):
                cpu_started, started = time.process_time(), time.perf_counter()
                count = sum(len(rows) for rows, _ in read_in_blocks(stores[name], seed=number, epochs=epochs))
                if number:  # the first reads and checks all
                    seconds[name].append((time.perf_counter() - started) / count)
                    cpu[name].append((time.process_time() - cpu_started) / count)
                elif name == "warm local cache":
                    server.counts()
        asked = server.counts()
    finally:
        shutil.rmtree(local)
        shutil.rmtree(copy)
    return [
        {
            "way": name,
            "us a sample": 1e6 * statistics.median(seconds[name]),
            "x disk": _ratio(seconds[name], seconds["store on disk"]),
            "CPU x disk": _ratio(cpu[name], cpu["store on disk"]),
            "requests": 0 if name == "store on disk" else asked.requests,
            "epochs": rounds * epochs,
        }
        for name in stores
    ]


def _stream_ranges(store: LatentStore) -> Callable[[list[Rows]], Iterator[Samples]]:
    dataset, ahead = LatentDataset(store), store.reader.batches_ahead

    def stream(batches: list[Rows]) -> Iterator[Samples]:
        with Prefetcher(dataset, batches, depth=ahead, threads=ahead) as loader:
            for _, latents in loader:
                yield latents.numpy()

    return stream


def read_in_blocks(
    store: LatentStore, *, seed: int, epochs: int = 1, batch_size: int = BATCH, window: int = SHUFFLE_WINDOW
) -> Iterator[tuple[Any, Any]]:
    """Shuffled epochs as `theworld train` reads them: in blocks of shards, the next of them fetched ahead."""
    dataset, ahead = LatentDataset(store), store.reader.batches_ahead
    sizes = [shard.rows for shard in store.shards.values()]
    order = BlockSampler(sizes, batch_size=batch_size, window=window, seed=seed, epochs=epochs, drop_last=False)
    shard_of_row = np.repeat(np.fromiter(store.shards, np.int64), sizes)
    coming = dataset.read_in_order(shard_of_row[batch.indices].tolist() for batch in order.ahead())
    with closing(Prefetcher(dataset, order, depth=ahead, threads=ahead)) as loader:
        for batch in loader:
            yield batch
            if coming is not None:
                coming.advance()


def _copy_in_large_pieces(source: str, target: str) -> None:
    with Path(source).open("rb") as old, Path(target).open("wb") as new:
        shutil.copyfileobj(old, new, RANGE_BYTES)


def _ratio(ones: list[float], others: list[float]) -> float:
    """Of the turns side by side."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))
