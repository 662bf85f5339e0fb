"""A store of latents: the index over its records, and checked reads.

Lives here: `LatentStore`.
Elsewhere: opening, creating and finding stores (store.py); writing a shard (shard_writer.py) and its bytes
(shard_layout.py); commit records (records.py); sources and failures (ledger.py).

Axes, everywhere:  B sample   C channel   T latent frame   K rollout steps   H, W latent row, column
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ledger
from .commit import replace, writing
from .errors import ConfigError, DamagedShardError, LatentShapeError, MissingLatentError
from .latents import LatentSpec, latent_frames
from .ledger import Failure
from .payloads import OpenPayloads, payload_path
from .recipe import Recipe
from .records import ShardRecord, read_record, record_numbers
from .shard_layout import ShardLayout, stored_crc32c
from .shard_writer import ShardWriter


def layout_of(recipe: Recipe, spec: LatentSpec, shard_size: int) -> ShardLayout:
    """How the shards of a recipe's store are laid out."""
    return ShardLayout(
        sample_shape=spec.sample_shape(recipe.height, recipe.width, recipe.rollout_steps),
        dtype=np.dtype(recipe.dtype).newbyteorder("<"),
        shard_size=shard_size,
    )


class LatentStore:
    """The latents of one recipe. Get one from `open_store` or `create_store`.

    Several threads may read one store at once; several processes may read and write the same folder.
    A process forked off may go on reading.

    Attributes:
        path: the store's folder.
        recipe, spec: what the latents are.
        shard_size: samples a full shard holds.
        damage: one message for each record that could not be used; empty in a store from `open_store`, which raises.
    """

    def __init__(self, path: Path, recipe: Recipe, spec: LatentSpec, shard_size: int, *, tolerate_damage: bool) -> None:
        self.path = path
        self.recipe = recipe
        self.spec = spec
        self.shard_size = shard_size
        self.layout = layout_of(recipe, spec, shard_size)
        self.damage: tuple[str, ...] = ()
        self._tolerate_damage = tolerate_damage
        self._recipe_id = recipe.id
        self._records: dict[int, ShardRecord] = {}
        self._bad: dict[int, str] = {}
        self._rows: dict[str, int] = {}
        self._keys: tuple[str, ...] | None = None
        self._payloads = OpenPayloads(path)
        self._lock = threading.Lock()
        self.refresh()

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W)"""
        return self.layout.sample_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored latents."""
        return self.layout.dtype

    @property
    def keys(self) -> tuple[str, ...]:
        """Every visible key once, by shard and row."""
        if self._keys is None:
            self._keys = tuple(sorted(self._rows, key=self._rows.__getitem__))
        return self._keys

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def row_of(self, key: str) -> int:
        """Where a latent is in the Zarr array: `zarr.open(path)["latents"][row]`.

        Raises:
            MissingLatentError: the store holds no latent for `key`.
        """
        row = self._rows.get(key)
        if row is None:
            raise MissingLatentError(
                f"{self.path} (recipe {self._recipe_id[:12]}, {len(self)} latents) holds no latent for key {key}. "
                f"Run `theworld precompute` over its image with the same flags and --cache {self.path.parent}"
            )
        return row

    def records(self) -> list[ShardRecord]:
        """Of the visible shards, by number."""
        return [self._records[number] for number in sorted(self._records)]

    def refresh(self) -> None:
        """See what has been committed, or moved away, since. Opens only the records not yet read.

        Raises:
            DamagedShardError: a record is not what was committed. A store from `create_store` notes it in `damage`
                instead and goes on.
        """
        with self._lock:
            listed = record_numbers(self.path)
            if gone := (self._records.keys() | self._bad.keys()) - listed:
                self._records = {n: record for n, record in self._records.items() if n not in gone}
                self._bad = {n: message for n, message in self._bad.items() if n not in gone}
                self._rows = self._index(self._records)
                self._payloads.forget(gone)
            new = self._read_records(listed - self._records.keys() - self._bad.keys())
            self._records |= new
            if self._rows:
                for key, row in self._index(new).items():
                    if row < self._rows.get(key, row + 1):
                        self._rows[key] = row
            else:
                self._rows = self._index(new)
            if gone or new:
                self._keys = None
            self.damage = tuple(self._bad[number] for number in sorted(self._bad))

    def read(
        self, keys: Sequence[str], *, rollout_steps: int | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The latents of some keys; every frame's checksum is checked, every time.

        Args:
            keys: B of them, in any order, also repeatedly.
            rollout_steps: K, read the observed frame and the first K future ones; a prefix costs only its own bytes.
                None reads all.
            out: filled and returned, if given: (B, C, 1 + K, H, W) of the store's dtype.
        Returns:
            (B, C, 1 + K, H, W), standardised, of the store's dtype.
        Raises:
            MissingLatentError: a key is not in the store; nothing was read then.
            DamagedShardError: bytes on disk are not the bytes committed.
            ConfigError: the rollouts are shorter than `rollout_steps`.
            LatentShapeError: `out` does not fit.
        """
        frames = self._frames(rollout_steps)
        rows = [self.row_of(key) for key in keys]
        channels, _, height, width = self.sample_shape
        shape = (len(rows), channels, frames, height, width)
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not out.flags.writeable:
            raise LatentShapeError(
                f"out must be a writeable {self.dtype} array of shape {shape}, got {out.dtype} {out.shape}"
            )
        buffer = np.empty((frames, self.layout.frame_bytes), np.uint8)
        values = self.layout.values(buffer)
        for sample, row in zip(out, rows, strict=True):
            self._read_row(row, buffer)
            sample[...] = values
        return out

    def new_shard(self) -> ShardWriter:
        """A writer for up to `shard_size` samples: `with store.new_shard() as shard: ...`"""
        return ShardWriter(self)

    def publish_shape(self) -> int:
        """Tell plain Zarr readers how many rows there are: rewrite `latents/zarr.json` from the records.

        Returns:
            N, up to and with the last row of the highest committed shard. Writers that race all end at the same N.
        Raises:
            StoreError: the file cannot be written.
        """
        target = self.path / "latents" / "zarr.json"
        while True:
            self.refresh()
            samples = self._array_rows()
            content = json.dumps(self.layout.array_metadata(samples), indent=2).encode()
            with writing(self.path):
                if not target.exists() or target.read_bytes() != content:
                    replace(self.path / "tmp", target, content)
            self.refresh()
            if samples == self._array_rows():  # else a commit came between, and its N may already be overwritten
                return samples

    def record_sources(self, rows: Iterable[tuple[str, str]]) -> None:
        """Keep which input is which key: rows of (source, key). The same set twice is kept once."""
        with writing(self.path):
            ledger.write_sources(self.path, rows)

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Source -> its keys, over all runs.

        More than one key means that the input changed between runs. No run is "the last" (clocks decide nothing here):
        whoever needs one key hashes the input as it is now, or refuses.
        """
        return ledger.read_sources(self.path)

    def record_failure(self, failure: Failure) -> None:
        """Keep that an input failed; an earlier row of the same input (key, else source) gives way."""
        with writing(self.path):
            ledger.write_failure(self.path, failure)

    def failures(self) -> list[Failure]:
        """The inputs that failed, by source."""
        return ledger.read_failures(self.path)

    def clear_failure(self, failure: Failure) -> None:
        """Forget a failure: its input has a latent now, or is no longer wanted."""
        with writing(self.path):
            ledger.remove_failure(self.path, failure)

    def close(self) -> None:
        """Close the payload files. Reading again opens them again."""
        self._payloads.clear()

    def payload_path(self, shard: int) -> Path:
        """Where the payload of a shard belongs."""
        return payload_path(self.path, shard)

    def _frames(self, rollout_steps: int | None) -> int:
        steps = self.recipe.rollout_steps if rollout_steps is None else rollout_steps
        if not 0 <= steps <= self.recipe.rollout_steps:
            raise ConfigError(
                f"{self.path} holds rollouts of {self.recipe.rollout_steps} steps, {steps} were asked for. "
                f"Pass --steps between 0 and {self.recipe.rollout_steps}, or precompute longer rollouts"
            )
        return latent_frames(steps)

    def _array_rows(self) -> int:
        if not self._records:
            return 0
        last = max(self._records)
        return last * self.shard_size + self._records[last].rows

    def _index(self, records: Mapping[int, ShardRecord]) -> dict[str, int]:
        """Key -> row; of shards that hold the same key, the lowest counts."""
        rows: dict[str, int] = {}
        for number in sorted(records, reverse=True):
            keys = records[number].keys
            first = number * self.shard_size
            rows.update(zip(keys, range(first, first + len(keys)), strict=True))
        return rows

    def _read_records(self, numbers: Iterable[int]) -> dict[int, ShardRecord]:
        records: dict[int, ShardRecord] = {}
        for number in sorted(numbers):
            try:
                record = read_record(self.path, number, self._recipe_id)
                if record.rows > self.shard_size or record.bytes != self.layout.payload_bytes(record.rows):
                    raise self._damaged(
                        number,
                        f"its record states {record.rows} rows in {record.bytes} bytes, "
                        f"a shard of {self.shard_size} rows cannot",
                    )
                records[number] = record
            except FileNotFoundError:  # moved away since it was listed
                continue
            except DamagedShardError as error:
                if not self._tolerate_damage:
                    raise
                self._bad[number] = str(error)
        return records

    def _read_row(self, row: int, buffer: NDArray[np.uint8]) -> None:
        """Fill `buffer` with the first frames of a row, checked."""
        number, place = divmod(row, self.shard_size)
        record = self._records.get(number)
        if record is None:  # a refresh in another thread
            raise self._damaged(number, "its record was moved away while it was read")
        try:
            payload = self._payloads.get(number, record.bytes)
            read = payload.read(buffer.data.cast("B"), place * self.layout.sample_bytes)
        except (OSError, ValueError) as error:
            raise self._damaged(number, str(error)) from error
        if read < buffer.nbytes:
            raise self._damaged(number, f"it ends within row {place}")
        if not self.layout.intact(buffer):
            raise self._damaged(number, f"row {place} does not match its checksums")
        if stored_crc32c(buffer[:1])[0] != record.first_frame_crc32c(place):
            raise self._damaged(number, f"row {place} is not the one its record describes")

    def _damaged(self, number: int, what: str) -> DamagedShardError:
        record = self.path / "commits" / f"{number}.json"
        return DamagedShardError(
            f"{self.payload_path(number)} (shard {number}): {what}. None of its latents can be trusted. Move its "
            f"record {record} to {self.path / 'lost+found'} and run `theworld precompute` with the same flags: it "
            "makes these rollouts again"
        )
