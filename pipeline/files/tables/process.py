"""The process that reads Parquet and Arrow files, so that a bomb or a damaged file costs only that file.

A file of 771 bytes can unpack to 12 GB, and its own figures cannot be trusted. So memory and CPU time of this process
are limited, and rows are unpacked few at a time, as many as their size so far allows.

    guarded.py                 this process
    one line of JSON              →   {"what": "schema", "path": …}
    an answer, or several         ←   8 bytes: length of the JSON; 8 bytes: length of the content; JSON; content
    the last answer               ←   {"end": true}, or {"problem": …, "why": …}

Nothing in an answer can run code. At the end of its input the process ends.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from .. import limits
from .arrow import arrow_batches, arrow_schema, is_arrow, load_pyarrow
from .columns import (
    OTHER,
    Shape,
    bytes_in,
    content_of,
    expanded_bytes,
    names_in,
    pieces,
    shape_of,
    shown,
    texts,
    times_in,
)

LENGTHS = struct.Struct("<QQ")
BYTES = "\0bytes"
"""Key of an object in an answer that stands for bytes of the content."""
_ANSWER_BYTES = 2**22
_Answer = tuple[dict[str, Any] | str, Any]
"""An object of JSON, or its text, and bytes."""


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


def schema(path: str) -> Iterator[_Answer]:
    """The columns of a table, what kind each is, and the names of `datasets`' ClassLabels."""
    pa = load_pyarrow()
    found = _schema(pa, path)
    if len(found.names) > limits.MAX_COLUMNS:
        raise Unpacked(f"it has {len(found.names):,} columns; the limit is {limits.MAX_COLUMNS:,}")
    if sum(map(len, found.names)) > limits.MAX_TABLE_NAMES_BYTES:
        raise Unpacked(f"the names of its columns are longer than {limits.MAX_TABLE_NAMES_BYTES:,} characters")
    if len(set(found.names)) < len(found.names):
        raise Unpacked("two of its columns have the same name")
    shapes = [shape_of(pa, field.type) for field in found]
    columns = [[field.name, at.kind, at.is_list, shown(field)] for field, at in zip(found, shapes, strict=True)]
    yield {"columns": columns, "labels": _label_names(found)}, b""


def rows(path: str, column: str, prompt_field: str | None, times: list[str]) -> Iterator[_Answer]:
    """Of each row the path, or whether there are bytes and the path beside them; the prompt; and the times."""
    pa = load_pyarrow()
    shape = shape_of(pa, _schema(pa, path).field(column).type)
    beside = [*([] if prompt_field is None else [prompt_field]), *times]
    columns = [column, *sorted(set(beside) - {column})]
    for batch in _listed(pa, path, shape, column, columns):
        for piece in pieces(pa, batch, column):
            cells = piece.column(column)
            answer: dict[str, Any] = {}
            if shape.kind == "bytes":
                answer["present"], answer["values"] = bytes_in(pa, cells, shape)
            else:
                answer["values"] = names_in(pa, cells, shape)
            if prompt_field is not None:
                answer["prompts"] = texts(piece.column(prompt_field))
            answer["times"] = [times_in(piece.column(name)) for name in times]
            yield answer, b""


def records(path: str, columns: list[str]) -> Iterator[_Answer]:
    """All values of each row in some columns."""
    pa = load_pyarrow()
    for batch in _batches(pa, path, columns):
        encoded: list[str] = []
        parts: list[bytes] = []
        characters = held = 0
        for record in batch.to_pylist():
            own: list[bytes] = []
            try:
                text = json.dumps(_plain(record, own, [held]))
            except Unpacked:
                text = ""
            if not text or len(text) > limits.MAX_ROW_BYTES:
                text = json.dumps(f"is longer than {limits.MAX_ROW_BYTES:,} bytes without its images")
            elif any(len(part) > limits.MAX_CELL_BYTES for part in own):
                text = json.dumps(f"holds a value of more than {limits.MAX_CELL_BYTES:,} bytes")
            else:
                parts += own
                held += sum(map(len, own))
            encoded.append(text)
            characters += len(text)
            if characters + held > _ANSWER_BYTES:
                yield f'{{"records": [{", ".join(encoded)}]}}', b"".join(parts)
                encoded, parts, characters, held = [], [], 0, 0
        yield f'{{"records": [{", ".join(encoded)}]}}', b"".join(parts)


def cell(path: str, facts: list[int], row: int, column: str, element: int, max_bytes: int) -> Iterator[_Answer]:
    """The bytes in one cell, or of one element of the list in it."""
    pa = load_pyarrow()
    name = (path, tuple(facts), column)
    reader = _readers.pop(name, None) or (_Mapped if is_arrow(path) else _Groups)(pa, path, column)
    while len(_readers) > 1:
        _readers.pop(next(iter(_readers)))
    value = reader.find(row)
    _readers[name] = reader
    content = content_of(pa, value, shape_of(pa, value.type), element)
    if content is None:
        yield {"none": True}, b""
    elif content.size > max_bytes:
        yield {"size": content.size}, b""
    else:
        yield {"size": content.size}, memoryview(content)


_WHAT = {"schema": schema, "rows": rows, "records": records, "cell": cell}


def _schema(pa: Any, path: str) -> Any:
    if is_arrow(path):
        return arrow_schema(Path(path))
    with _parquet(pa, path) as table:
        return table.schema_arrow


def _parquet(pa: Any, path: str) -> Any:
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


def _label_names(found: Any) -> dict[str, list[str]]:
    """Columns of `datasets`' ClassLabel -> the names its numbers stand for."""
    try:
        metadata: dict[bytes, bytes] = found.metadata or {}
        text = metadata.get(b"huggingface", b"{}")
        if len(text) > limits.MAX_ROW_BYTES:
            return {}
        features = json.loads(text)["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _listed(pa: Any, path: str, shape: Shape, column: str, columns: list[str]) -> Iterator[Any]:
    if is_arrow(path) or shape.kind != "bytes" or len(shape.way) != 1 or shape.beside is None:
        yield from _batches(pa, path, columns)
        return
    budget = Budget(path)
    with _parquet(pa, path) as table:
        type_ = table.schema_arrow.field(column).type
        struct_ = type_.value_type if shape.is_list else type_
        content, beside = struct_.field(shape.way[0]).name, struct_.field(shape.beside[0]).name
        for group in range(table.num_row_groups):
            # the bytes themselves need not be read to know that they are all there
            path_in = _whole(table.metadata.row_group(group), column, content)
            only = [f"{path_in}.{beside}", *columns[1:]] if path_in else columns
            yield from _group(pa, table, group, only, budget)


def _whole(group: Any, column: str, field: str) -> str:
    """Where in a column the structs are whose field is there in every row; empty where it lacks in one, or may lack."""
    found = [group.column(number) for number in range(group.num_columns)]
    # a list puts two names of the writer's choice between: images.list.element.bytes
    ends = (f"{column}.", f".{field}")
    parts = [
        part for part in found if part.path_in_schema.startswith(ends[0]) and part.path_in_schema.endswith(ends[1])
    ]
    if len(parts) != 1 or not (parts[0].is_stats_set and parts[0].statistics.has_null_count):
        return ""
    return parts[0].path_in_schema.removesuffix(ends[1]) if parts[0].statistics.null_count == 0 else ""


def _batches(pa: Any, path: str, columns: list[str]) -> Iterator[Any]:
    """Some columns of a table, a few rows at a time."""
    budget = Budget(path)
    if is_arrow(path):
        for batch in arrow_batches(Path(path), columns):
            budget.spend(_size(pa, batch))
            step = _fitting(_size(pa, batch), batch.num_rows)
            yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))
        return
    with _parquet(pa, path) as table:
        if table.metadata.num_rows > limits.MAX_ROWS:
            raise Unpacked(f"it has {table.metadata.num_rows:,} rows; the limit is {limits.MAX_ROWS:,}. Split it")
        for group in range(table.num_row_groups):
            yield from _group(pa, table, group, columns, budget)


def _group(pa: Any, table: Any, group: int, columns: list[str], budget: Budget | None) -> Iterator[Any]:
    """A row group of a Parquet file, as many rows at a time as the size of those before allows.

    Where rows suddenly are so large that memory ends, it is read again from its start, fewer rows at a time.
    """
    done, most = 0, limits.TABLE_BATCH_ROWS
    while True:
        seen, step = 0, 1
        try:
            for batch in table.iter_batches(batch_size=1, row_groups=[group], columns=columns, use_threads=False):
                size = _size(pa, batch)
                step = max(1, min(4 * step, most, _fitting(size, batch.num_rows)))
                table.reader.set_batch_size(step)  # of the next batch
                fresh = batch.slice(max(0, done - seen))
                seen += batch.num_rows
                if fresh.num_rows:
                    if budget is not None:
                        budget.spend(size)
                    done = seen
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


def _plain(value: Any, parts: list[bytes], at: list[int]) -> Any:
    """A value of a row as JSON has it; bytes go into `parts`, the next of them at `at` of the answer's bytes.

    Raises:
        Unpacked: a text is too long.
    """
    if isinstance(value, str) and len(value) > limits.MAX_ROW_BYTES:
        raise Unpacked
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        start = at[0]
        parts.append(value)
        at[0] += len(value)
        return {BYTES: [start, len(value)]}
    if isinstance(value, dict):  # a stranger's names are never ours
        named = cast(dict[str, Any], value).items()
        return {f"\0{name}" if name.startswith("\0") else name: _plain(part, parts, at) for name, part in named}
    if isinstance(value, list):
        return [_plain(part, parts, at) for part in cast(list[Any], value)]
    return {OTHER: type(value).__name__}


class _Kept:
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


class _Groups:
    """One column of a Parquet file, unpacked from the start of a row group onwards: inputs are read in order."""

    def __init__(self, pa: Any, path: str, column: str) -> None:
        self._pa, self._column = pa, column
        self._table = _parquet(pa, path)
        metadata = self._table.metadata
        self._rows: list[int] = [metadata.row_group(number).num_rows for number in range(self._table.num_row_groups)]
        self._group: int = -1
        self._kept = _Kept()
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
            self._kept = _Kept()
            self._batches = _group(self._pa, self._table, group, [self._column], None)
        for batch in self._batches:
            cells = batch.column(self._column)
            self._kept.add(self._next, cells, cells.nbytes)
            self._next += len(cells)
            if row < self._next:
                return cells[len(cells) - (self._next - row)]
        self._group = -1
        raise IndexError(f"row group {group} ends before it")


class _Mapped:
    """One column of an Arrow file. Batches that are compressed are unpacked one at a time, the others mapped."""

    def __init__(self, pa: Any, path: str, column: str) -> None:
        self._pa, self._path, self._column = pa, path, column
        self._restart()

    def _restart(self) -> None:
        self._kept = _Kept()
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


_readers: dict[tuple[str, tuple[int, ...], str], Any] = {}
"""Of the cells read last. Keys hold size and time, since another file of this name is another table."""


def _limit(path: str) -> None:
    """Limit memory and CPU time from here on. A mapped file takes address space, but no memory of its own."""
    statm = Path("/proc/self/statm")
    page = resource.getpagesize()
    total, data = (int(statm.read_bytes().split()[at]) * page for at in (0, 5)) if statm.exists() else (0, 0)
    try:
        size = os.stat(path).st_size  # noqa: PTH116
    except OSError:
        size = 0
    _set(resource.RLIMIT_AS, total + limits.TABLE_MEMORY_BYTES + size)
    _set(resource.RLIMIT_DATA, data + limits.TABLE_MEMORY_BYTES)
    _limit_cpu()


def _limit_cpu() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _set(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + 1 + limits.TABLE_CPU_S)


def _set(which: int, bound: int) -> None:
    most = resource.getrlimit(which)[1]
    try:
        resource.setrlimit(which, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))
    except (OSError, ValueError):  # this system has no such limit
        return


def _send(to: int, header: dict[str, Any] | str, content: Any = b"") -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    for part in (LENGTHS.pack(len(text), len(content)), text, content):
        rest = memoryview(part).cast("B")
        while rest:
            rest = rest[os.write(to, rest) :]


def main() -> None:
    """Answer requests until there are no more. The answers' file descriptor is the argument."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        print("theworld starts this process by itself; it starts, so it is not the problem")
        return
    to = int(sys.argv[1])
    # what ends the job in order may be sent to all its processes; it ends this when it has ended its batch
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa = load_pyarrow()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    _send(to, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        what = request.pop("what")
        try:
            _limit(request["path"])
            for header, content in _WHAT[what](**request):
                _send(to, header, content)
                _limit_cpu()
            end: dict[str, Any] = {"end": True}
        except BrokenPipeError:
            return
        except (MemoryError, pa.ArrowMemoryError):
            _readers.clear()
            why = f"it takes more than {limits.TABLE_MEMORY_BYTES:,} bytes of memory to read. Write smaller row groups"
            end = {"problem": "memory", "why": why}
        except Unpacked as error:
            end = {"problem": "limit", "why": str(error)}
        except Exception as error:  # pyarrow's own errors, and whatever a damaged file makes it raise
            known = isinstance(error, (pa.ArrowException, OSError, IndexError, UnicodeDecodeError))
            why = str(error) if known else f"{type(error).__name__}: {error}"
            end = {"problem": "table", "why": why[:300]}
        _send(to, end)


if __name__ == "__main__":
    main()
