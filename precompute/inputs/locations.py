"""Where the bytes of one input lie (a file, a tar member, a table cell), and reading them; plain values.

Each path may be a URL of pipeline/files/remote.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.images.decode import read_input_file
from ...pipeline.files.remote import is_remote, local_path, read_remote


@dataclass(frozen=True, slots=True)
class File:
    """A file that is one input."""

    path: str

    @property
    def place(self) -> str:
        """The part of the file in words; empty for the whole file."""
        return ""

    def read(self, max_bytes: int) -> bytes:
        """The bytes of the input.

        Raises:
            ImageError: missing, not_a_file, empty or too_large.
        """
        if is_remote(self.path):
            return read_remote(self.path, max_bytes)
        return read_input_file(Path(self.path), max_bytes=max_bytes)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular member of an uncompressed tar: `size` bytes from `offset`. Nothing is extracted."""

    path: str
    offset: int
    size: int

    @property
    def place(self) -> str:
        """The part of the file in words."""
        return f"{self.offset}+{self.size}"

    def read(self, max_bytes: int) -> bytes:
        """The bytes of the member.

        Raises:
            ImageError: missing, empty, too_large, or the tar ends within it.
        """
        _check_size(self.size, max_bytes, f"the member at byte {self.offset} of {self.path}")
        path = local_path(self.path)
        try:
            with Path(path).open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise ImageError(FailureReason.MISSING, f"{self.path} cannot be read: {error.strerror or error}") from error
        if len(content) != self.size:
            raise ImageError(FailureReason.TRUNCATED, f"{self.path} ends within the member at byte {self.offset}")
        return content


@dataclass(frozen=True, slots=True)
class TableCell:
    """The bytes in one cell of a Parquet or Arrow file: in `column`, a binary or a struct with a binary `bytes`."""

    path: str
    row: int
    column: str
    element: int = 0
    """Where rows hold lists, which one of the row's."""

    @property
    def place(self) -> str:
        """The part of the file in words."""
        return f"{self.column}#{self.row}" + (f"[{self.element}]" if self.element else "")

    def read(self, max_bytes: int) -> bytes:
        """The bytes in the cell.

        Raises:
            ImageError: missing, empty, too_large, or the table cannot be read.
        """
        from .cells import read_cell

        content = read_cell(local_path(self.path), self.row, self.column, max_bytes, self.element)
        _check_size(len(content), max_bytes, f"row {self.row} of {self.path}")
        return content


Location = File | TarMember | TableCell


def _check_size(size: int, max_bytes: int, what: str) -> None:
    if size > max_bytes:
        raise ImageError(FailureReason.TOO_LARGE, f"{what} holds {size:,} bytes; the limit is {max_bytes:,}")
    if not size:
        raise ImageError(FailureReason.EMPTY, f"{what} is empty")
