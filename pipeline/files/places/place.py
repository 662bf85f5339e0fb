"""The interface of a place that holds a store: a folder, or a prefix of a bucket. Names are relative, with slashes.

A store has the same names and the same bytes on both. What differs is how a name appears: a file is linked, an object
is PUT under the condition that there is none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from ...errors import StoreError, TheWorldError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES = 4 * 2**20
"""Of one request, where a file that is elsewhere is read from start to end."""


class Entry(NamedTuple):
    """A file or an object, as a listing shows it."""

    name: str
    """From the place, with slashes."""
    bytes: int
    tag: int
    """Another one where the content may be another: the inode, or 64 bits of xxh3 of an object's ETag."""
    modified: float
    """Seconds since 1970, by the clock of the place (`Place.now`)."""


class Place(ABC):
    """Where the files of a store, or of a folder of stores, are. `str()` is its path or URL, for messages.

    A missing name raises FileNotFoundError, whatever the place. A folder raises the OSError of a failed call; a bucket
    raises StoreError, with what to do next. Pickling carries the path or the URL alone.
    """

    is_local: bool
    """Whether the files can be mapped, locked and handed to other libraries by their paths."""

    @property
    def name(self) -> str:
        """The last part of its path or URL."""
        return str(self).rpartition("/")[2]

    @abstractmethod
    def below(self, name: str) -> Place:
        """The place that begins at a name of this one."""

    def location(self, name: str) -> Path | str:
        """Where a file is: its path, or its URL."""
        return f"{self}/{name}"

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

    def open(self, name: str, limit_bytes: int) -> BufferedReader:
        """A file of limited size, to be read in parts. Errors as for `read`; a file that ends early raises OSError."""
        entry = self.entry(name)
        if entry is None:
            raise FileNotFoundError(f"there is no {self.location(name)}")
        if entry.bytes > limit_bytes:
            raise ValueError(f"it has {entry.bytes} bytes, and the limit is {limit_bytes}")
        return BufferedReader(_Remote(self, entry), _BUFFER_BYTES)

    @abstractmethod
    def read_end(self, name: str, size: int) -> bytes:
        """The last bytes of a file, fewer if it is smaller."""

    @abstractmethod
    def read_into(self, name: str, offset: int, memory: memoryview) -> int:
        """Fill memory from a file; returns the bytes read, fewer only where the file ends."""

    def read_range(self, name: str, offset: int, size: int) -> memoryview:
        """Bytes of a file, fewer only where it ends."""
        memory = memoryview(bytearray(size))
        return memory[: self.read_into(name, offset, memory)]

    @abstractmethod
    def entry(self, name: str) -> Entry | None:
        """Name, size and time of one file; None if there is none.

        Raises:
            ValueError: something is there that is no regular file.
        """

    @abstractmethod
    def entries(self, folder: str, *, deep: bool = False) -> Iterator[Entry]:
        """The files of a folder, in no order; nothing where there is no such folder.

        Args:
            folder: "" is the place itself.
            deep: those of its folders, too.
        """

    def names(self, folder: str) -> list[str]:
        """The names in a folder, in order; nothing where there is no such folder."""
        return sorted(self.tags(folder))

    def tags(self, folder: str) -> dict[str, int]:
        """The tag of each file of a folder, by its name in there, from one listing.

        Raises:
            FileNotFoundError: there is no such folder, where places have folders.
        """
        return {entry.name.rpartition("/")[2]: entry.tag for entry in self.entries(folder)}

    def tag_of_folder(self, folder: str) -> int:
        """Another one in each copy of a folder: tags are compared within one."""
        return xxhash.xxh3_64_intdigest(f"{self}/{folder}".encode())

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders directly in this place, in order."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files durably; those that are gone already do not matter."""

    def remove_once(self, names: Iterable[str]) -> None:
        """`remove`, of names that others may take at once: no request that is sent again hits what came after."""
        self.remove(names)

    def is_in_doubt(self, name: str) -> bool:  # noqa: ARG002
        """Whether an unanswered request of this process may still remove what gets this name."""
        return False

    @abstractmethod
    def set_aside(self, name: str, to: str) -> None:
        """Rename a file to a name that is free; the old name goes last.

        Raises:
            FileExistsError: something else has that name.
        """

    @abstractmethod
    def now(self) -> float:
        """The time by the clock of `Entry.modified`, in seconds since 1970."""

    @abstractmethod
    def self_test(self, *folders: str) -> None:
        """Prove that a file can be named here, whole, and that none is replaced: all else rests on it."""

    @contextmanager
    def writing(self) -> Generator[None]:
        """Turn an OSError inside the block into a StoreError that tells the user what to do."""
        try:
            yield
        except OSError as error:
            if isinstance(error, TheWorldError):
                raise
            raise StoreError(
                f"cannot write to the store {self}: {error.strerror or error}. See that the local disk has room for "
                "unfinished files (TMPDIR), then run the same command again; every shard committed so far stays"
            ) from error


def parent_of(place: Place) -> str:
    """The path or URL of the folder that a place is in, for messages."""
    return str(place).rpartition("/")[0] or "."


class _Remote(RawIOBase):
    """The bytes of a file of a place, by requests for parts of it."""

    def __init__(self, place: Place, entry: Entry) -> None:
        super().__init__()
        self._place, self._entry, self._at = place, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        start = {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._entry.bytes}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        memory = memoryview(buffer).cast("B")
        memory = memory[: max(0, min(len(memory), self._entry.bytes - self._at))]
        if not len(memory):
            return 0
        read = self._place.read_into(self._entry.name, self._at, memory)
        if not read:
            raise OSError(f"{self._place.location(self._entry.name)} became shorter while it was read")
        self._at += read
        return read
