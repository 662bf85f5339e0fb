"""What was hashed before need not be read again: file facts -> content digest, kept in the cache, rebuilt at any time.

    <cache>/index/<32 digits of the place>.safetensors

An entry is found by everything that is known of a file without opening it (path, device, inode, size, both times) and
the part of it that is the input. None of that enters a key: the index only spares reading. A file that was written to
within the last moments before it was read is not entered, since it might change again within one tick of its clock
(git's "racily clean" rule). Elsewhere: what a key is (pipeline/latents/keys.py), finding the inputs (sources.py).
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
from ...pipeline.files.sealed import read_file, seal_tensors
from .file_facts import FileFacts
from .locations import Location

FOLDER = "index"
_WHAT = "theworld inputs 1"
_STAMP_BYTES, _DIGEST_BYTES = 16, 32
_LIMIT_BYTES = 2**33
_RACY_NS = 2 * 10**9
"""The coarsest clock a file system has: FAT counts in two seconds."""
_LEFT_BEHIND_S = 3600.0
"""A temporary file this old belongs to a process that was killed."""


class HashCache:
    """The digests of one place's inputs. Not for several threads."""

    def __init__(self, file: Path | None = None, known: dict[bytes, bytes] | None = None) -> None:
        """
        Args:
            file: where it is kept; None keeps it nowhere.
        """
        self._file = file
        self._known = known or {}
        self._now: dict[bytes, bytes] = {}
        self._racy: dict[bytes, bytes] = {}
        """Good for this listing, in which a file may be named many times, and not for the next."""
        self._started_ns = time.time_ns()

    @classmethod
    def of(cls, cache: Path, place: Path, takes: str, *, trust: bool = True) -> HashCache:
        """The index of a place, empty where there is none of use: that costs time and nothing else.

        Args:
            cache: the folder of stores.
            place, takes: what was asked for and what of it is taken; each has an index of its own.
            trust: False begins anew.
        """
        name = xxhash.xxh3_128_hexdigest(f"{place.absolute()}\0{takes}".encode("utf-8", "surrogatepass"))
        file = cache / FOLDER / f"{name}.safetensors"
        return cls(file, _load(file) if trust else {})

    def find(self, path: str, facts: FileFacts, at: Location) -> bytes | None:
        """The digest of an input that has not changed since it was read."""
        stamp = _stamp(path, facts, at)
        if (digest := self._known.get(stamp)) is not None:
            self._now[stamp] = digest
            return digest
        return self._now.get(stamp) or self._racy.get(stamp)

    def put(self, path: str, facts: FileFacts, at: Location, digest: bytes) -> None:
        """Remember what was read.

        Args:
            facts: of before it was read.
        """
        racy = max(facts.mtime_ns, facts.ctime_ns) >= self._started_ns - _RACY_NS
        (self._racy if racy else self._now)[_stamp(path, facts, at)] = digest

    def save(self, *, keep_others: bool = False) -> None:
        """Put what was found in place of what was known; where nothing can be written, nothing is.

        Args:
            keep_others: keep also what was not asked for: where only some inputs were listed.
        """
        entries = self._known | self._now if keep_others else self._now
        if self._file is None or entries == self._known:
            return
        folder = self._file.parent
        with suppress(OSError):
            make_folders(folder)
            for path in folder.iterdir():
                if path.suffix != ".safetensors" and path.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                    path.unlink(missing_ok=True)
            replace(folder, self._file, _pack(entries))


def _stamp(path: str, facts: FileFacts, at: Location) -> bytes:
    known = f"{path}\0{tuple(facts)}\0{at.place}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(known, digest_size=_STAMP_BYTES).digest()


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
    sound = (
        np.array_equal(seal, seal_tensors(tensors, _WHAT))
        and (stamps.dtype, digests.dtype) == (np.uint8, np.uint8)
        and (stamps.shape, digests.shape) == ((len(stamps), _STAMP_BYTES), (len(stamps), _DIGEST_BYTES))
    )
    if not sound:
        return {}
    one, other = stamps.tobytes(), digests.tobytes()
    return {
        one[number * _STAMP_BYTES : (number + 1) * _STAMP_BYTES]: other[
            number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES
        ]
        for number in range(len(stamps))
    }
