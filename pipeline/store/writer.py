"""Write one shard of a store, sample by sample, and commit it at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

import xxhash
from numpy.typing import NDArray

from ..errors import StoreError
from ..files.atomic import TempFile
from ..files.places.place import Place
from ..files.sealed import seal, unseal
from ..latents.keys import is_key
from ..latents.recipe import Recipe
from ..machine import running_seconds
from .commit import place_payload, publish_record, require_quick
from .formats.base import ShardLayout
from .records import RECORD_LIMIT_BYTES, ShardRecord


class ShardTarget(Protocol):
    """What a shard writer needs of the store that it writes to."""

    place: Place
    recipe: Recipe
    shard_size: int
    layout: ShardLayout

    def has_been_committed(self, keys: Sequence[str], *, taken: int | None) -> bool:
        """Whether others have meanwhile committed all of some keys, which were planned for a number that is taken."""
        ...

    def free_number(self, *, taken: int | None) -> int:
        """The shard number to try first, where there is no plan or its number is taken."""
        ...

    def committed(self, record: ShardRecord) -> None:
        """Know a record that was just published here."""
        ...


def place_shard(
    place: Place, layout: ShardLayout, record: ShardRecord, payload: Path | bytes, *, first: int
) -> ShardRecord:
    """Place a payload, then its record; returns the record with the number it got.

    Args:
        payload, first: as of `place_payload`.
    Raises:
        StoreError: the place refuses, or took so long that gc may have taken the payload away.
    """
    began = running_seconds()
    number = place_payload(place, payload, layout.payload_name, first=first, top=layout.payload_folder)
    require_quick(place.location(layout.payload_name(number)), running_seconds() - began)
    record = record.model_copy(update={"shard": number})
    publish_record(place, record)
    return record


class ShardWriter:
    """Streams samples into one new shard. Leaving the `with` block without `commit` publishes nothing."""

    def __init__(self, store: ShardTarget, number: int | None = None) -> None:
        self._store = store
        self._number = None if number is None else max(number, 0)
        self._keys: dict[str, list[int]] = {}
        """Key -> crc32c of its frames as the record has them, in row order."""
        self._row = store.layout.new_row()
        self._hashes = (xxhash.xxh3_128(), hashlib.sha256())
        self._bytes = 0
        self._temp: TempFile | None = None
        self._held = ExitStack()
        """Holds the folder of the temporary file, which has its path from there."""

    def __enter__(self) -> Self:
        with self._store.place.writing():
            folder = self._held.enter_context(self._store.place.staging())
            try:
                self._temp = TempFile(folder)
            except OSError:
                self._held.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        temp, self._temp = self._temp, None
        if temp is not None:
            with suppress(OSError):  # a leftover in tmp/ is harmless, and must not hide what went wrong
                temp.discard()
        self._held.close()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, latent: NDArray[Any]) -> None:
        """Append one sample. After a LatentShapeError the shard is as before and can go on.

        Args:
            key: of the input; once a shard.
            latent: (C, T, H, W), float16, bfloat16 or float32, finite, standardised.
        Raises:
            LatentShapeError: wrong shape or dtype, or values not finite or too large for the stored dtype.
            StoreError: the key is none or here already, the shard is full, or the disk refused.
        """
        if not is_key(key) or key in self._keys or len(self) == self._store.shard_size:
            raise StoreError(
                f"cannot add {key!r} to a shard of {len(self)}/{self._store.shard_size} samples: "
                "it is not a key, it is there already, or the shard is full"
            )
        checksums = self._store.layout.encode(key, latent, self._row)
        self._write(self._row.data)
        self._keys[key] = checksums

    def commit(self, facts: Mapping[str, Any], *, again: bool = False) -> ShardRecord | None:
        """Make the shard durable and visible, all of it at once.

        Args:
            facts: kept in the record: anything JSON can say.
            again: also where other shards hold every key: they are about to be retired (retire.py).
        Returns:
            The record; None where nothing was to publish, as other writers have meanwhile committed every key.
        Raises:
            StoreError: the disk refused, or `facts` are not JSON. The shard then is not acknowledged; should only
                the very last sync have failed, it is visible all the same, and whole.
        """
        store = self._store
        self._write(store.layout.trailer(len(self)))
        temp = self._take()
        try:
            with store.place.writing():
                temp.finish()
                first = self._number
                if first is None or self._is_taken(first):
                    # others write here too; a number that was planned and is free needs no look, which at 50,000
                    # shards costs more than all the rest
                    if store.has_been_committed(list(self._keys), taken=first) and not again:
                        return None
                    first = store.free_number(taken=first)
                record = place_shard(store.place, store.layout, self._record(facts), temp.path, first=first)
        finally:
            with suppress(OSError):
                temp.discard()
        store.committed(record)
        return record

    def _is_taken(self, number: int) -> bool:
        """Whether something is where a payload belongs: an upload that finds this out at its end is paid for."""
        try:
            return self._store.place.entry(self._store.layout.payload_name(number)) is not None
        except ValueError:
            return True

    def _record(self, facts: Mapping[str, Any]) -> ShardRecord:
        """The record but for its number, proven readable before anything is placed."""
        xxh3, sha256 = (digest.hexdigest() for digest in self._hashes)
        version = self._store.layout.version
        body = {
            "format": version,
            "shard": 0,
            "recipe_id": self._store.recipe.id,
            "keys": list(self._keys),
            "rows": len(self),
            "bytes": self._bytes,
            "xxh3_128": xxh3,
            "sha256": sha256,
            "frames_crc32c" if version > 1 else "first_frames_crc32c": "".join(
                f"{crc:08x}" for checksums in self._keys.values() for crc in checksums
            ),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": dict(facts),
        }
        try:
            sealed = seal(body)
            if len(sealed) > RECORD_LIMIT_BYTES:
                raise ValueError(f"the record would have {len(sealed)} bytes, more than {RECORD_LIMIT_BYTES}")
            return ShardRecord.model_validate_json(unseal(sealed))
        except (TypeError, ValueError) as error:
            raise StoreError(f"a shard's facts must be plain JSON: {error}") from error

    def _write(self, data: bytes | memoryview) -> None:
        if self._temp is None:
            raise StoreError("this shard is closed: it was committed, left, or a write to it failed")
        try:
            with self._store.place.writing():
                self._temp.write(data)
        except StoreError:
            self.__exit__()  # a torn row is in the file: nothing may follow it
            raise
        for digest in self._hashes:
            digest.update(data)
        self._bytes += len(data)

    def _take(self) -> TempFile:
        assert self._temp is not None
        temp, self._temp = self._temp, None
        return temp
