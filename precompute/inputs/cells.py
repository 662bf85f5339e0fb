"""The bytes in one cell of a Parquet or Arrow file. Cells in order are fast; none is read in this process."""

from __future__ import annotations

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.file_facts import facts_of
from ...pipeline.files.tables import guarded as guarded_tables


def read_cell(path: str, row: int, column: str, max_bytes: int, element: int = 0) -> bytes:
    """The bytes in a cell, or in one element of the list in it.

    Raises:
        ImageError: the file, the row or the column is not there any more, holds no bytes, or more than `max_bytes`.
    """
    facts = facts_of(path)
    if facts is None:
        raise ImageError(FailureReason.MISSING, f"{path} cannot be read")
    try:
        content, size = guarded_tables.read_cell(path, facts, row, column, max_bytes, element)
    except guarded_tables.TableError as error:
        raise ImageError(FailureReason.TABLE, f"row {row} of {path} cannot be read: {error}") from error
    if content is None and size:
        raise ImageError(
            FailureReason.TOO_LARGE, f"row {row} of {path} holds {size:,} bytes; the limit is {max_bytes:,}"
        )
    if content is None:
        raise ImageError(FailureReason.ROW, f"row {row} of {path} holds no bytes in {column}")
    return content
