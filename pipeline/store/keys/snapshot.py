"""The snapshot of a large store's index: two files that can be rebuilt, mapped into memory instead of read.

    index.safetensors        most shards, sorted by key; mapped, so processes of one machine share its pages
    index-new.safetensors    those committed since, small; of use only beside the first file that it was made for
    index-old.safetensors    the first file before this one: NFS takes a mapped file away when its last name goes

They are plain safetensors files with the arrays of a `Run`. A seal covers all but the frames' checksums; a reader that
meets a wrong one of these looks into the record.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...files.atomic import place, remove
from ...files.inside import held_folder
from ...files.places.folder import Folder
from ...files.places.local_copy import local_copy
from ...files.places.place import Place
from ...files.plain import open_file
from ...files.sealed import seal_tensors
from .index import SNAPSHOT
from .runs import Run

SNAPSHOT_NEW = "index-new.safetensors"
_SNAPSHOT_OLD = "index-old.safetensors"
_VERSION = 2
_HEADER_LIMIT_BYTES = 2**16
_MAX_ROWS = 2**32 - 1
_MAX_FRAMES = 2**16
_MORE_SHARDS = 2
"""A snapshot may know so many times the shards that have a record: others were moved away."""
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U8": np.dtype(np.uint8),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one file says."""

    run: Run
    folder: int
    """Inode of the commits/ folder whose inodes its stamps hold; a copy of the store has another."""
    seal: int


def write_snapshot(store: Place, run: Run, recipe_id: str, *, folder: int, base: int | None = None) -> int | None:
    """Write a snapshot in one step.

    Args:
        base: the seal of the first file, beside which this one is the second; None writes the first.
    Returns:
        Its seal; None where a store is too large for one.
    """
    if len(run) > _MAX_ROWS:
        return None
    arrays = _arrays(run, folder)
    seal = _seal(arrays, recipe_id, base)
    parts = [np.ascontiguousarray(array).data for array in (*arrays.values(), run.frames_crc32c, seal)]
    content = b"".join([_header(len(run.numbers), *run.frames_crc32c.shape), *parts])
    if base is None and isinstance(store, Folder):
        _keep_old(store.path)
    store.replace(SNAPSHOT if base is None else SNAPSHOT_NEW, memoryview(content))
    return _number(seal)


def read_snapshot(
    store: Place, recipe_id: str, shard_size: int, *, listed: int, base: int | None = None
) -> Snapshot | None:
    """Map a snapshot.

    Args:
        listed: how many shards have a record; a file that states many more is not looked at.
        base: as for `write_snapshot`.
    Returns:
        None where there is none of use; whatever is wrong with one costs time, never rows.
    """
    try:
        path = local_copy(store, SNAPSHOT if base is None else SNAPSHOT_NEW)
        file = open_file(path, 2**62, within=path.parent)
    except (OSError, ValueError):
        return None
    with file, suppress(OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        return _map(file.fileno(), recipe_id, shard_size, listed, base)
    return None


def remove_snapshot(store: Place) -> None:
    """Remove all files: the others are of no use without the first."""
    store.remove((SNAPSHOT, SNAPSHOT_NEW, _SNAPSHOT_OLD))


def _keep_old(store: Path) -> None:
    """Give the first file a second name, so that who has it mapped keeps it when it is replaced."""
    remove(store / _SNAPSHOT_OLD, within=store)
    with held_folder(store, store) as folder, suppress(OSError):  # not there, not a file, or no hard links
        place(folder / SNAPSHOT, folder / _SNAPSHOT_OLD)


def _arrays(run: Run, folder: int) -> dict[str, NDArray[Any]]:
    """What the seal covers, in the order of the file."""
    return {
        "about": np.array([folder, run.distinct], np.uint64),
        "shards": np.stack([run.numbers, run.shard_rows, run.shard_bytes]),
        "stamps": run.stamps,
        "high": run.high,
        "low": run.low,
        "rows": run.rows,
        "places": run.places,
    }


def _header(shards: int, rows: int, frames: int) -> bytes:
    """The start of a file with these counts. There is only one, so that nothing in it needs to be believed."""
    layout = {
        "about": ("U64", [2]),
        "shards": ("I64", [3, shards]),
        "stamps": ("U64", [shards, 2]),
        "high": ("U64", [rows]),
        "low": ("U64", [rows]),
        "rows": ("I64", [rows]),
        "places": ("U32", [rows]),
        "frames_crc32c": ("U32", [rows, frames]),
        "seal": ("U8", [16]),
    }
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + _DTYPES[dtype].itemsize * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as safetensors pads it, so that the numbers behind it are aligned
    return struct.pack("<Q", len(text)) + text


def _seal(arrays: dict[str, NDArray[Any]], recipe_id: str, base: int | None) -> NDArray[np.uint8]:
    return seal_tensors(arrays, f"theworld index {_VERSION} {recipe_id} {base}")


def _number(seal: NDArray[np.uint8]) -> int:
    return int.from_bytes(seal.tobytes(), "big")


def _map(fd: int, recipe_id: str, shard_size: int, listed: int, base: int | None) -> Snapshot | None:
    (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
    if length > _HEADER_LIMIT_BYTES:
        return None
    text = os.pread(fd, length, 8)
    stated = cast(dict[str, dict[str, list[int]]], json.loads(text))
    (_, shards), (rows, frames) = stated["shards"]["shape"], stated["frames_crc32c"]["shape"]
    if any(type(count) is not int for count in (shards, rows, frames)):
        return None
    if not (1 <= shards <= _MORE_SHARDS * listed and shards <= rows <= shards * shard_size):
        return None
    if not (rows <= _MAX_ROWS and 1 <= frames <= _MAX_FRAMES):
        return None
    header = _header(shards, rows, frames)
    size = len(header) + [*stated.values()][-1]["data_offsets"][1]
    status = os.fstat(fd)
    if header[8:] != text or not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return None
    # the second file is written every minute, so it is not worth to be mapped, and may be gone tomorrow
    memory = mmap.mmap(fd, size, access=mmap.ACCESS_READ) if base is None else _read(fd, size)
    arrays = dict(_views(memory, stated, len(header)))
    crcs, seal = arrays.pop("frames_crc32c"), arrays.pop("seal")
    if not np.array_equal(seal, _seal(arrays, recipe_id, base)):
        return None
    folder, distinct = arrays["about"].tolist()
    run = Run(*arrays["shards"], *(arrays[name] for name in [*arrays][2:]), frames_crc32c=crcs, distinct=distinct)
    return Snapshot(run, folder, _number(seal)) if _is_consistent(run, shard_size) else None


def _read(fd: int, size: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        content = file.read(size)
    if len(content) != size:
        raise ValueError("it ends early")
    return content


def _views(
    memory: mmap.mmap | bytes, stated: dict[str, dict[str, list[int]]], begin: int
) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, entry in stated.items():
        dtype, shape = _DTYPES[cast(str, entry["dtype"])], entry["shape"]
        yield name, np.frombuffer(memory, dtype, math.prod(shape), begin + entry["data_offsets"][0]).reshape(shape)


def _is_consistent(run: Run, shard_size: int) -> bool:
    """Whether arrays that anybody may have sealed can be indexed as ours are."""
    numbers, shard_rows = run.numbers, run.shard_rows
    if numbers[0] < 0 or numbers[-1] >= 10**9 or (np.diff(numbers) <= 0).any():
        return False
    if not 1 <= shard_rows.min() <= shard_rows.max() <= shard_size or shard_rows.sum() != len(run):
        return False
    end = int(numbers[-1]) * shard_size + int(shard_rows[-1])
    return bool(
        run.places.max() < len(run) and run.rows.min() >= 0 and run.rows.max() < end and run.distinct <= len(run)
    )
