"""The process that reads Parquet and Arrow files, so that a bomb or a damaged file costs only that file.

A file of 771 bytes can unpack to 12 GB, and its own figures cannot be trusted. So memory and CPU time of this process
are limited, and rows are unpacked few at a time, as many as their size so far allows (batches.py, cell_readers.py).

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from .. import limits
from .arrow import is_arrow, load_pyarrow
from .batches import Unpacked, read_batches, read_listing, schema_of_file
from .cell_readers import ArrowCells, ParquetCells
from .columns import (
    OTHER,
    bytes_in,
    content_of,
    names_in,
    pieces,
    shape_of,
    texts,
    times_in,
    type_text,
)

LENGTHS = struct.Struct("<QQ")
BYTES = "\0bytes"
"""Key of an object in an answer that stands for bytes of the content."""
_ANSWER_BYTES = 2**22
_Answer = tuple[dict[str, Any] | str, Any]
"""An object of JSON, or its text, and bytes."""


def schema(path: str) -> Iterator[_Answer]:
    """The columns of a table, what kind each is, and the names of `datasets`' ClassLabels."""
    pa = load_pyarrow()
    table_schema = schema_of_file(pa, path)
    if len(table_schema.names) > limits.MAX_COLUMNS:
        raise Unpacked(f"it has {len(table_schema.names):,} columns; the limit is {limits.MAX_COLUMNS:,}")
    if sum(map(len, table_schema.names)) > limits.MAX_TABLE_NAMES_BYTES:
        raise Unpacked(f"the names of its columns are longer than {limits.MAX_TABLE_NAMES_BYTES:,} characters")
    if len(set(table_schema.names)) < len(table_schema.names):
        raise Unpacked("two of its columns have the same name")
    shapes = [shape_of(pa, field.type) for field in table_schema]
    columns = [
        [field.name, at.kind, at.is_list, type_text(field)] for field, at in zip(table_schema, shapes, strict=True)
    ]
    yield {"columns": columns, "labels": _label_names(table_schema)}, b""


def rows(path: str, column: str, prompt_field: str | None, times: list[str]) -> Iterator[_Answer]:
    """Of each row the path, or whether there are bytes and the path beside them; the prompt; and the times."""
    pa = load_pyarrow()
    shape = shape_of(pa, schema_of_file(pa, path).field(column).type)
    beside = [*([] if prompt_field is None else [prompt_field]), *times]
    columns = [column, *sorted(set(beside) - {column})]
    for batch in read_listing(pa, path, shape, column, columns):
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
    for batch in read_batches(pa, path, columns):
        encoded: list[str] = []
        parts: list[bytes] = []
        characters = held = 0
        for record in batch.to_pylist():
            row_parts: list[bytes] = []
            try:
                text = json.dumps(_plain(record, row_parts, [held]))
            except Unpacked:
                text = ""
            if not text or len(text) > limits.MAX_ROW_BYTES:
                text = json.dumps(f"is longer than {limits.MAX_ROW_BYTES:,} bytes without its images")
            elif any(len(part) > limits.MAX_CELL_BYTES for part in row_parts):
                text = json.dumps(f"holds a value of more than {limits.MAX_CELL_BYTES:,} bytes")
            else:
                parts += row_parts
                held += sum(map(len, row_parts))
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
    reader = _readers.pop(name, None) or (ArrowCells if is_arrow(path) else ParquetCells)(pa, path, column)
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


def _label_names(table_schema: Any) -> dict[str, list[str]]:
    """Columns of `datasets`' ClassLabel -> the names its numbers stand for."""
    try:
        metadata: dict[bytes, bytes] = table_schema.metadata or {}
        text = metadata.get(b"huggingface", b"{}")
        if len(text) > limits.MAX_ROW_BYTES:
            return {}
        features = json.loads(text)["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


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
            is_explained = isinstance(error, (pa.ArrowException, OSError, IndexError, UnicodeDecodeError))
            why = str(error) if is_explained else f"{type(error).__name__}: {error}"
            end = {"problem": "table", "why": why[:300]}
        _send(to, end)


if __name__ == "__main__":
    main()
