"""Make large shards of small ones, in place: full shards from number 0 on, so that the Zarr array has no empty rows.

    full shards that are where they belong stay; all others give their rows, in order, to new ones
    for each number that a full shard belongs to:
        where a small shard is in its place: its rows are committed again above all others, and it goes
        the full shard is committed under the number; the shards whose last rows were in it go

New shards are committed before old ones go (retire.py), so every row is visible at every moment, whatever is cut when.
The next `compact` starts from what it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from pathlib import Path

import numpy as np

from ...errors import DamagedShardError
from ...files.places.folder import path_or_url
from ...files.places.local import place_of
from ...files.places.place import Place
from ...progress import Progress
from ..folder import load_store
from ..keys.packed_keys import Keys, unpack_keys
from ..latent_store import LatentStore
from ..records import RECORD_LIMIT_BYTES, record_name
from .maintenance import alone
from .retire import finish_retirements, retiring
from .transfer import copy_shard


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did, or would do."""

    store: Path | str
    """Its path or URL."""
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


def compact(
    path: Path | Place, *, apply: bool, progress: Progress | None = None, break_lock: bool = False
) -> Compaction:
    """Fill the shards of a store. The latents, their bits and what is known of their making stay as they are.

    Jobs that write here, and programs that read by key, may go on beside it. Row numbers change.

    Args:
        apply: False only says what would be done.
        break_lock: as for `alone`.
    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: other maintenance is at work.
        DamagedShardError: a shard is damaged; repair first. All rows are visible still.
        StoreError: the store cannot be written.
    """
    place = place_of(path)
    if not apply:
        return _plan(_sound(place)).outcome
    with alone(place, break_lock=break_lock):
        store = _sound(place)
        finish_retirements(store)
        plan = _plan(store)
        givers = _Givers(plan)
        with (progress or Progress.silent()).bar("compact", total=plan.outcome.copied, unit="samples") as bar:
            for number, part in plan.new_shards:
                _fill(store, number, plan.keys, part, givers)
                bar.advance(part.stop - part.start)
        _commit(store, plan.keys[:0], givers.done(len(plan.keys)))
        store.publish()
        rows = None if plan.outcome.array_rows is None else (plan.outcome.array_rows[0], store.array_rows)
        shards = plan.outcome.shards[0], len(store.shards)
        return replace(plan.outcome, samples=len(store), shards=shards, array_rows=rows)


@dataclass(frozen=True, slots=True)
class _Plan:
    keys: Keys
    """Of the rows that are to be copied, by row."""
    new_shards: list[tuple[int, slice]]
    """The number each full shard should get, and which of `keys` it is to hold: one shard begins where one ends."""
    givers: dict[int, slice]
    """Each shard that is to go, and which of `keys` it holds."""
    outcome: Compaction


def _sound(place: Place) -> LatentStore:
    store = load_store(place)
    if store.damage:
        raise DamagedShardError(f"{store.damage[0]} Nothing is compacted until then")
    return store


def _plan(store: LatentStore) -> _Plan:
    keys, size = store.packed_keys, store.shard_size
    numbers = store.rows // size
    shards, visible = np.unique(numbers, return_counts=True)
    whole = len(keys) // size
    # a shard of which rows are hidden (dropped, or held twice) is not full, whatever its record says
    kept = shards[(shards < whole) & (visible == size)]
    if store.array_rows == len(keys) and len(kept) == whole and len(store.shards) == -(-len(keys) // size):
        kept = shards
    is_moving = ~np.isin(numbers, kept)
    moving, of_moving = keys[is_moving], numbers[is_moving]
    leaving = np.setdiff1d(store.shards.numbers, kept)
    ends = np.searchsorted(of_moving, leaving, "right").tolist()
    givers = {number: slice(*place) for number, *place in zip(leaving.tolist(), [0, *ends], ends, strict=False)}
    places = set(kept.tolist())
    free = (number for number in range(len(keys)) if number not in places)
    parts = [slice(start, min(start + size, len(moving))) for start in range(0, len(moving), size)]
    after = len(kept) + len(parts)
    rows = (store.array_rows, len(keys)) if store.format == "zarr" else None
    outcome = Compaction(path_or_url(store.place), len(keys), (len(store.shards), after), rows, copied=len(moving))
    return _Plan(moving, list(zip(free, parts, strict=False)), givers, outcome)


class _Givers:
    """The shards that are to go, and which keys no new shard holds yet. New shards take the keys in order."""

    def __init__(self, plan: _Plan) -> None:
        self._left = dict(plan.givers)
        self._by_end = [(part.stop, number) for number, part in plan.givers.items()]
        heapify(self._by_end)

    def move(self, number: int, to: int | None) -> None:
        """A shard's rows are in another one now; None: it had none left."""
        part = self._left.pop(number)
        if to is not None:
            self._left[to] = part
            heappush(self._by_end, (part.stop, to))

    def left_of(self, number: int, start: int) -> slice:
        """What a shard still has to give, when all keys before `start` are taken."""
        part = self._left[number]
        return slice(max(part.start, start), part.stop)

    def done(self, stop: int) -> list[int]:
        """The shards that have nothing left when all keys before `stop` are taken; each is told once."""
        done: list[int] = []
        while self._by_end and self._by_end[0][0] <= stop:
            _, number = heappop(self._by_end)
            if self._left.pop(number, None) is not None:
                done.append(number)
        return sorted(done)


def _fill(store: LatentStore, number: int, keys: Keys, part: slice, givers: _Givers) -> None:
    """Commit a full shard under a number, and let the shards go that have nothing left."""
    with ExitStack() as held:
        if number in store.shards:
            if store.place.is_local:
                # as long as it is open, no other record gets its inode, by which readers notice that it is another
                held.enter_context(store.place.open(record_name(number), RECORD_LIMIT_BYTES))
            givers.move(number, _commit(store, keys[givers.left_of(number, part.start)], [number]))
        _commit(store, keys[part], givers.done(part.stop), number=number)


def _commit(store: LatentStore, keys: Keys, old: Sequence[int], *, number: int | None = None) -> int | None:
    """Commit a shard of these keys and retire others; the number it got, None where there are no keys."""
    committed = None
    with retiring(store, old, why="compact"):
        if len(keys):
            committed, damaged = copy_shard(store, store, unpack_keys(keys), number=number, again=True)
            if damaged:
                raise DamagedShardError(damaged[0])
    return committed
