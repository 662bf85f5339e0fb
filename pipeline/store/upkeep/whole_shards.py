"""Copy whole payloads from one store to another: the bytes as they are, proven by their record on the way.

A shard is copied whole where both stores lay their shards out alike, all its keys are wanted, and it is full or large;
few samples are gathered into full shards by the caller. What cannot be proven is left to the caller, too, which copies
the sound samples of a damaged shard and names the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain, count

import numpy as np
import xxhash
from numpy.typing import NDArray

from ...errors import DamagedShardError
from ...files.atomic import TempFile
from ..keys.packed_keys import pack_keys
from ..latent_store import LatentStore
from ..records import ShardRecord, origins_of, read_record
from ..writer import place_shard

LARGE_BYTES = 8 * 2**20
"""A payload that is copied whole though it is not full: requests and files are few enough then."""
_MAX_BYTES = 2**28
"""A payload held in memory; larger ones are copied sample by sample."""
_AT_ONCE = 4
"""Payloads on their way to or from a bucket, each in memory."""


def whole_shards(source: LatentStore, target: LatentStore, keys: Sequence[str]) -> dict[int, slice]:
    """The shards of a source that can be copied whole, and where their keys are among some, in their order.

    Args:
        keys: that are wanted and not in `target`; each is in `source`, and here once.
    """
    if not keys or not _lay_out_alike(source, target):
        return {}
    rows = source.rows_of(pack_keys(keys))
    size = source.shard_size
    table = source.shards.table()
    _, at_most, sizes = table.T
    full = (at_most == target.shard_size) | (sizes >= LARGE_BYTES)
    fitting = table[full & (at_most <= target.shard_size) & (sizes <= _MAX_BYTES)]
    held = dict(zip(fitting[:, 0].tolist(), fitting[:, 1].tolist(), strict=True))
    found: dict[int, slice] = {}
    for start in np.flatnonzero(rows % size == 0).tolist():
        first = int(rows[start])
        stop = start + held.get(first // size, 0)
        if start < stop <= len(rows) and (rows[start:stop] - first).tolist() == list(range(stop - start)):
            found[first // size] = slice(start, stop)
    return found


def copy_whole(source: LatentStore, target: LatentStore, numbers: Sequence[int]) -> Iterator[int]:
    """Copy shards with all they hold, several at once to or from a bucket.

    Yields:
        The number in the source of each shard that is committed now. Those that are left out could not be proven, or
        read: nothing of them was written.
    Raises:
        StoreError: the target cannot be written, or a bucket does not answer. What was yielded stays.
    """
    if source.place.is_local and target.place.is_local:
        free = target.next_number
        for number in numbers:
            placed = _copy(source, target, number, count(free))
            if placed is not None:
                target.committed(placed)
                free = placed.shard + 1
                yield number
        return
    with ThreadPoolExecutor(_AT_ONCE, "copy") as pool:
        free_numbers = count(target.next_number)  # shared: no two uploads are tried under one number
        copies: dict[Future[ShardRecord | None], int] = {}
        try:
            for number in numbers:
                wanted = chain([next(free_numbers)], free_numbers)
                copies[pool.submit(_copy, source, target, number, wanted)] = number
            for copy in as_completed(copies):
                if copy.result() is not None:
                    target.publish_at_times()  # one listing, where `committed` would ask for each record
                    yield copies[copy]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _lay_out_alike(source: LatentStore, target: LatentStore) -> bool:
    ours, theirs = source.layout, target.layout
    return (source.format, ours.version, ours.row_bytes, ours.trailer(1)) == (
        target.format,
        theirs.version,
        theirs.row_bytes,
        theirs.trailer(1),
    )


def _copy(source: LatentStore, target: LatentStore, number: int, wanted: Iterator[int]) -> ShardRecord | None:
    """Commit one shard under the first number that is free; None where it could not be proven."""
    record = _sound_record(source, number)
    payload = None if record is None else _proven(source, record)
    if record is None or payload is None:
        return None
    place, layout = target.place, target.layout
    facts = {"copied_from": [asdict(origin) for origin in origins_of(record)]}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = record.model_copy(update={"created": created, "facts": facts})
    with place.writing():
        if not place.is_local:
            # a look before each upload: that a number is taken would be found out at its end
            first = next(n for n in wanted if place.entry(layout.payload_name(n)) is None)
            return place_shard(place, layout, record, payload, first=first)
        with place.staging() as folder:
            temp = TempFile(folder)
            try:
                temp.write(payload)
                temp.finish()
                return place_shard(place, layout, record, temp.path, first=next(wanted))
            finally:
                temp.discard()


def _sound_record(source: LatentStore, number: int) -> ShardRecord | None:
    try:
        record = read_record(source.place, number, source.recipe.id)
    except (DamagedShardError, FileNotFoundError):
        return None
    is_known = pack_keys(record.keys).tobytes() == source.shards[number].keys.tobytes()
    return record if is_known else None


def _proven(source: LatentStore, record: ShardRecord) -> bytes | None:
    """The payload of a record, if its bytes are those that were committed, and a shard as this version writes it."""
    try:
        payload = source.place.read(source.layout.payload_name(record.shard), record.bytes)
    except (OSError, ValueError):
        return None
    if len(payload) != record.bytes or xxhash.xxh3_128_hexdigest(payload) != record.xxh3_128:
        return None
    layout = source.layout
    rows = np.frombuffer(payload, np.uint8, record.rows * layout.row_bytes).reshape(record.rows, layout.row_bytes)
    crcs: NDArray[np.uint32] = record.checksums()
    # whoever sealed the record may have put anything under it
    is_shard = payload[rows.size :] == layout.trailer(record.rows) and all(
        layout.is_row(row, key, own.tolist()) for row, key, own in zip(rows, record.keys, crcs, strict=True)
    )
    return payload if is_shard else None
