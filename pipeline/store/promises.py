"""What a store promises and does not hold: half of it was copied, or somebody deleted files.

Three places promise latents: the snapshot of the records (shard by shard, key by key), the Zarr array (up to which row
there are some), and the sources (which inputs were to be made; a job may not have come to them yet). Before anything
rewrites the first two, what they promised and is gone is written down in lost+found/.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DamagedShardError
from ..files.atomic import made_folder, publish, writing
from ..files.plain import read_json
from ..messages import name_some
from .index import SNAPSHOT
from .latent_store import LatentStore
from .packed_keys import Keys, is_in, unpack_keys
from .runs import Run, record_inodes
from .snapshot import read_snapshot

LOST = "lost+found"
_ARRAY_LIMIT_BYTES = 2**22
_MAX_SHARDS = 10**9


@dataclass(frozen=True, slots=True)
class Gone:
    """What was promised and is not here."""

    keys: dict[int, Keys]
    """By the shard that the snapshot says held them; only those that no other shard holds and nobody dropped."""
    payloads: tuple[Path, ...]
    """Of these shards: there, but their record is not."""
    array_rows: int
    """What `latents/zarr.json` states; 0 where it does not say more than is here, or the snapshot accounts for it."""

    def __bool__(self) -> bool:
        return bool(self.keys or self.array_rows)

    @property
    def rows(self) -> int:
        """Latents that are known to be gone."""
        return sum(map(len, self.keys.values()))


def promised_numbers(store: LatentStore) -> set[int]:
    """The shards that the snapshot speaks of, whether their records are here or not."""
    return {number for run in _promised_runs(store) for number in run.numbers.tolist()}


def promised_and_gone(store: LatentStore) -> Gone:
    """Compare what the snapshot and the Zarr array state with the records that are here. Cheap where all is here."""
    # promises first: a writer may commit and publish between two looks
    stated, runs = stated_rows(store), _promised_runs(store)
    recorded = record_inodes(store.path).keys()
    keys: dict[int, Keys] = {}
    highest = max(*store.bad_records, -1, -1)
    for run in runs:
        firsts = run.firsts()
        highest = max(highest, int(run.numbers[-1]))
        for at, number in enumerate(run.numbers.tolist()):
            if number in recorded:
                continue
            of_shard = run.keys_of(slice(int(firsts[at]), int(firsts[at] + run.shard_rows[at])))
            elsewhere = store.holds(of_shard) | is_in(of_shard, store.dropped)
            if not elsewhere.all():
                keys[number] = of_shard[~elsewhere]
    payloads = tuple(path for number in keys if os.path.lexists(path := store.payload_path(number)))
    highest = max(highest, *(recorded - set(store.shards)), -1)
    accounted = max(store.array_rows, (highest + 1) * store.shard_size)
    return Gone(dict(sorted(keys.items())), payloads, stated if stated > accounted else 0)


def _promised_runs(store: LatentStore) -> list[Run]:
    """What both files of the snapshot say, however few of the records are here."""
    runs: list[Run] = []
    base: int | None = None
    for _ in range(2):
        snapshot = read_snapshot(store.path, store.recipe.id, store.shard_size, listed=_MAX_SHARDS, base=base)
        if snapshot is None:
            break
        runs.append(snapshot.run)
        base = snapshot.seal
    return runs


def stated_rows(store: LatentStore) -> int:
    """The rows that the Zarr array says there are; 0 where it says none."""
    if store.format != "zarr":
        return 0
    try:
        metadata = read_json(store.path / "latents" / "zarr.json", _ARRAY_LIMIT_BYTES, within=store.path)
        rows = metadata["shape"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # verify says what is wrong with it
        return 0
    return rows if type(rows) is int else 0


def lines_of(store: LatentStore, gone: Gone) -> list[str]:
    """What is gone, in words: counts, names, and what to do."""
    advice = (
        "If this is a copy, copy the store again, with commits/ and all payloads; else `theworld precompute` with the "
        "same flags makes these rollouts again"
    )
    lines: list[str] = []
    if gone.keys:
        sources = sources_by_key(store)
        inputs = [name for keys in gone.keys.values() for key in unpack_keys(keys) for name in sources.get(key, [key])]
        if gone.payloads:
            advice = f"Payloads of {len(gone.payloads)} of these shards are here, but not their records. {advice}"
        lines.append(
            f"{store.path / SNAPSHOT} states {gone.rows} latents that are missing: no record holds them (shards "
            f"{name_some([*gone.keys])}; inputs {name_some(inputs)}). {advice}"
        )
    if gone.array_rows:
        lines.append(
            f"{store.path / 'latents' / 'zarr.json'} states {gone.array_rows} rows, and the records end at row "
            f"{store.array_rows}: the shards above are missing. {advice}"
        )
    return lines


def report_gone(store: LatentStore, gone: Gone) -> Path | None:
    """Write down in lost+found/ what is gone, key by key with its sources; the same twice is one file.

    Returns:
        The report; None where nothing is gone.
    """
    if not gone:
        return None
    sources = sources_by_key(store)
    rows: list[dict[str, Any]] = [
        {
            "what": "latents that the index or the Zarr array of this store stated and that were not here",
            "recipe_id": store.recipe.id,
            "array_rows_stated": gone.array_rows or None,
            "array_rows": store.array_rows,
        }
    ]
    for shard, keys in gone.keys.items():
        rows += ({"key": key, "shard": shard, "sources": sources.get(key, [])} for key in unpack_keys(keys))
    if gone.array_rows:  # which keys the lost rows had is not known; these inputs have no latent now
        rows += ({"key": key, "shard": None, "sources": sources[key]} for key in unmade_keys(store, sources))
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    file = store.path / LOST / f"missing-{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
    with writing(store.path), made_folder(store.path, file.parent):
        publish(store.path / "tmp", file, content, within=store.path)
    return file


def unmade_keys(store: LatentStore, sources: Mapping[str, Sequence[str]]) -> list[str]:
    """The keys of inputs of earlier jobs that have neither a latent nor a failure and were not dropped."""
    keys = list(sources)
    failed: set[str | None] = set()
    with suppress(DamagedShardError):
        failed = {name for failure in store.failures() for name in (failure.key, failure.source)}
    dropped = set(unpack_keys(store.dropped))
    return [
        key
        for key, is_held in zip(keys, store.holds(keys).tolist(), strict=True)
        if not is_held and key not in dropped and key not in failed and failed.isdisjoint(sources[key])
    ]


def sources_by_key(store: LatentStore) -> dict[str, list[str]]:
    """Key -> the names of its inputs; empty where the lists are damaged, which verify says by itself."""
    by_key: dict[str, list[str]] = {}
    with suppress(DamagedShardError):
        for source, keys in store.sources().items():
            for key in keys:
                by_key.setdefault(key, []).append(source)
    return by_key
