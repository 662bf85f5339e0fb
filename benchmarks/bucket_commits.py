"""What a commit into a bucket costs a worker beside the upload, in a store of many shards: requests and CPU seconds.

    python -m benchmarks.bucket_commits [--shards N ...] [--commits N] [--json FILE]

A scripted server in a process of its own holds the records of so many shards; payloads are small, so what is measured
is not the upload. Each way commits in a fresh process: under planned numbers, as the workers of a job do; without a
plan, as merge and compact do; and under planned numbers of which each is taken by a payload that a killed writer left.
The median of a commit is stated, and apart from it what the first one took, which may open the store.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tests.s3_server import BUCKET, S3Server, Stored, environment, s3_server
from theworld.pipeline import LatentSpec, Recipe, create_store
from theworld.pipeline.files.sealed import seal
from theworld.pipeline.store.folder import open_to_add
from theworld.pipeline.store.keys.packed_keys import pack_keys
from theworld.pipeline.store.keys.runs import Shard, Stamp, run_of
from theworld.pipeline.store.keys.snapshot import write_snapshot
from theworld.pipeline.store.records import seal_of

from .store import table

SHARDS = (1_000, 50_000)
COMMITS = 20
RECIPE = Recipe(world="sha256:" + "0" * 64, height=16, width=16, rollout_steps=2)
SPEC = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
WAYS = ("planned", "looking first", "planned, taken")
LIMIT_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    parser.add_argument("--commits", type=int, default=COMMITS)
    parser.add_argument("--json", type=Path, help="all figures go here too")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(committed(options.only, options.shards[0], options.commits)))
        return
    report = [figures for shards in options.shards for figures in figures_of(shards, options.commits)]
    columns = ["shards", "way", "first: CPU s", "requests", "then each: CPU s", "requests", "which", "at most", ""]
    table(columns, [[*figures.values(), f"{LIMIT_S} CPU s", verdict(figures)] for figures in report])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def verdict(figures: dict[str, Any]) -> str:
    return "kept" if figures["cpu_s"] <= LIMIT_S else "MISSED"


def figures_of(shards: int, commits: int) -> list[dict[str, Any]]:
    """One server, and each way in a process of its own."""
    found: list[dict[str, Any]] = []
    context = get_context("spawn")
    for way in WAYS:
        ours, theirs = context.Pipe()
        server = context.Process(target=serve, args=(shards, theirs), daemon=True)
        server.start()
        variables = ours.recv()
        command = [sys.executable, "-m", "benchmarks.bucket_commits", "--commits", str(commits)]
        command += ["--shards", str(shards), "--only", way]
        with tempfile.TemporaryDirectory(prefix="theworld-benchmark-") as temporary:
            kept = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
            environ = {**kept, **variables, "XDG_CACHE_HOME": temporary}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
        costs = json.loads(done.stdout)
        ours.send("asked")
        asked: list[str] = ours.recv()
        server.terminate()
        server.join()
        parts = split_at_commits(asked)
        first, others = parts[0], parts[1:]
        kinds = Counter(line.split()[0] for part in others for line in part)
        which = ", ".join(f"{count / len(others):.3g} {kind}" for kind, count in sorted(kinds.items()))
        found.append(
            {
                "shards": shards,
                "way": way,
                "first_cpu_s": round(costs[0], 4),
                "first_requests": len(first),
                "cpu_s": round(statistics.median(costs[1:]), 4),
                "requests": statistics.median(len(part) for part in others),
                "which": which,
            }
        )
    return found


def split_at_commits(asked: list[str]) -> list[list[str]]:
    """The requests of each commit: they are behind marks."""
    parts: list[list[str]] = []
    for line in asked:
        if line.startswith("HEAD mark"):
            parts.append([])
        elif parts:
            parts[-1].append(line)
    return parts


def serve(shards: int, pipe: Any) -> None:
    """A store of so many records, as a server would hold it."""
    with s3_server() as server, environment(server.variables()):
        fill(server, shards)
        pipe.send(server.variables())
        pipe.recv()
        pipe.send(server.asked)
        time.sleep(60)


def fill(server: S3Server, shards: int) -> None:
    """One real shard says what a record is; the others are made like it, four rows each. Then a snapshot."""
    store = create_store(f"s3://{BUCKET}/cache", RECIPE, SPEC, label="many", shard_size=4)
    with store.new_shard(0) as shard:
        for row in range(4):
            shard.add(f"{row:032x}", np.zeros(store.sample_shape, np.float32))
        record = shard.commit({"host": "here"})
    assert record is not None
    prefix = f"{str(store.place).removeprefix(f's3://{BUCKET}/')}/"
    body, now = record.to_json(), time.time()
    payload = server.objects[prefix + store.layout.payload_name(0)]
    shards_known: list[Shard] = []
    for number in range(shards):
        keys = [f"{4 * number + row:032x}" for row in range(4)]
        content = seal(body | {"shard": number, "keys": keys})
        stored = Stored(content, {}, now)
        server.objects[f"{prefix}commits/{number}.json"] = stored
        server.objects[prefix + store.layout.payload_name(number)] = payload
        stamp = Stamp(xxhash.xxh3_64_intdigest(stored.etag.encode()), seal_of(content) or 0)
        shards_known.append(Shard(number, record.bytes, pack_keys(keys), record.checksums(), stamp))
    # as `publish` writes it, without asking for each record before
    folder = store.place.tag_of_folder("commits")
    write_snapshot(store.place, run_of(shards_known, 4), RECIPE.id, folder=folder)
    server.asked.clear()


def committed(way: str, shards: int, commits: int) -> list[float]:
    """CPU seconds of each of some commits."""
    from theworld.pipeline.files.places.local import place_of

    place = place_of(f"s3://{BUCKET}/cache/many-{RECIPE.id[:12]}")
    store = open_to_add(place)
    if way == "planned, taken":
        for number in range(shards, shards + commits):
            place.create(store.layout.payload_name(number), b"of a killed writer")
    costs: list[float] = []
    for at in range(commits):
        with store.new_shard(None if way == "looking first" else shards + at) as shard:
            for row in range(4):
                shard.add(f"{2**64 + 4 * at + row:032x}", np.zeros(store.sample_shape, np.float32))
            mark = place_of(f"s3://{BUCKET}").entry(f"mark-{at}")
            assert mark is None
            started = time.process_time()
            record = shard.commit({})
            costs.append(time.process_time() - started)
        assert record is not None
    return costs


if __name__ == "__main__":
    main()
