"""Damage done to a store on purpose, other users, and what to compare before and after."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import xxhash

from theworld.pipeline.files.sealed import seal, unseal
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.store.folder import LatentStore
from theworld.pipeline.store.formats import base as shard_layout

from .faults.harness import SCRATCH, in_child
from .miniatures.store import latent

REBUILT = {"index.safetensors", "zarr.json"}
"""Files a repair may make anew, or for itself; all others are somebody's."""


def reseal(file: Path, **changes: Any) -> None:
    """Change fields of a sealed file, with a right seal."""
    file.write_bytes(seal(json.loads(unseal(file.read_bytes())) | changes))


def record_file(store: LatentStore, shard: int) -> Path:
    return store.path / "commits" / f"{shard}.json"


def record(store: LatentStore, shard: int) -> dict[str, Any]:
    return json.loads(unseal(record_file(store, shard).read_bytes()))


def fit(store: LatentStore, shard: int, **changes: Any) -> None:
    """Make the record vouch for the payload as it is now."""
    content = store.payload_path(shard).read_bytes()
    digests = {"sha256": hashlib.sha256(content).hexdigest(), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}
    reseal(record_file(store, shard), bytes=len(content), **digests, **changes)


def put_row(store: LatentStore, shard: int, place: int, row: bytes, crcs: list[int]) -> None:
    """Put a row into a payload, and make the record vouch for it."""
    size = store.layout.row_bytes
    content = bytearray(store.payload_path(shard).read_bytes())
    content[place * size : (place + 1) * size] = row
    store.payload_path(shard).write_bytes(content)
    stated, digits = record(store, shard)["frames_crc32c"], "".join(f"{crc:08x}" for crc in crcs)
    fit(store, shard, frames_crc32c=stated[: len(digits) * place] + digits + stated[len(digits) * (place + 1) :])


def poison(store: LatentStore, number: int, value: float = np.nan) -> None:
    """Give a sample a number no latent has, in a row whose every checksum is right."""
    (row,) = store.rows_of([f"{number:032x}"]).tolist()
    values = latent(number, store.sample_shape).astype(store.dtype)
    values[0, -1, 0, 0] = value
    written = store.layout.new_row()
    with patch.object(shard_layout, "_finite", return_value=True):  # else it would refuse
        crcs = store.layout.encode(f"{number:032x}", values, written)
    put_row(store, row // store.shard_size, row % store.shard_size, written.tobytes(), crcs)


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"somebody's")


def listing(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """Everything in a folder: relative path -> inode, kind, size and time of the last change."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def contents(folder: Path) -> set[bytes]:
    """The content of every file that cannot be rebuilt, wherever it is."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in REBUILT)
    return {path.read_bytes() for path in files if path.parts[-3] not in ("key", "time_s")}


def as_another_user(action: Callable[[], object]) -> None:
    """Run an action, in a process of its own, as a user who owns nothing; its exception is ours."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for name in (
        "store.upkeep.summary",
        "store.upkeep.transfer",
        "store.upkeep.verify",
        "store.upkeep.repair",
        "progress",
    ):
        import_module(f"theworld.pipeline.{name}")  # that user may not be allowed to read our code

    def act() -> None:
        os.setgid(65534)
        os.setuid(65534)
        action()

    in_child(act)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder every user may enter, in memory where the machine allows."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH if os.access(SCRATCH, os.W_OK) else None))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


WAN_SPEC = LatentSpec(
    channels=3,
    spatial_stride=8,
    temporal_stride=4,
    mean=(-0.7571, -0.7089, -0.9113),
    std=(2.8184, 1.4541, 2.3275),
)
"""The first channels of Wan 2.1. Source: the defaults of diffusers' AutoencoderKLWan."""
