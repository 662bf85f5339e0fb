"""Read Parquet and Arrow files through a process with limited memory and time (process.py)."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ...errors import ConfigError
from .. import limits
from .arrow import load_pyarrow
from .columns import OTHER
from .process import BYTES, LENGTHS

START_S = 300.0
"""Seconds for the process to import pyarrow on a busy machine."""

ColumnKind = Literal["text", "bytes", ""]

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve gigabytes of addresses
    "MALLOC_ARENA_MAX": "1",
}
_MAX_ANSWER_BYTES = 2 * limits.MAX_ROW_BYTES + 2**24


class TableError(ValueError):
    """A table cannot be read, or breaks a limit. The text says why, and does not name the file."""

    def __init__(self, why: str, problem: str = "table") -> None:
        super().__init__(why)
        self.problem = problem
        """`table`: damaged; `limit`, `memory`, `timeout`, `crash`: which guard ended it."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, as its type says."""

    kind: ColumnKind
    """What a value holds, itself or in a field: a name, or bytes; empty for neither."""
    is_list: bool
    """Whether a row holds several."""
    type: str


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a table in their order, and the names that numbers of `datasets`' ClassLabels stand for."""

    columns: dict[str, Column]
    labels: dict[str, list[str]]


class Other:
    """A value that is neither text nor number nor list: `text` says what is wrong with it, or names its type."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def read_schema(path: str | Path) -> Schema:
    """The columns of a table.

    Raises:
        TableError: it is none, or has too many. ConfigError: pyarrow is missing.
    """
    [(answer, _)] = _ask({"what": "schema", "path": os.path.abspath(path)})  # noqa: PTH100
    columns = {name: Column(kind, is_list, type_name) for name, kind, is_list, type_name in answer["columns"]}
    return Schema(columns, answer["labels"])


def read_rows(
    path: str | Path, column: str, prompt_field: str | None, times: Sequence[str] = ()
) -> Iterator[tuple[Any, ...]]:
    """Value, prompt, and the value in each column of times, of each row.

    Returns:
        The value is a text, None or `Other`; of a column of bytes, a pair: whether there are any, and the path beside.
        Of a column of lists it is a list of these, None or `Other`. A time is also a number, or a list of times.
    Raises:
        TableError, ConfigError: as of `read_schema`.
    """
    request = {
        "what": "rows",
        "path": os.path.abspath(path),  # noqa: PTH100
        "column": column,
        "prompt_field": prompt_field,
        "times": list(times),
    }
    for answer, _ in _ask(request):
        values = list(map(_value, answer["values"]))
        prompts = list(map(_value, answer["prompts"])) if prompt_field is not None else [None] * len(values)
        cells = map(_cell, answer["present"], values) if "present" in answer else values
        stated = [map(_value, column) for column in answer["times"]]
        yield from zip(cells, prompts, *stated, strict=True)


def read_records(path: str | Path, columns: list[str]) -> Iterator[dict[str, Any] | str]:
    """Some columns of each row: column -> value; or, of a row that breaks a limit, what is wrong with it."""
    for answer, content in _ask({"what": "records", "path": os.path.abspath(path), "columns": columns}):  # noqa: PTH100
        for record in answer["records"]:
            yield record if isinstance(record, str) else {name: _deep(value, content) for name, value in record.items()}


def read_cell(
    path: str, facts: tuple[int, ...], row: int, column: str, max_bytes: int, element: int = 0
) -> tuple[bytes | None, int]:
    """The bytes in a cell and their number; None where there are none, or more than `max_bytes`.

    Args:
        facts: what tells the file from another of this name. Cells in order are fast.
        element: of a column of lists, which one in the row's list.
    Raises:
        TableError, ConfigError: as of `read_schema`.
    """
    path = os.path.abspath(path)  # noqa: PTH100
    request = {
        "what": "cell",
        "path": path,
        "facts": list(facts),
        "row": row,
        "column": column,
        "element": element,
        "max_bytes": min(max_bytes, limits.MAX_CELL_BYTES),
    }
    with _cells_lock:  # one process has the row group at hand
        [(answer, content)] = _ask(request, of_cells=True)
    size = int(answer.get("size", 0))
    return (None, size) if "none" in answer or size != len(content) else (content, size)


def _cell(is_present: Any, path: Any) -> Any:
    """Whether bytes are there and the path beside; of a row of several a list of these, None or `Other`."""
    if isinstance(is_present, bool):
        return is_present, path
    return list(zip(cast(list[bool], is_present), path, strict=True)) if isinstance(is_present, list) else path


def _value(value: Any) -> Any:
    if isinstance(value, str):  # most of them
        return value
    if isinstance(value, list):
        return [_value(part) for part in cast(list[Any], value)]
    return Other(str(cast(dict[str, Any], value)[OTHER])) if isinstance(value, dict) else value


def _deep(value: Any, content: bytes) -> Any:
    if isinstance(value, list):
        return [_deep(part, content) for part in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    parts = cast(dict[str, Any], value)
    if BYTES in parts:
        start, size = parts[BYTES]
        return content[start : start + size]
    if OTHER in parts:
        return type(str(parts[OTHER]), (), {})()  # messages name the type
    return {name: _deep(part, content) for name, part in parts.items()}


class _Process:
    """A process that reads tables, and its two pipes."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._from, theirs = os.pipe()
        try:
            paths = os.pathsep.join(path for path in sys.path if path)  # wherever this process found theworld
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "theworld.pipeline.files.tables.process", str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # pyarrow's last words may quote the file
                pass_fds=[theirs],
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
            )
        finally:
            os.close(theirs)
        try:
            self.answer(START_S)
        except (OSError, EOFError, ValueError) as error:
            self.end()
            raise ConfigError(
                f"the process that reads tables does not start ({error!r}). See why with: "
                f"{sys.executable} -m theworld.pipeline.files.tables.process"
            ) from error

    def ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, wait_s: float = limits.TABLE_WALL_S) -> tuple[dict[str, Any], bytes]:
        """The next answer.

        Raises:
            TimeoutError, EOFError: none comes in time, or the process is gone.
            ValueError: it is none.
        """
        deadline = time.monotonic() + wait_s
        header, content = LENGTHS.unpack(self._read(LENGTHS.size, deadline))
        if header > _MAX_ANSWER_BYTES or content > limits.MAX_CELL_BYTES + 2**24:
            raise ValueError(f"an answer of {header:,} and {content:,} bytes")
        return json.loads(self._read(header, deadline)), self._read(content, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(self._from, min(size - len(parts), 2**20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def end(self) -> int:
        """End the process; returns its exit code, negative for a signal."""
        if self._from < 0:
            return self._process.wait()
        if self._process.poll() is None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        self._process.kill()
        code = self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        os.close(self._from)
        self._from = -1
        return code


_idle: list[_Process] = []
_of_cells: list[_Process] = []
_cells_lock = threading.Lock()


def _ask(request: dict[str, Any], *, of_cells: bool = False) -> Generator[tuple[dict[str, Any], bytes]]:
    """The answers to a request. A process that was ended is replaced for the next one."""
    load_pyarrow()  # says how to install it
    pool = _of_cells if of_cells else _idle
    process = None
    while pool and process is None:
        process = pool.pop()
        if process.owner != os.getpid():  # forked off: it belongs to the parent
            process = None
    process = process or _Process()
    is_sound = False
    try:
        try:
            process.ask(request)
        except OSError:  # it died while idle, which is not this file's fault
            process.end()
            process = _Process()
            process.ask(request)
        while True:
            header, content = process.answer()
            if "end" in header:
                is_sound = True
                return
            if "problem" in header:
                is_sound = True
                raise TableError(str(header["why"]), str(header["problem"]))
            yield header, content
    except TimeoutError as error:
        raise TableError(f"nothing was read of it within {limits.TABLE_WALL_S:g} s", "timeout") from error
    except (EOFError, OSError, ValueError) as error:
        if isinstance(error, TableError):
            raise
        code = process.end()
        if code == -signal.SIGXCPU:
            raise TableError(f"reading it took more than {limits.TABLE_CPU_S} s of CPU", "timeout") from error
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise TableError(f"it ended the process that read it ({how})", "crash") from error
    finally:
        if is_sound:
            pool.append(process)
        else:
            with suppress(OSError):
                process.end()


@atexit.register
def _end_all() -> None:
    for process in (*_idle, *_of_cells):
        if process.owner == os.getpid():
            process.end()
