"""Which keys an open store has, and where: the visible part of its commit records."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DamagedShardError, MissingLatentError
from ..files.places.place import Place, parent_of
from ..latents.keys import is_key
from ..latents.recipe import Recipe
from ..messages import command
from .catalog import Catalog
from .formats.base import ShardLayout
from .keys.dropped import DroppedKeys
from .keys.index import AnyKeys, Index, Keys, Shards, is_packed, unpack_keys
from .payload_sizes import size_problem
from .records import read_record, record_name

_BLOCK_KEYS = 2**16
AT_TIMES_S = 60.0
"""Between two looks at all of a store by who adds to it."""
_SHARE = 50
"""Of the time, a large store is not looked at for so many times as long as that takes."""


def at_times_s(took_s: float) -> float:
    """When to do again what goes through a whole store, and took so long."""
    return max(AT_TIMES_S, _SHARE * took_s)


class StoreKeys:
    """The part of an open store that knows its keys.

    Attributes:
        place: the folder or the bucket that it is in.
        recipe: what the latents are.
        shard_size: samples a full shard holds.
        layout: where the payload of a shard is, and what is in it.
        damage: one message for each file that could not be used; empty in a store from `open_store`, which raises.
    """

    def __init__(self, place: Place, recipe: Recipe, layout: ShardLayout, *, tolerate_damage: bool) -> None:
        self.place = place
        self.recipe = recipe
        self.layout = layout
        self.shard_size = layout.shard_size
        self.damage: tuple[str, ...] = ()
        self.tolerates_damage = tolerate_damage
        self._recipe_id = recipe.id
        self._catalog = Catalog(place, self._recipe_id, layout.shard_size, layout.is_possible)
        self._dropped = DroppedKeys(place)
        self._lock = threading.Lock()
        self._refresh_at = 0.0

    @property
    def keys(self) -> tuple[str, ...]:
        """Every visible key once, by shard and row. Of millions of samples, take `rows` or `packed_keys`."""
        return self.index.keys

    @property
    def dropped(self) -> Keys:
        """The keys that `cache drop` took out, in order: never visible, and not to be made again."""
        self._loaded()
        return self._dropped.keys

    @property
    def packed_keys(self) -> Keys:
        """`keys` as an array of sixteen bytes each, made anew."""
        return self.index.packed_keys()

    def sorted_keys(self) -> Iterator[str]:
        """`keys` in order of their digits, one by one."""
        keys = np.sort(self.packed_keys)
        for start in range(0, len(keys), _BLOCK_KEYS):
            yield from unpack_keys(keys[start : start + _BLOCK_KEYS])

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the Zarr array that hold `keys`, ascending."""
        return self.index.rows

    @property
    def shards(self) -> Shards:
        """The visible shards by number, ascending; another object after a change."""
        return self.index.shards

    @property
    def bad_records(self) -> Mapping[int, str]:
        """The shards whose record cannot be used, and why."""
        self._loaded()
        return self._catalog.bad

    @property
    def array_rows(self) -> int:
        """N of the Zarr array: up to and with the last row of the highest committed shard."""
        return self.index.array_rows

    @property
    def next_number(self) -> int:
        """The first shard number above all that have a record, or that a snapshot speaks for."""
        self._loaded()
        return self._catalog.next_number

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self.holds([key])[0])

    @property
    def index(self) -> Index:
        """Which keys are where, now; another object after a change."""
        self._loaded()
        return self._catalog.index

    def _loaded(self) -> None:
        if not self._catalog.is_loaded:
            self.refresh()

    def holds(self, keys: AnyKeys) -> NDArray[np.bool_]:
        """Which of some keys are here."""
        return self.index.find(keys) >= 0

    def holds_soundly(self, keys: AnyKeys) -> bool:
        """Whether all of some keys are here, in payloads that are there with their sizes."""
        rows = self.index.find(keys)
        numbers = np.unique(rows // self.shard_size).tolist()
        return bool((rows >= 0).all()) and not any(
            size_problem(self.place, self.layout.payload_name(number), self.shards[number].bytes, number)
            for number in numbers
        )

    def rows_of(self, keys: AnyKeys) -> NDArray[np.int64]:
        """Where latents are in the Zarr array: `zarr.open(path)["latents"][row]`.

        Raises:
            MissingLatentError: names the first key that is not here.
            ConfigError: one key instead of several.
        """
        if isinstance(keys, str):  # each of its letters would be looked up as a key
            raise ConfigError(f"keys are a list, got the text {keys[:80]!r}: pass [key]")
        rows = self.index.find(keys)
        if (rows < 0).any():
            first = int(np.argmax(rows < 0))
            missing_key = unpack_keys(keys[first : first + 1])[0] if is_packed(keys) else keys[first]
            more_count = int((rows < 0).sum()) - 1
            more_text = f" and {more_count} more of {len(keys)}" if more_count else ""
            if not is_key(str(missing_key)):
                more_text += ", which is no key: a key has 32 hexadecimal digits; key_of_file(path) is that of an image"
            raise MissingLatentError(
                f"{self.place} (recipe {self._recipe_id[:12]}, {len(self)} latents) holds no latent for key "
                f"{missing_key}{more_text}. With the same flags over the images, run "
                f"{command('precompute', 'IMAGES', '--cache', parent_of(self.place))}"
            )
        return rows

    def row_of(self, key: str) -> int:
        """`rows_of` one key."""
        return int(self.rows_of([key])[0])

    def refresh(self) -> None:
        """See what has been committed, or moved away, since. Opens only the records not yet read.

        Raises:
            DamagedShardError: a record is not what was committed. A store from `create_store` notes it in `damage`
                instead and goes on.
        """
        began = monotonic()
        with self._lock:
            try:
                self._dropped.refresh(tolerate_damage=self.tolerates_damage)
                gone = self._catalog.refresh(tolerate_damage=self.tolerates_damage)
                self._catalog.index = self._catalog.index.hiding(self._dropped.keys)
                self._forget(gone)
            finally:
                self.damage = self._all_damage()
        self._refresh_at = monotonic() + at_times_s(monotonic() - began)

    def _forget(self, gone: Collection[int]) -> None:
        """Some shards are gone, or others by now."""

    def has_been_committed(self, keys: Sequence[str], *, taken: int | None) -> bool:
        """Whether others have meanwhile committed all of some keys, before this process does.

        On a disk all records are listed. In a bucket that would take longer than the commit, so all are listed at times
        alone; else only the records of the next numbers are asked for. Keys that two shards hold are visible once.

        Args:
            taken: the number that was planned for these keys, where something has it: mostly the same shard, whose
                writer was killed before it could tell.
        """
        if self.place.is_local:
            self.refresh()
            return self.holds_soundly(keys)
        if not self._catalog.is_loaded and taken is not None:  # a worker, which knows and needs no other shard
            return self._has_all(taken, keys)
        if not self._catalog.is_loaded or monotonic() >= self._refresh_at:
            self.refresh()
        with self._lock:
            for number in () if taken is None else (taken,):
                self._catalog.learn(number, tolerate_damage=self.tolerates_damage)
            while self._catalog.learn(self._catalog.next_number, tolerate_damage=self.tolerates_damage):
                pass
            self.damage = self._all_damage()
        return self.holds_soundly(keys)

    def free_number(self, *, taken: int | None) -> int:
        """A shard number that has neither a record nor, in a bucket, a payload: an upload for nothing takes long.

        Args:
            taken: as for `has_been_committed`, which was asked before.
        """
        if self.place.is_local:
            return self.next_number
        step = 1
        number = self.next_number if self._catalog.is_loaded or taken is None else taken + step
        while self._is_taken(number):
            if self._catalog.is_loaded:
                with self._lock:
                    self._catalog.learn(number, tolerate_damage=self.tolerates_damage)
            else:  # above it may be a thousand numbers that were planned and are taken: leap
                step *= 2
            number += step
        return number

    def _is_taken(self, number: int) -> bool:
        return any(self.place.entry(name) for name in (self.layout.payload_name(number), record_name(number)))

    def _has_all(self, number: int, keys: Sequence[str]) -> bool:
        """Whether one shard has all of some keys, and its payload."""
        try:
            record = read_record(self.place, number, self._recipe_id)
        except (FileNotFoundError, DamagedShardError):
            return False
        name = self.layout.payload_name(number)
        return set(keys) <= set(record.keys) and size_problem(self.place, name, record.bytes, number) is None

    def disregard(self, numbers: Collection[int], problem: str) -> None:
        """Go on as if some shards were not here: their keys are missing from now on, and `damage` says why."""
        with self._lock:
            self._catalog.disregard(numbers, problem)
            self.damage = self._all_damage()

    def _all_damage(self) -> tuple[str, ...]:
        messages = [message for _, message in sorted(self._catalog.bad.items())]
        return tuple(dict.fromkeys([*messages, *self._dropped.damage]))
