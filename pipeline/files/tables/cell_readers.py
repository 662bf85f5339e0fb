"""Cells of one column by their row: the cells unpacked last are kept, since inputs are read in order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import limits
from .arrow import arrow_batches
from .batches import open_parquet, read_group


class _RecentCells:
    """The cells of one column that were unpacked last, in order; find one by its row."""

    def __init__(self) -> None:
        self._parts: deque[tuple[int, int, Any, int]] = deque()  # first row, row after the last, cells, bytes
        self._bytes = 0

    def add(self, first: int, cells: Any, size: int) -> None:
        self._parts.append((first, first + len(cells), cells, size))
        self._bytes += size
        while self._bytes > limits.TABLE_KEPT_BYTES and len(self._parts) > 1:
            self._bytes -= self._parts.popleft()[3]

    def find(self, row: int) -> Any:
        """The cell; None where it is not among them."""
        for first, end, cells, _ in reversed(self._parts):
            if first <= row < end:
                return cells[row - first]
        return None

    @property
    def first(self) -> int | None:
        return self._parts[0][0] if self._parts else None


class ParquetCells:
    """One column of a Parquet file, unpacked from the start of a row group onwards: inputs are read in order."""

    def __init__(self, pa: Any, path: str, column: str) -> None:
        self._pa, self._column = pa, column
        self._table = open_parquet(pa, path)
        metadata = self._table.metadata
        self._rows: list[int] = [metadata.row_group(number).num_rows for number in range(self._table.num_row_groups)]
        self._group: int = -1
        self._kept = _RecentCells()
        self._batches: Iterator[Any] = iter(())
        self._next = 0

    def find(self, row: int) -> Any:
        if (value := self._kept.find(row)) is not None:
            return value
        start = group = 0
        while group < len(self._rows) and row >= start + self._rows[group]:
            start += self._rows[group]
            group += 1
        if group == len(self._rows):
            raise IndexError(f"it has {start:,} rows")
        if group != self._group or row < self._next:
            self._group, self._next = group, start
            self._kept = _RecentCells()
            self._batches = read_group(self._pa, self._table, group, [self._column], None)
        for batch in self._batches:
            cells = batch.column(self._column)
            self._kept.add(self._next, cells, cells.nbytes)
            self._next += len(cells)
            if row < self._next:
                return cells[len(cells) - (self._next - row)]
        self._group = -1
        raise IndexError(f"row group {group} ends before it")


class ArrowCells:
    """One column of an Arrow file. Batches that are compressed are unpacked one at a time, the others mapped."""

    def __init__(self, pa: Any, path: str, column: str) -> None:
        self._pa, self._path, self._column = pa, path, column
        self._restart()

    def _restart(self) -> None:
        self._kept = _RecentCells()
        self._batches = arrow_batches(Path(self._path), [self._column])
        self._next = 0

    def find(self, row: int) -> Any:
        if (value := self._kept.find(row)) is not None:
            return value
        if row < self._next:
            self._restart()
        while True:
            before = self._pa.total_allocated_bytes()
            if (batch := next(self._batches, None)) is None:
                rows, self._next = self._next, sys.maxsize
                raise IndexError(f"it has {rows:,} rows")
            cells = batch.column(self._column)
            self._kept.add(self._next, cells, max(0, self._pa.total_allocated_bytes() - before))
            self._next += len(cells)
            if row < self._next:
                return cells[len(cells) - (self._next - row)]
