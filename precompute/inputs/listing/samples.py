"""The listed inputs, in little memory: each becomes an object only while it is used."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import xxhash
from numpy.typing import NDArray

from ....pipeline.store.keys.packed_keys import Keys
from ...media.video_times import Window
from ..locations import Location
from .entries import Entries

_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One input: `source` names it for people, `location` is where its bytes lie, `key` is its content's address."""

    source: str
    location: Location
    key: str
    prompt: str | None = None
    """The sample's own prompt, which is part of the key."""
    window: Window | None = None
    """Where in a video it is read; its start is part of the key."""

    @property
    def start_s(self) -> float | None:
        """The start of the window."""
        return None if self.window is None else self.window.start_s


class Samples(Sequence[Sample]):
    """The inputs of a place that can be read, with their keys."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._chosen = array("I")
        """The places of those entries."""
        self._keys = bytearray()
        self._by_hash: tuple[NDArray[np.uint64], NDArray[np.intp]] | None = None

    def add(self, at: int, key: str) -> None:
        """Add an entry by its place, which is behind all others."""
        self._chosen.append(at)
        self._keys += bytes.fromhex(key)

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, at: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(at, slice):
            return tuple(self[index] for index in range(*at.indices(len(self))))
        at = range(len(self))[at]
        place = self._chosen[at]
        location = self._entries.location(place)
        assert location is not None
        return Sample(
            self._entries.source(place),
            location,
            self._key(at),
            self._entries.prompt(place),
            self._entries.window(place),
        )

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Samples | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(bytes(self._keys))

    def keys(self) -> Iterator[str]:
        """The key of each, in order."""
        return map(self._key, range(len(self)))

    def packed_keys(self) -> Keys:
        """`keys` as an array, which takes a fourth of their memory."""
        return np.frombuffer(bytes(self._keys), f"S{_KEY_BYTES}")

    def rows(self) -> Iterator[tuple[str, str]]:
        """Source and key of each, in order, five times as fast as making the samples."""
        return zip(map(self._entries.source, self._chosen), self.keys(), strict=True)

    def prompts(self) -> dict[str, str]:
        """Key -> the prompt that is part of it, where samples have their own."""
        if not self._entries.has_prompts:
            return {}
        stated = zip(self.keys(), map(self._entries.prompt, self._chosen), strict=True)
        return {key: prompt for key, prompt in stated if prompt is not None}

    def starts(self) -> dict[str, float]:
        """Key -> the second of a video at which its clip or picture is, where one was chosen."""
        if not self._entries.has_windows:
            return {}
        stated = zip(self.keys(), map(self._entries.window, self._chosen), strict=True)
        return {key: window.start_s for key, window in stated if window is not None}

    def find(self, source: str) -> Sample | None:
        """The last one of this name; None where there is none."""
        if self._by_hash is None:
            hashes = self._entries.hashes(self._chosen)
            order = np.argsort(hashes, kind="stable")
            self._by_hash = hashes[order], order
        hashes, order = self._by_hash
        wanted = np.uint64(xxhash.xxh3_64_intdigest(source.encode("utf-8", "surrogatepass")))
        first, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        for at in reversed(range(first, end)):
            if (sample := self[int(order[at])]).source == source:
                return sample
        return None

    def has_row(self, name: str) -> bool:
        """Whether what the ledger calls `list.jsonl:17` is among them: every input of that row; or only one of several,
        `list.jsonl:17[2]`."""
        places = self._entries.find_rows(name)
        if places is None:
            return False
        at = bisect_left(self._chosen, places[0])
        return self._chosen[at : at + len(places)] == array("I", places)

    def _key(self, at: int) -> str:
        return self._keys[at * _KEY_BYTES : (at + 1) * _KEY_BYTES].hex()


class Readable:
    """The names under which an earlier run may have refused what can be read now."""

    def __init__(self, sound: Collection[str], samples: Samples) -> None:
        """
        Args:
            sound: folders, lists, tables and tars that were read to their end.
        """
        self._sound, self._samples = sound, samples

    def __contains__(self, name: str) -> bool:
        return name in self._sound or self._samples.has_row(name) or self._samples.find(name) is not None
