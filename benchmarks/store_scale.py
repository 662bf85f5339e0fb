"""A store of 12.8 million samples in 50,000 shards: its records are real, its payloads are not there.

    python -m benchmarks.store_scale [--samples N] [--shards N] [--data FOLDER] [--copy] [--json FILE]

Each figure is taken in a fresh process: CPU seconds, and megabytes of memory of its own (RssAnon; mapped files are
shared). The records take 13 KB a shard, and making them about a minute. `--copy` also copies them and opens the copy.
`shuffled` reads batches from two real stores of the same small samples, of many and of few shards, in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from theworld.pipeline import LatentSpec, LatentStore, Recipe, create_store, open_store
from theworld.pipeline.files.sealed import seal
from theworld.pipeline.store.folder import open_to_add
from theworld.pipeline.store.keys.packed_keys import Keys, unpack_keys
from theworld.pipeline.store.records import record_path
from theworld.pipeline.store.upkeep.verify import verify
from theworld.train import BatchSampler, LatentDataset

from .store import table
from .store_ways import Figures

SAMPLES, SHARDS = 12_800_000, 50_000
MANY, FEW = 4000, 8
OTHERS = 64
SPEC = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
LIMITS = {
    "open": ("CPU s", 0.5),
    "open, memory": ("MB", 200),
    "commit, its number planned": ("CPU s", 0.1),
    "commit, looking first": ("CPU s", 0.1),
    "holds, all keys": ("CPU s", 4),
    "a run with nothing to do": ("CPU s", 60),
    "verify by names, without payloads": ("CPU s", 10),
    "shuffled, many / few shards": ("x", 1.2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--data", type=Path, help="a folder for the stores; they stay, and are used again")
    parser.add_argument("--copy", action="store_true", help="also copy the records, and open the copy")
    parser.add_argument("--json", type=Path, help="all figures go here too")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only, options.data, options.samples, options.shards)))
        return
    with tempfile.TemporaryDirectory(prefix="theworld-benchmark-") as temporary:
        folder = options.data or Path(temporary)
        make_records(folder, options.samples, options.shards)
        names = [name for name in STEPS if options.copy or not name.startswith("a copy")]
        figures = [step(name, folder, options.samples, options.shards) for name in names]
    report: list[Figures] = [{"step": name, **figure} for name, figure in zip(names, figures, strict=True)]
    report.append({"step": "shuffled, many / few shards", **figures_of_shuffling(options.data)})
    columns = ["step", "CPU s", "MB", "note", "at most", ""]
    print(f"\n{options.samples:,} samples in {options.shards:,} shards\n")
    table(columns, [_row(figure) for figure in report])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def _row(figure: Figures) -> list[Any]:
    limits = [LIMITS[name] for name in (figure["step"], f"{figure['step']}, memory") if name in LIMITS]
    kept = all(figure.get(unit, 0) <= most for unit, most in limits)
    words = ", ".join(f"{most:g} {unit}" for unit, most in limits)
    return [
        figure["step"],
        figure.get("CPU s", ""),
        figure.get("MB", ""),
        figure.get("note", ""),
        words,
        ("kept" if kept else "MISSED") if limits else "",
    ]


def keys_of(samples: int) -> Keys:
    """As random as hashes are."""
    return np.frombuffer(np.random.default_rng(0).bytes(16 * samples), "S16")


def make_records(folder: Path, samples: int, shards: int) -> None:
    """The records of a store, if they are not there."""
    recipe = Recipe(world="sha256:" + "0" * 64, height=64, width=64, rollout_steps=8)
    size = -(-samples // shards)
    store = create_store(folder / f"{samples}-{shards}", recipe, SPEC, label="scale", shard_size=size)
    if len(list((store.path / "commits").iterdir())) >= shards:
        return
    print(f"making {shards:,} records in {store.path} ...", flush=True)
    with store.new_shard() as shard:  # one real one to state what a record states
        shard.add("0" * 32, np.zeros(store.sample_shape, np.float32))
        record = shard.commit({"host": "here"})
    assert record is not None
    body = record.to_json() if hasattr(record, "to_json") else record.model_dump(mode="json")
    record_path(store.place, 0).unlink()
    store.payload_path(0).unlink()
    keys = unpack_keys(keys_of(samples))
    checksums = next(name for name in ("frames_crc32c", "first_frames_crc32c") if body.get(name))
    digits = body[checksums]
    for number, start in enumerate(range(0, samples, size)):
        part = keys[start : start + size]
        body |= {"shard": number, "keys": part, "rows": len(part), "bytes": store.layout.payload_bytes(len(part))}
        body[checksums] = digits * len(part)
        record_path(store.place, number).write_bytes(seal(body))


def step(name: str, folder: Path, samples: int, shards: int) -> Figures:
    arguments = ["--only", name, "--data", str(folder), "--samples", str(samples), "--shards", str(shards)]
    command = [sys.executable, "-m", "benchmarks.store_scale", *arguments]
    print(f"{name} ...", flush=True)
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measured(name: str, folder: Path, samples: int, shards: int) -> Figures:
    """One step in this process."""
    [path] = [found.parent for found in (folder / f"{samples}-{shards}").glob("*/theworld.json")]
    keys = keys_of(samples)
    before, started = own_megabytes(), time.process_time()
    prepared = STEPS[name](path, keys)
    if callable(prepared):  # what it has returned is to be measured, what it did before is not
        before, started = own_megabytes(), time.process_time()
        note = prepared()
    else:
        note = prepared
    return {"CPU s": time.process_time() - started, "MB": own_megabytes() - before, "note": note}


def own_megabytes() -> float:
    """Memory that no other process shares."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def open_from_records(path: Path, _: Keys) -> str:
    for name in ("index.safetensors", "index-new.safetensors"):
        (path / name).unlink(missing_ok=True)
    return f"{len(open_store(path)):,} samples"


def publish(path: Path, _: Keys) -> Callable[[], str]:
    store = open_store(path)

    def write() -> str:
        store.publish()
        return f"{(path / 'index.safetensors').stat().st_size / 2**20:,.0f} MB"

    return write


def open_mapped(path: Path, _: Keys) -> str:
    return f"{len(open_store(path)):,} samples"


def holds_all(path: Path, keys: Keys) -> Callable[[], str]:
    store, shuffled = open_store(path), np.random.default_rng(1).permutation(keys)
    return lambda: f"{int(store.holds(shuffled).sum()):,} held"


def rows_of_few(path: Path, keys: Keys) -> Callable[[], str]:
    store, few = open_store(path), unpack_keys(keys[:1000])
    return lambda: f"{len(store.rows_of(few)):,} keys as text"


def commit_others(store: LatentStore, start: int) -> None:
    """Records of other writers that have come meanwhile."""
    body = json.loads(record_path(store.place, 0).read_bytes())
    del body["seal"]
    for number in range(start, start + OTHERS):
        body["shard"] = number
        body["keys"] = [hashlib.sha256(f"{number} {key}".encode()).hexdigest()[:32] for key in body["keys"]]
        record_path(store.place, number).write_bytes(seal(body))


def commit(path: Path, *, planned: bool) -> Callable[[], str]:
    shards = len(list((path / "commits").iterdir()))
    store = open_to_add(path) if planned else open_store(path)
    commit_others(store, shards + 1)
    number = shards + OTHERS + 1
    shard = store.new_shard(number if planned else None)
    shard.__enter__()
    shard.add(hashlib.sha256(str(number).encode()).hexdigest()[:32], np.zeros(store.sample_shape, np.float32))

    def finish() -> str:
        record = shard.commit({})
        assert record is not None
        return f"beside {OTHERS} others"

    return finish


def refresh(path: Path, _: Keys) -> Callable[[], str]:
    store = open_store(path)
    commit_others(store, len(list((path / "commits").iterdir())) + 200)

    def look() -> str:
        store.refresh()
        return f"finds {OTHERS} new records"

    return look


def run_with_nothing_to_do(path: Path, keys: Keys) -> Callable[[], str]:
    """What a job does with its inputs and the store, from the moment when the inputs are listed."""
    from theworld.precompute.inputs.listing.entries import Container, Entries
    from theworld.precompute.inputs.listing.inputs import Listing
    from theworld.precompute.inputs.listing.samples import Samples
    from theworld.precompute.job.planning.plan import make_plan

    entries = Entries("photos")
    entries.open(Container("photos", "photos"))
    samples = Samples(entries)
    for at, key in enumerate(unpack_keys(keys)):
        entries.add_file(f"photos/2026/{at:08d}.jpg")
        samples.add(at, key)
    listing = Listing(samples, (), {}, {})  # type: ignore[arg-type]
    open_store(path).record_sources(samples.rows())

    def run() -> str:
        store = open_store(path)
        plan = make_plan(listing, store, 1, retry_failed=False)
        new = store.record_sources(samples.rows(), samples.prompts(), samples.starts())
        store.record_failures(plan.refused)
        store.publish()
        assert (plan.done, len(plan.todo), new) == (len(keys), 0, 0)
        return f"{plan.done:,} done"

    return run


def read_sources(path: Path, _: Keys) -> str:
    count = sum(1 for _ in open_store(path).source_rows())
    sizes = [file.stat().st_size for file in (path / "sources").iterdir()]
    return f"{count:,} rows, {len(sizes)} files of {max(sizes) / 2**20:.0f} MB at most"


def verify_without_payloads(path: Path, _: Keys) -> str:
    """Slower than with them: each that is missing is found out and counted."""
    found = verify(path)
    return f"{found.damaged:,} damaged, {len(found.findings)} findings"


def open_copy(path: Path, _: Keys) -> Callable[[], str]:
    target = path.parent / "copy" / path.name
    if not target.exists():
        shutil.copytree(path, target)
    return lambda: f"{len(open_store(target)):,} samples"


STEPS: dict[str, Callable[[Path, Keys], Any]] = {
    "open from the records alone": open_from_records,
    "publish the snapshot": publish,
    "open": open_mapped,
    "holds, all keys": holds_all,
    "rows_of, 1,000 keys": rows_of_few,
    "commit, its number planned": lambda path, _: commit(path, planned=True),
    "commit, looking first": lambda path, _: commit(path, planned=False),
    "refresh": refresh,
    "publish what is new": publish,
    "open with what is new": open_mapped,
    "verify by names, without payloads": verify_without_payloads,
    "a run with nothing to do": run_with_nothing_to_do,
    "read all sources": read_sources,
    "a copy, opened": open_copy,
}


def figures_of_shuffling(data: Path | None, rounds: int = 5) -> Figures:
    """Shuffled batches of the same samples in many shards and in few: the least of some rounds in turn."""
    recipe = Recipe(world="sha256:" + "0" * 64, height=16, width=16, rollout_steps=8)
    datasets: list[LatentDataset] = []
    with tempfile.TemporaryDirectory(prefix="theworld-benchmark-") as temporary:
        for shards in (MANY, FEW):
            size = 16 * MANY // shards
            store = create_store(
                (data or Path(temporary)) / f"shuffled-{shards}", recipe, SPEC, label="s", shard_size=size
            )
            latent = np.zeros(store.sample_shape, np.float16)
            for start in range(len(store), 16 * MANY, size):
                with store.new_shard() as shard:
                    for row in range(start, start + size):
                        shard.add(f"{row:032x}", latent)
                    shard.commit({})
            store.publish()
            datasets.append(LatentDataset(open_store(store.path)))
        seconds: list[list[float]] = [[], []]
        for round_ in range(rounds + 1):
            for dataset, measured_s in zip(datasets, seconds, strict=True):
                buffer = dataset.buffer(32)
                batches = [batch.indices for batch in BatchSampler(len(dataset), batch_size=32, seed=round_, epochs=1)]
                started = time.process_time()
                for indices in batches:
                    dataset.read(indices, buffer)
                measured_s.append(time.process_time() - started)
        many, few = (min(taken[1:]) for taken in seconds)  # the first round opens files and checks frames
    return {"CPU s": many, "x": many / few, "note": f"{many / few:.2f} x, {MANY:,} and {FEW} shards"}


if __name__ == "__main__":
    main()
