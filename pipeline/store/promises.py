"""What a store promises and does not hold: half of it was copied, or somebody deleted files.

Three places promise latents: the snapshot of the records (shard by shard, key by key), the Zarr array (up to which row
there are some), and the sources (which inputs were to be made; a job may not have come to them yet). Before anything
rewrites the first two, what they promised and is gone is written down in lost+found/.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedShardError
from ..files.plain import limited_json
from ..messages import MAX_NAMES, name_some
from .commit import LOST_AND_FOUND
from .keys.index import SNAPSHOT
from .keys.packed_keys import Keys, is_in, pack_keys, unpack_keys
from .keys.runs import Run, record_tags
from .keys.snapshot import read_snapshot
from .latent_store import LatentStore
from .sources.scan import source_blocks, sources_of, unsound_sources

_ARRAY_LIMIT_BYTES = 2**22
_MAX_SHARDS = 10**9


@dataclass(frozen=True, slots=True)
class Gone:
    """What was promised and is not here."""

    keys: dict[int, Keys]
    """By the shard that the snapshot says held them; only those that no other shard holds and nobody dropped."""
    payloads: tuple[Path | str, ...]
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
    recorded = record_tags(store.place).keys()
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
    there = store.layout.payload_numbers(store.place) if keys else set[int]()
    payloads = tuple(store.payload_location(number) for number in keys if number in there)
    highest = max(highest, *(recorded - set(store.shards)), -1)
    accounted = max(store.array_rows, (highest + 1) * store.shard_size)
    return Gone(dict(sorted(keys.items())), payloads, stated if stated > accounted else 0)


def _promised_runs(store: LatentStore) -> list[Run]:
    """What both files of the snapshot say, however few of the records are here."""
    runs: list[Run] = []
    base: int | None = None
    for _ in range(2):
        snapshot = read_snapshot(store.place, store.recipe.id, store.shard_size, listed=_MAX_SHARDS, base=base)
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
        metadata = json.loads(limited_json(store.place.read("latents/zarr.json", _ARRAY_LIMIT_BYTES)))
        rows = metadata["shape"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):  # verify says what is wrong with it
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
        first = np.concatenate([*gone.keys.values()])[: MAX_NAMES + 1]
        sources = sources_of(store.place, first)
        inputs = [sources.get(key, [key])[0] for key in unpack_keys(first)[:MAX_NAMES]]
        if gone.payloads:
            advice = f"Payloads of {len(gone.payloads)} of these shards are here, but not their records. {advice}"
        lines.append(
            f"{store.place.location(SNAPSHOT)} states {gone.rows} latents that are missing: no record holds them "
            f"(shards {name_some([*gone.keys])}; the first inputs are {', '.join(inputs)}). {advice}"
        )
    if gone.array_rows:
        lines.append(
            f"{store.place.location('latents/zarr.json')} states {gone.array_rows} rows, and the records end at row "
            f"{store.array_rows}: the shards above are missing. {advice}"
        )
    return lines


def report_gone(store: LatentStore, gone: Gone) -> Path | str | None:
    """Write down in lost+found/ what is gone, key by key with its sources; the same twice is one file.

    Returns:
        The report; None where nothing is gone.
    """
    if not gone:
        return None
    lost = [(key, shard) for shard, keys in gone.keys.items() for key in unpack_keys(keys)]
    if gone.array_rows:  # which keys the lost rows had is not known; these inputs have no latent now
        known = {key for key, _ in lost}
        lost += [(key, None) for key in unpack_keys(unmade_keys(store).keys) if key not in known]
    sources = sources_of(store.place, pack_keys([key for key, _ in lost]))
    rows: list[dict[str, Any]] = [
        {
            "what": "latents that the index or the Zarr array of this store stated and that were not here",
            "recipe_id": store.recipe.id,
            "array_rows_stated": gone.array_rows or None,
            "array_rows": store.array_rows,
        },
        *({"key": key, "shard": shard, "sources": sources.get(key, [])} for key, shard in lost),
    ]
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    name = f"{LOST_AND_FOUND}/missing-{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
    with store.place.writing():
        store.place.create(name, content)
    return store.place.location(name)


@dataclass(frozen=True, slots=True)
class Unmade:
    """Inputs of earlier jobs that have neither a latent nor a failure and were not dropped."""

    keys: Keys
    """In order, each once."""
    names: tuple[str, ...]
    """Of the first few."""
    unsound: tuple[str, ...]
    """Names of lists of inputs that could not be taken into account."""


def only_digests(store: LatentStore) -> Unmade:
    """Instead of `unmade_keys`: look at no key, and only find out which lists are not what was written."""
    return Unmade(pack_keys([]), (), tuple(unsound_sources(store.place)))


def unmade_keys(store: LatentStore) -> Unmade:
    """Look for inputs that were recorded and have no latent."""
    failed = pack_keys([])
    with suppress(DamagedShardError):
        failed = pack_keys(sorted({failure.key for failure in store.failures() if failure.key is not None}))
    found: list[Keys] = [pack_keys([])]
    names: list[str] = []
    unsound: list[str] = []
    for block in source_blocks(store.place, unsound=unsound):
        missing = np.flatnonzero(~store.holds(block.keys))
        if len(missing):
            keys = block.keys[missing]
            missing = missing[~(is_in(keys, store.dropped) | is_in(keys, failed))]
            names += [block.source(row) for row in missing[: MAX_NAMES + 1 - len(names)].tolist()]
            found.append(block.keys[missing])
    return Unmade(np.unique(np.concatenate(found)), tuple(names), tuple(unsound))
