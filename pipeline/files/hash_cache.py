"""Content digests of unchanged files, so that a second run need not read them; can be deleted at any time.

    <cache>/index/<32 digits of the place>.safetensors    of inputs
    ~/.cache/theworld/index/…                             of weights (hub/weight_hashes.py)

An entry is found by path, device, inode, size, both times, and the part of the file that it is of. None of these
enters a key. A file modified in the two seconds before it was read is not kept: it might change again within one tick
of its clock (git's "racily clean" rule).
"""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError

from .atomic import is_unfinished, make_folders, replace
from .file_facts import FileFacts
from .places.local import url_of
from .plain import read_file
from .sealed import seal_tensors

FOLDER = "index"
_WHAT = "theworld inputs 1"
_STAMP_BYTES, _DIGEST_BYTES = 16, 32
_LIMIT_BYTES = 2**33
_RACY_NS = 2 * 10**9
"""The coarsest clock a file system has: FAT counts in two seconds."""
_EARLIER, _IN_USE, _RACY = 1, 2, 4
"""Of a digest: an earlier run kept it; this run used it; it is valid for this listing, in which a file may be named
many times, but not saved."""
_LEFT_BEHIND_S = 3600.0
"""Seconds after which a temporary file belongs to a killed process."""


class HashCache:
    """The digests of one place's files. Threads may find and put."""

    def __init__(self, file: Path | None = None, earlier: _Table | None = None) -> None:
        """
        Args:
            file: where the cache is kept; None keeps it in memory only.
            earlier: what an earlier run kept.
        """
        self._file = file
        self._table = earlier or _Table()
        self._started_ns = time.time_ns()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, cache: Path, place: Path, takes: str, *, trust: bool = True) -> HashCache:
        """The hash cache of a place; empty where there is no valid one, which only costs time.

        Args:
            cache: the folder in which they are kept.
            place, takes: the place of the files and the noun of one; each pair has a file of its own.
            trust: False starts empty.
        """
        where = url_of(place) or place.absolute()
        name = xxhash.xxh3_128_hexdigest(f"{where}\0{takes}".encode("utf-8", "surrogatepass"))
        file = cache / FOLDER / f"{name}.safetensors"
        return cls(file, _load(file) if trust else None)

    def find(self, path: str, facts: FileFacts, part: str = "") -> bytes | None:
        """The digest of a file, or of a part of it, that has not changed since it was hashed; else None."""
        stamp = _stamp(path, facts, part)
        with self._lock:
            at = self._table.find(stamp)
            if at is None:
                return None
            self._table.states[at] |= _IN_USE
            return self._table.digest(at)

    def put(self, path: str, facts: FileFacts, digest: bytes, part: str = "") -> None:
        """Keep the digest of a file, or of a part of it.

        Args:
            facts: taken before it was read.
        """
        racy = max(facts.mtime_ns, facts.ctime_ns) >= self._started_ns - _RACY_NS
        stamp = _stamp(path, facts, part)
        with self._lock:
            self._table.put(stamp, digest, _RACY if racy else _IN_USE)

    def save(self, *, keep_others: bool = False) -> None:
        """Write the digests of this run; where that is not possible, do nothing.

        Args:
            keep_others: also keep files that this run did not look at.
        """
        if self._file is None:
            return
        self._table.trim()
        states = np.frombuffer(self._table.states, np.uint8)
        is_earlier = states & _EARLIER != 0
        is_kept = (states & (_IN_USE | _EARLIER if keep_others else _IN_USE) != 0) & (states & _RACY == 0)
        if np.array_equal(is_kept, is_earlier):
            return
        folder = self._file.parent
        with suppress(OSError):
            make_folders(folder)
            for path in folder.iterdir():
                # no other file: a user's own folder may have this name
                if is_unfinished(path.name) and path.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                    path.unlink(missing_ok=True)
            replace(folder, self._file, _pack(self._table, is_kept))


class _Table:
    """Stamps and their digests: 60 bytes each, of which a dict of bytes takes 250."""

    def __init__(self, stamps: bytes = b"", digests: bytes = b"") -> None:
        self.stamps, self.digests = bytearray(stamps), bytearray(digests)
        self.states = bytearray([_EARLIER]) * (len(stamps) // _STAMP_BYTES)
        self._grow()

    def find(self, stamp: bytes) -> int | None:
        """The place of a stamp; None where it is not."""
        return place - 1 if (place := self._slots[self._slot(stamp)]) else None

    def digest(self, place: int) -> bytes:
        return bytes(self.digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES])

    def put(self, stamp: bytes, digest: bytes, state: int) -> None:
        slot = self._slot(stamp)
        # a signal may end this between any two lines: then the entry is not saved (`trim`, or as racy)
        if place := self._slots[slot]:
            self.states[place - 1] = _RACY
            self.digests[(place - 1) * _DIGEST_BYTES : place * _DIGEST_BYTES] = digest
            self.states[place - 1] = state
            return
        self.stamps += stamp
        self.digests += digest
        self.states.append(state)
        self._slots[slot] = len(self.states)
        if 3 * len(self.states) > 2 * len(self._slots):
            self._grow()

    def trim(self) -> None:
        """Forget an entry whose `put` was interrupted; a table that was trimmed can be saved."""
        count = min(len(self.stamps) // _STAMP_BYTES, len(self.digests) // _DIGEST_BYTES, len(self.states))
        del self.stamps[count * _STAMP_BYTES :], self.digests[count * _DIGEST_BYTES :], self.states[count:]

    def _slot(self, stamp: bytes) -> int:
        """The slot that holds one more than the place of a stamp, or the free one (0) in which it belongs."""
        slot = int.from_bytes(stamp[:8], "little") & self._mask
        while place := self._slots[slot]:
            if self.stamps.startswith(stamp, (place - 1) * _STAMP_BYTES):
                break
            slot = (slot + 1) & self._mask
        return slot

    def _grow(self) -> None:
        count = len(self.states)
        self._mask = (1 << max(12, (2 * count).bit_length())) - 1
        slots = np.zeros(self._mask + 1, np.uint32)
        wanted = (np.frombuffer(self.stamps, "<u8")[::2] & np.uint64(self._mask)).astype(np.uint32)
        places = np.arange(1, count + 1, dtype=np.uint32)
        while len(places):  # of those that want a free slot one gets it; all others try the next
            is_free = slots[wanted] == 0
            slots[wanted[is_free]] = places[is_free]
            is_left = slots[wanted] != places
            places, wanted = places[is_left], (wanted[is_left] + np.uint32(1)) & np.uint32(self._mask)
        self._slots = slots.data


def _stamp(path: str, facts: FileFacts, part: str) -> bytes:
    identity = f"{path}\0{tuple(facts)}\0{part}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(identity, digest_size=_STAMP_BYTES).digest()


def _pack(table: _Table, is_kept: NDArray[np.bool_]) -> bytes:
    tensors: dict[str, NDArray[Any]] = {
        "stamps": np.frombuffer(table.stamps, np.uint8).reshape(-1, _STAMP_BYTES)[is_kept],
        "digests": np.frombuffer(table.digests, np.uint8).reshape(-1, _DIGEST_BYTES)[is_kept],
    }
    return safetensors.numpy.save({**tensors, "seal": seal_tensors(tensors, _WHAT)})


def _load(file: Path) -> _Table | None:
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(read_file(file, _LIMIT_BYTES))
        seal, stamps, digests = tensors.pop("seal"), tensors["stamps"], tensors["digests"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    is_valid = (
        np.array_equal(seal, seal_tensors(tensors, _WHAT))
        and (stamps.dtype, digests.dtype) == (np.uint8, np.uint8)
        and stamps.ndim == digests.ndim == 2
        and (stamps.shape, digests.shape) == ((len(stamps), _STAMP_BYTES), (len(stamps), _DIGEST_BYTES))
    )
    return _Table(stamps.tobytes(), digests.tobytes()) if is_valid else None
