"""Rows of a Parquet or Arrow file, few at a time, within the bytes that the file may unpack to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import limits
from .arrow import arrow_batches, arrow_schema, is_arrow
from .columns import Shape, expanded_bytes


class Unpacked(ValueError):  # noqa: N818 - its text is the message
    """A limit is exceeded; the text says which."""


class Budget:
    """How much a file may unpack to."""

    def __init__(self, path: str) -> None:
        status = os.stat(path)  # noqa: PTH116
        on_disk = min(status.st_size, status.st_blocks * 512 or status.st_size)  # of a sparse file, what is there
        self._limit = limits.TABLE_FREE_BYTES + limits.TABLE_EXPANSION * on_disk
        self._why = (
            f"it unpacks to more than {self._limit:,} bytes from {on_disk:,} on disk "
            f"(the limit is {limits.TABLE_FREE_BYTES:,} and {limits.TABLE_EXPANSION} times the file). "
            "Write each image or text once, or split the file"
        )
        self._spent = 0

    def spend(self, size: int) -> None:
        """Count what a batch takes.

        Raises:
            Unpacked: it is too much in total.
        """
        self._spent += size
        if self._spent > self._limit:
            raise Unpacked(self._why)


def schema_of_file(pa: Any, path: str) -> Any:
    """The schema of a file, as pyarrow has it."""
    if is_arrow(path):
        return arrow_schema(Path(path))
    with open_parquet(pa, path) as table:
        return table.schema_arrow


def open_parquet(pa: Any, path: str) -> Any:
    """Open a Parquet file.

    Raises:
        Unpacked: its footer is larger than the limit.
    """
    with Path(path).open("rb") as file:
        if (end := file.seek(0, 2)) >= 8:
            file.seek(end - 8)
            footer = int.from_bytes(file.read(4), "little")
            if file.read(4) == b"PAR1" and limits.MAX_TABLE_SCHEMA_BYTES < footer <= end:
                raise Unpacked(
                    f"its footer has {footer:,} bytes; the limit is {limits.MAX_TABLE_SCHEMA_BYTES:,}. "
                    "Write larger row groups, or fewer columns"
                )
    # in small pieces: by default a column of a row group is read whole
    return pa.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)


def read_listing(pa: Any, path: str, shape: Shape, column: str, columns: list[str]) -> Iterator[Any]:
    """Some columns of a table, the first of them images; their bytes are not read if the file counts no gap."""
    if is_arrow(path) or shape.kind != "bytes" or len(shape.way) != 1 or shape.beside is None:
        yield from read_batches(pa, path, columns)
        return
    budget = Budget(path)
    with open_parquet(pa, path) as table:
        type_ = table.schema_arrow.field(column).type
        struct_ = type_.value_type if shape.is_list else type_
        content, beside = struct_.field(shape.way[0]).name, struct_.field(shape.beside[0]).name
        for group in range(table.num_row_groups):
            # the bytes themselves need not be read to know that they are all there
            path_in = _complete_structs(table.metadata.row_group(group), column, content)
            only = [f"{path_in}.{beside}", *columns[1:]] if path_in else columns
            yield from read_group(pa, table, group, only, budget)


def _complete_structs(group: Any, column: str, field: str) -> str:
    """Where in a column the structs are whose field is there in every row; empty where it lacks in one, or may lack."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    # a list puts two names of the writer's choice between: images.list.element.bytes
    ends = (f"{column}.", f".{field}")
    parts = [
        part for part in chunks if part.path_in_schema.startswith(ends[0]) and part.path_in_schema.endswith(ends[1])
    ]
    if len(parts) != 1 or not (parts[0].is_stats_set and parts[0].statistics.has_null_count):
        return ""
    return parts[0].path_in_schema.removesuffix(ends[1]) if parts[0].statistics.null_count == 0 else ""


def read_batches(pa: Any, path: str, columns: list[str]) -> Iterator[Any]:
    """Some columns of a table, a few rows at a time."""
    budget = Budget(path)
    if is_arrow(path):
        for batch in arrow_batches(Path(path), columns):
            budget.spend(_size(pa, batch))
            step = _fitting(_size(pa, batch), batch.num_rows)
            yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))
        return
    with open_parquet(pa, path) as table:
        if table.metadata.num_rows > limits.MAX_ROWS:
            raise Unpacked(f"it has {table.metadata.num_rows:,} rows; the limit is {limits.MAX_ROWS:,}. Split it")
        for group in range(table.num_row_groups):
            yield from read_group(pa, table, group, columns, budget)


def read_group(pa: Any, table: Any, group: int, columns: list[str], budget: Budget | None) -> Iterator[Any]:
    """A row group of a Parquet file, as many rows at a time as the size of those before allows.

    Where rows suddenly are so large that memory ends, it is read again from its start, fewer rows at a time.
    """
    done, most = 0, limits.TABLE_BATCH_ROWS
    while True:
        rows_read, step = 0, 1
        try:
            for batch in table.iter_batches(batch_size=1, row_groups=[group], columns=columns, use_threads=False):
                size = _size(pa, batch)
                step = max(1, min(4 * step, most, _fitting(size, batch.num_rows)))
                table.reader.set_batch_size(step)  # of the next batch
                fresh = batch.slice(max(0, done - rows_read))
                rows_read += batch.num_rows
                if fresh.num_rows:
                    if budget is not None:
                        budget.spend(size)
                    done = rows_read
                    yield fresh
            return
        except (MemoryError, pa.ArrowMemoryError):
            if most == 1:
                raise
            most = max(1, most // 128)


def _fitting(size: int, rows: int) -> int:
    """How many rows of such a size to read at a time."""
    return max(1, min(limits.TABLE_BATCH_ROWS, limits.TABLE_BATCH_BYTES * rows // max(size, 1)))


def _size(pa: Any, batch: Any) -> int:
    """The bytes of a batch, values of dictionaries counted as often as they are used."""
    return sum(expanded_bytes(pa, column) for column in batch.columns)
