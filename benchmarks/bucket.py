"""Stores in a bucket: reading by ranges and through the local cache, and how long a training waits; ratios in one run.

    python -m benchmarks.bucket [--peers] [--quick] [--only PART,…] [--data FOLDER] [--json FILE]

One S3 server on this machine serves the same samples of 225 KB in all formats. It runs in a process of its own
(bucket_server.py), and waits 30 ms before it answers a request. Ways take turns, in random order; a ratio is the median
over turns side by side. Each way is checked bit by bit first. `server busy` is the share of one core that the server
took: near 1, the server was the limit, and the figure says nothing of the reader.

ranges     a request a sample: without the latency and with it, and other libraries with it
first      the first batch by ranges after a store was opened
cache      epochs in blocks of shards through the local cache: the first one, which fetches, and a second one
warm       the second and later epochs, in turn with the same store on disk
training   updates of the training loop, and how long it waits for latents (bucket_training.py)

`--peers` installs peers.txt into an environment of its own, build/peers, and measures there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .bucket_reading import LATENCY_S, cache, first_batch, ranges, warm, write_all
from .bucket_server import server_of
from .bucket_training import training
from .store import enter_environment_of_peers, table
from .store_ways import Figures

PARTS = ("ranges", "first", "cache", "warm", "training")
SAMPLES = 2048
_GOALS = {
    "tensorstore": 3.0,
    "zarr-python + obstore": 20.0,
    "boto3": 8.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="also measure peers.txt; installs it first, ~330 MB")
    parser.add_argument("--quick", action="store_true", help="a look in a minute, not a measurement")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}, with commas")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each way")
    parser.add_argument("--data", type=Path, help="a folder for the files, on the disk to measure; they stay")
    parser.add_argument("--json", type=Path, help="all figures go here too")
    options = parser.parse_args()
    if options.peers:
        enter_environment_of_peers("benchmarks.bucket")
    parts, rounds = options.only.split(","), 2 if options.quick else options.rounds
    report: Figures = {"load_before": os.getloadavg(), "arguments": sys.argv[1:], "machine": platform.platform()}
    with tempfile.TemporaryDirectory(prefix="theworld-benchmark-") as temporary:
        folder = (options.data or Path(temporary)) / "bucket"
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/of-this-machine"  # what opening a store in a bucket keeps
        _measure(report, parts, folder, rounds, quick=options.quick, with_peers=options.peers)
    report["load_after"] = os.getloadavg()
    print("\nload average before and after:", *(f"{report[name][0]:.1f}" for name in ("load_before", "load_after")))
    print()
    verdicts = []
    for what, sign, goal, measured in promises(report):
        is_kept = measured <= goal if sign == "<=" else measured >= goal
        verdicts.append([what, f"{sign} {goal:g}", measured, "kept" if is_kept else "MISSED"])
    table(["promise", "goal", "measured", ""], verdicts)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def _measure(report: Figures, parts: list[str], folder: Path, rounds: int, *, quick: bool, with_peers: bool) -> None:
    """Fill the report, part by part, and print each."""
    reading = [part for part in parts if part != "training"]
    if reading:
        samples = write_all(folder, 512 if quick else SAMPLES, with_peers=with_peers)
        report["samples"] = len(samples)
        what = f"{len(samples):,} samples {samples.shape[1:]} float16, {1000 * LATENCY_S:.0f} ms a request"
        with server_of(folder) as server:
            if "ranges" in parts:
                report["ranges"] = ranges(server, samples, folder, with_peers=with_peers, rounds=rounds)
                _show(f"{what}: shuffled batches, a request a sample", report["ranges"])
            if "first" in parts:
                report["first"] = [first_batch(server, samples, rounds)]
                _show(f"{what}: after opening", report["first"])
            if "cache" in parts:
                report["cache"] = cache(server, samples, folder, with_peers=with_peers, rounds=-(-rounds // 2))
                _show(f"{what}: epochs in blocks of shards", report["cache"])
            if "warm" in parts:
                report["warm"] = warm(server, folder, rounds, epochs=2 if quick else 8)
                _show(f"{what}: warm", report["warm"])
    if "training" in parts:
        report["training"] = training(folder.parent / "training", rounds=-(-rounds // 4), quick=quick)
        _show(f"training, {1000 * LATENCY_S:.0f} ms a request", report["training"])


def _show(title: str, figures: list[Figures]) -> None:
    print(f"\n{title}\n")
    columns = list(figures[0])
    table(columns, ([row[column] for column in columns] for row in figures))


def promises(report: Figures) -> Iterator[tuple[str, str, float, float]]:
    """What, in which direction, how much, measured."""
    rows = {row["way"]: row for part in PARTS for row in report.get(part, ())}
    if "ranges" in report:
        at_once = rows["ours, ranges, no latency"]
        yield "ranges at 30 ms / at 0 ms", ">=", 0.9, at_once["ours is x"]
        yield "ranges: bytes fetched / needed", "<=", 1.02, rows["ours, ranges"]["bytes / needed"]
        for row in report["ranges"]:
            if goal := next((goal for peer, goal in _GOALS.items() if row["way"].startswith(peer)), None):
                yield f"ranges x {row['way']}", ">=", goal, row["ours is x"]
    if "first" in report:
        yield "first batch by ranges, requests' time", "<=", 10, report["first"][0]["requests' time"]
    if "cache" in report:
        first, second = (rows[f"ours, local cache, {which} epoch"] for which in ("first", "second"))
        yield "local cache, first epoch: bytes / store", "<=", 1.0 + first["window / epoch"], first["bytes / store"]
        yield "local cache, second epoch: bytes", "<=", 0, second["bytes / store"]
        if "MDS, first epoch" in rows:
            yield "local cache, first epoch x MDS", ">=", 2, rows["MDS, first epoch"]["ours is x"]
    if "warm" in report:
        yield "warm local cache x disk: time", "<=", 1.05, rows["warm local cache"]["x disk"]
        yield "warm local cache x disk: CPU", "<=", 1.05, rows["warm local cache"]["CPU x disk"]
    for row in report.get("training", ()):
        if row["latents from"] != "disk":
            yield f"{row['setting']}, {row['latents from']}: waiting, %", "<=", 1, row["waits, %"]


if __name__ == "__main__":
    main()
