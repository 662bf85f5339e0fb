"""Make large shards of small ones, in place: full shards from number 0 on, so that the Zarr array has no empty rows.

    full shards that are where they belong stay; all others give their rows, in order, to new ones
    for each number that a full shard belongs to:
        where a small shard is in its place: its rows are committed again above all others, and it goes
        the full shard is committed under the number; the shards whose last rows were in it go

New shards are committed before old ones go (retire.py), so every row is visible at every moment, whatever is cut when.
The next `compact` starts from what it finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import DamagedShardError
from ...files.plain import open_file
from ...progress import Bar, Progress
from ..folder import load_store
from ..latent_store import LatentStore
from ..records import RECORD_LIMIT_BYTES, record_path
from .maintenance import alone
from .retire import finish_retirements, retiring
from .transfer import copy_shard


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did, or would do."""

    store: Path
    samples: int
    shards: tuple[int, int]
    """Before and after."""
    array_rows: tuple[int, int] | None
    """Of the Zarr array, before and after; those beyond the samples are empty. None where there is no such array."""
    copied: int
    """Samples that are written anew; the others stay where they are."""

    def lines(self, *, applied: bool) -> list[str]:
        """In words."""
        before, after = self.shards
        if not self.copied and before == after:
            return [f"{self.store}: its {before:,} shards are full, and there is nothing to compact"]
        become = "became" if applied else "would become"
        text = f"{self.store}: {before:,} shards {become} {after:,}"
        if self.array_rows is not None:
            text += f", {self.array_rows[0]:,} rows of the Zarr array {become} {self.array_rows[1]:,}"
        text += f"; {self.copied:,} of {self.samples:,} samples {'were' if applied else 'are to be'} copied"
        return [text] if applied else [text, "nothing was changed; --apply does it"]


def compact(path: Path, *, apply: bool, progress: Progress | None = None) -> Compaction:
    """Fill the shards of a store. The latents, their bits and what is known of their making stay as they are.

    Jobs that write here, and programs that read by key, may go on beside it. Row numbers change.

    Args:
        apply: False only says what would be done.
    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: other maintenance is at work.
        DamagedShardError: a shard is damaged; repair first. All rows are visible still.
        StoreError: the store cannot be written.
    """
    if not apply:
        return _plan(_sound(path)).outcome
    with alone(path):
        store = _sound(path)
        finish_retirements(store)
        plan = _plan(store)
        with (progress or Progress.silent()).bar("compact", total=plan.outcome.copied, unit="samples") as bar:
            for number, keys in plan.new_shards:
                _fill(store, number, keys, plan.left, bar)
        _commit(store, [], [number for number, rest in plan.left.items() if not rest])
        store.publish()
        rows = None if plan.outcome.array_rows is None else (plan.outcome.array_rows[0], store.array_rows)
        shards = plan.outcome.shards[0], len(store.shards)
        return replace(plan.outcome, samples=len(store), shards=shards, array_rows=rows)


@dataclass(frozen=True, slots=True)
class _Plan:
    new_shards: list[tuple[int, Sequence[str]]]
    """The number each full shard should get, and its keys."""
    left: dict[int, set[str]]
    """Of each shard that gives its rows: those that no new shard holds yet."""
    outcome: Compaction


def _sound(path: Path) -> LatentStore:
    store = load_store(path)
    if store.damage:
        raise DamagedShardError(f"{store.damage[0]} Nothing is compacted until then")
    return store


def _plan(store: LatentStore) -> _Plan:
    keys, size = store.keys, store.shard_size
    numbers: list[int] = (store.rows_of(keys) // size).tolist() if keys else []
    visible = Counter(numbers)
    whole = len(keys) // size
    # a shard of which rows are hidden (dropped, or held twice) is not full, whatever its record says
    kept = {number for number, rows in visible.items() if number < whole and rows == size}
    if store.array_rows == len(keys) and len(kept) == whole and len(store.shards) == -(-len(keys) // size):
        kept = set(visible)
    moving = [(key, number) for key, number in zip(keys, numbers, strict=True) if number not in kept]
    left: dict[int, set[str]] = {number: set() for number in store.shards if number not in kept}
    for key, number in moving:
        left[number].add(key)
    free = (number for number in range(len(keys)) if number not in kept)
    parts = [[key for key, _ in moving[start : start + size]] for start in range(0, len(moving), size)]
    after = len(kept) + len(parts)
    rows = (store.array_rows, len(keys)) if store.format == "zarr" else None
    outcome = Compaction(store.path, len(keys), (len(store.shards), after), rows, copied=len(moving))
    return _Plan(list(zip(free, parts, strict=False)), left, outcome)


def _fill(store: LatentStore, number: int, keys: Sequence[str], left: dict[int, set[str]], bar: Bar) -> None:
    """Commit a full shard under a number, and let the shards go that have nothing left."""
    with ExitStack() as held:
        if number in store.shards:
            # as long as it is open, no other record gets its inode, by which readers notice that it is another
            held.enter_context(open_file(record_path(store.path, number), RECORD_LIMIT_BYTES, within=store.path))
            rest = left.pop(number)
            moved = _commit(store, sorted(rest, key=store.row_of), [number])
            if moved is not None:
                left[moved] = rest
        for remaining in left.values():
            remaining.difference_update(keys)
        empty = [each for each, remaining in left.items() if not remaining]
        for each in empty:
            del left[each]
        _commit(store, keys, empty, number=number)
        bar.advance(len(keys))


def _commit(store: LatentStore, keys: Sequence[str], old: Sequence[int], *, number: int | None = None) -> int | None:
    """Commit a shard of these keys and retire others; the number it got, None where there are no keys."""
    committed = None
    with retiring(store, old, why="compact"):
        if keys:
            committed, damaged = copy_shard(store, store, keys, number=number, again=True)
            if damaged:
                raise DamagedShardError(damaged[0])
    return committed
