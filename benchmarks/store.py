"""Our store against a numpy memmap and other people's formats: reading, writing, opening; ratios in one run.

    python -m benchmarks.store [--peers] [--quick] [--data FOLDER] [--json FILE]

All readers live in one process and take short slices in turn, in random order, so that noise hits all alike; each is
first checked bit by bit. A figure is the lower quartile of its slices, divided by that of `memmap[rows]` in the same
run. Warm: rows in the page cache. Cold: the files were evicted (fsync, POSIX_FADV_DONTNEED) before each batch. Ours are
"verified" when this process has checked each sample before, and "first touch" when a new store has to: the cost of the
checksums. `--peers` installs peers.txt into an environment of its own, build/peers, and measures there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from .store_peers import SHARD
from .store_reading import epochs, reading
from .store_ways import BATCH, Figures, make_samples
from .store_writing import opening, writing

SETTINGS = {224: (2048, 512, 8), 64: (8192, 2048, 32)}
"""Pixels -> samples, of which warm, and batches a slice."""
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="also measure peers.txt; installs it first, ~330 MB")
    parser.add_argument("--quick", action="store_true", help="a look in half a minute, not a measurement")
    parser.add_argument("--data", type=Path, help="a folder for the stores, on the disk to measure; they stay")
    parser.add_argument("--json", type=Path, help="all figures go here too")
    options = parser.parse_args()
    if options.peers:
        enter_environment_of_peers("benchmarks.store")
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


def enter_environment_of_peers(module: str) -> None:
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
    os.execv(python, [str(python), "-m", module, *sys.argv[1:]])


if __name__ == "__main__":
    main()
