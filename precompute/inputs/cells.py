"""The bytes in one cell of a Parquet or Arrow file; consecutive cells are read from caches."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.arrow_tables import arrow_batches, is_arrow, load_pyarrow
from .file_facts import facts_of

_MAX_GROUP_BYTES = 2**32
"""Limit of one column of a Parquet row group, which is read as a whole."""


def read_cell(path: str, row: int, column: str) -> bytes:
    """The bytes in a cell.

    Raises:
        ImageError: the file, the row or the column is not there any more, or holds no bytes.
    """
    pa = load_pyarrow()
    facts = facts_of(path)
    if facts is None:
        raise ImageError(FailureReason.MISSING, f"{path} cannot be read")
    try:
        if is_arrow(path):
            value = _arrow_cell(_arrow_column(path, facts, column), row)
        else:
            group, first = _group_of(path, facts, row)
            value = _parquet_group(path, facts, group, column)[row - first]
        if isinstance(value, pa.StructScalar):
            value = value["bytes"]
        content = value.as_py()
    except (pa.ArrowException, OSError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise ImageError(FailureReason.TABLE, f"row {row} of {path} cannot be read: {str(error)[:300]}") from error
    if not isinstance(content, bytes):
        raise ImageError(FailureReason.ROW, f"row {row} of {path} holds no bytes in {column}")
    return content


@lru_cache(maxsize=8)
def _arrow_column(path: str, facts: object, column: str) -> list[Any]:
    del facts  # another file of this name is another table
    return [batch.column(0) for batch in arrow_batches(Path(path), [column])]  # mapped, not read


def _arrow_cell(parts: list[Any], row: int) -> Any:
    first = 0
    for part in parts:
        if row < first + len(part):
            return part[row - first]
        first += len(part)
    raise IndexError(f"it has {first} rows")


@lru_cache(maxsize=8)
def _groups(path: str, facts: object) -> tuple[int, ...]:
    del facts
    pa = load_pyarrow()
    with pa.parquet.ParquetFile(path) as table:
        return tuple(table.metadata.row_group(number).num_rows for number in range(table.num_row_groups))


def _group_of(path: str, facts: object, row: int) -> tuple[int, int]:
    """The number of the row group that holds a row, and the first row of that group."""
    first = 0
    for number, rows in enumerate(_groups(path, facts)):
        if row < first + rows:
            return number, first
        first += rows
    raise IndexError(f"it has {first} rows")


@lru_cache(maxsize=2)
def _parquet_group(path: str, facts: object, group: int, column: str) -> Any:
    """One column of one row group; inputs are read in order, so the next ones come from the cache."""
    del facts
    pa = load_pyarrow()
    with pa.parquet.ParquetFile(path) as table:
        metadata = table.metadata.row_group(group)
        parts = [metadata.column(number) for number in range(metadata.num_columns)]
        parts = [part for part in parts if part.path_in_schema.split(".")[0] == column]
        column_bytes = sum(part.total_uncompressed_size for part in parts)
        if column_bytes > _MAX_GROUP_BYTES:
            raise pa.ArrowInvalid(f"a row group holds {column_bytes:,} bytes of {column}; write smaller row groups")
        return table.read_row_group(group, columns=[column]).column(column)
