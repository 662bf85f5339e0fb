"""Content digests of unchanged inputs, so that a second run need not read them; can be deleted at any time.

    <cache>/index/<32 digits of the place>.safetensors

An entry is found by path, device, inode, size, both times, and the part of the file that is the input. None of these
enters a key. A file modified in the two seconds before it was read is not kept: it might change again within one tick
of its clock (git's "racily clean" rule).
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError

from ...pipeline.files.atomic import make_folders, replace
from ...pipeline.files.plain import read_file
from ...pipeline.files.sealed import seal_tensors
from .file_facts import FileFacts
from .locations import Location

FOLDER = "index"
_WHAT = "theworld inputs 1"
_STAMP_BYTES, _DIGEST_BYTES = 16, 32
_LIMIT_BYTES = 2**33
_RACY_NS = 2 * 10**9
"""The coarsest clock a file system has: FAT counts in two seconds."""
_LEFT_BEHIND_S = 3600.0
"""Seconds after which a temporary file belongs to a killed process."""


class HashCache:
    """The digests of one place's inputs. Not thread-safe."""

    def __init__(self, file: Path | None = None, digests: dict[bytes, bytes] | None = None) -> None:
        """
        Args:
            file: where the cache is kept; None keeps it in memory only.
            digests: stamp -> digest, from an earlier run.
        """
        self._file = file
        self._earlier = digests or {}
        self._current: dict[bytes, bytes] = {}
        self._racy: dict[bytes, bytes] = {}
        """Valid for this listing, in which a file may be named many times, but not saved."""
        self._started_ns = time.time_ns()

    @classmethod
    def load(cls, cache: Path, place: Path, takes: str, *, trust: bool = True) -> HashCache:
        """The hash cache of a place; empty where there is no valid one, which only costs time.

        Args:
            cache: the folder of stores.
            place, takes: the place of inputs and the noun of one input; each pair has a file of its own.
            trust: False starts empty.
        """
        name = xxhash.xxh3_128_hexdigest(f"{place.absolute()}\0{takes}".encode("utf-8", "surrogatepass"))
        file = cache / FOLDER / f"{name}.safetensors"
        return cls(file, _load(file) if trust else {})

    def find(self, path: str, facts: FileFacts, location: Location) -> bytes | None:
        """The digest of an input that has not changed since it was hashed; else None."""
        stamp = _stamp(path, facts, location)
        if (digest := self._earlier.get(stamp)) is not None:
            self._current[stamp] = digest
            return digest
        return self._current.get(stamp) or self._racy.get(stamp)

    def put(self, path: str, facts: FileFacts, location: Location, digest: bytes) -> None:
        """Keep the digest of an input.

        Args:
            facts: taken before it was read.
        """
        racy = max(facts.mtime_ns, facts.ctime_ns) >= self._started_ns - _RACY_NS
        (self._racy if racy else self._current)[_stamp(path, facts, location)] = digest

    def save(self, *, keep_others: bool = False) -> None:
        """Write the digests of this run; where that is not possible, do nothing.

        Args:
            keep_others: also keep inputs that this run did not list.
        """
        entries = self._earlier | self._current if keep_others else self._current
        if self._file is None or entries == self._earlier:
            return
        folder = self._file.parent
        with suppress(OSError):
            make_folders(folder)
            for path in folder.iterdir():
                if path.suffix != ".safetensors" and path.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                    path.unlink(missing_ok=True)
            replace(folder, self._file, _pack(entries))


def _stamp(path: str, facts: FileFacts, location: Location) -> bytes:
    identity = f"{path}\0{tuple(facts)}\0{location.place}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(identity, digest_size=_STAMP_BYTES).digest()


def _pack(entries: dict[bytes, bytes]) -> bytes:
    tensors: dict[str, NDArray[Any]] = {
        "stamps": np.frombuffer(b"".join(entries), np.uint8).reshape(-1, _STAMP_BYTES),
        "digests": np.frombuffer(b"".join(entries.values()), np.uint8).reshape(-1, _DIGEST_BYTES),
    }
    return safetensors.numpy.save({**tensors, "seal": seal_tensors(tensors, _WHAT)})


def _load(file: Path) -> dict[bytes, bytes]:
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(read_file(file, _LIMIT_BYTES))
        seal, stamps, digests = tensors.pop("seal"), tensors["stamps"], tensors["digests"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return {}
    is_valid = (
        np.array_equal(seal, seal_tensors(tensors, _WHAT))
        and (stamps.dtype, digests.dtype) == (np.uint8, np.uint8)
        and stamps.ndim == digests.ndim == 2
        and (stamps.shape, digests.shape) == ((len(stamps), _STAMP_BYTES), (len(stamps), _DIGEST_BYTES))
    )
    if not is_valid:
        return {}
    stamp_bytes, digest_bytes = stamps.tobytes(), digests.tobytes()
    return {
        stamp_bytes[number * _STAMP_BYTES : (number + 1) * _STAMP_BYTES]: digest_bytes[
            number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES
        ]
        for number in range(len(stamps))
    }
