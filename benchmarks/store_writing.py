"""Writing a store beside a memmap, and opening one of a million samples."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from unittest import mock

from theworld.pipeline import LatentStore, find_stores, open_store
from theworld.pipeline.files.sealed import seal
from theworld.pipeline.store.records import read_record, record_path

from .store_peers import SHARD, Samples, key
from .store_ways import Figures, make_samples, sync, write_memmap, write_ours


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
            ("theworld.pipeline.store.writer.hashlib", mock.Mock(sha256=_NoHash)),
            ("theworld.pipeline.store.writer.xxhash", mock.Mock(xxh3_128=_NoShortHash)),
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
from theworld.pipeline import open_store
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
    record = read_record(store.place, 0, store.recipe.id).to_json()
    digits = 8 * store.layout.recorded_frames
    record_path(store.place, 0).unlink()
    for number, start in enumerate(range(0, count, SHARD)):
        keys = [key(row) for row in range(start, min(count, start + SHARD))]
        record |= {"shard": number, "keys": keys, "rows": len(keys), "frames_crc32c": "0" * digits * len(keys)}
        record["bytes"] = store.layout.payload_bytes(len(keys))
        record_path(store.place, number).write_bytes(seal(record))


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
