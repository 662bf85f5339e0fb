"""What a store is on: a folder of a file system, or a prefix of a bucket. Names are relative, with slashes.

A store has the same names and the same bytes on both. What differs is how a name appears: a file is linked, an object
is PUT under the condition that there is none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """A file or an object, as a listing shows it."""

    name: str
    """From the place, with slashes."""
    bytes: int
    tag: int
    """Another one where the content may be another: the inode, or 64 bits of xxh3 of an object's ETag or generation."""
    modified: float
    """Seconds since 1970, by the clock of the place (`Place.now`)."""


class Place(ABC):
    """Where the files of a store, or of a folder of stores, are. `str()` is its path or URL, for messages.

    A missing name raises FileNotFoundError, whatever the place. A folder raises the OSError of a failed call; a bucket
    raises StoreError, with what to do next. Pickling carries the path or the URL alone.
    """

    is_local: bool
    """Whether the files can be mapped, locked and handed to other libraries by their paths."""

    @abstractmethod
    def below(self, name: str) -> Place:
        """The place that begins at a name of this one."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Make a whole, durable file appear; never replace one.

        Returns:
            False if the name is taken; nothing changes then.
        """

    @abstractmethod
    def create_from(self, name: str, staged: Path) -> bool:
        """`create` with the content of a finished file of `staging`."""

    @abstractmethod
    def staging(self) -> AbstractContextManager[Path]:
        """A local folder for files that are written from start to end before they get their names."""

    @abstractmethod
    def replace(self, name: str, content: bytes | memoryview, *, durable: bool = True) -> None:
        """Write a file in one step, over an old one. Only for content that can be rebuilt."""

    @abstractmethod
    def read(self, name: str, limit_bytes: int) -> bytes:
        """The content of a file of limited size.

        Raises:
            ValueError: it is larger, no regular file, or lies elsewhere (a link).
        """

    @abstractmethod
    def read_end(self, name: str, size: int) -> bytes:
        """The last bytes of a file, fewer if it is smaller."""

    @abstractmethod
    def read_into(self, name: str, offset: int, memory: memoryview) -> int:
        """Fill memory from a file; returns the bytes read, fewer only where the file ends."""

    @abstractmethod
    def entry(self, name: str) -> Entry | None:
        """What is known of one file; None where there is none."""

    @abstractmethod
    def entries(self, folder: str, *, deep: bool = False) -> Iterator[Entry]:
        """The files of a folder, in no order; nothing where there is no such folder.

        Args:
            folder: "" is the place itself.
            deep: those of its folders, too.
        """

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders directly in this place, in order."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files durably; those that are gone already do not matter."""

    @abstractmethod
    def set_aside(self, name: str, to: str) -> None:
        """Give a file another name, which nothing has, before the old one goes."""

    @abstractmethod
    def now(self) -> float:
        """The time by the clock that `Entry.modified` is told by, in seconds since 1970."""

    @abstractmethod
    def self_test(self, *folders: str) -> None:
        """Prove that a file can be named here, whole, and that none is replaced: all else rests on it."""
