"""Lists of inputs: JSON lines, CSV, and the JSON array of LLaVA. Rows in, texts out; no file that is named is opened.

A row that is wrong is a row with a problem, never the end of the list. Lives here: the formats and which column counts.
Elsewhere: tables with types (tables.py), what becomes of a row (sources.py).
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..pipeline.errors import ConfigError, ImageError

SUFFIXES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".json"})
COLUMNS = ("image", "video", "path", "file", "file_name")
"""Which column names the input where none is said, in this order; what the kind takes comes before all."""
MAX_ROW_BYTES = 2**24
_MAX_PATH = 4096
"""Linux opens no longer one."""
MAX_PROMPT = 8000
"""Characters; world models read 512 tokens."""
_BLOCK = 2**20
_CONVERSATIONS = "conversations"
_NAMED = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what it says, or what is wrong with it."""

    name: str
    """What a person finds it by, `data.jsonl:17`."""
    path: str = ""
    prompt: str | None = None
    problem: ImageError | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The rows of a list, and how many name no input because they need none (LLaVA's conversations without image)."""

    rows: tuple[Row, ...]
    without: int = 0


def candidates(takes: str) -> tuple[str, ...]:
    """Names of columns to try, for what a kind takes."""
    return tuple(dict.fromkeys((takes, *COLUMNS)))


def read_manifest(file: Path, takes: str, *, column: str | None, prompt_field: str | None) -> Manifest:
    """All rows of a list, in its order.

    Args:
        takes: what one input is, image or video.
        column: which one names the input; None takes the first of `candidates` that any row has.
        prompt_field: which one holds the input's prompt; None reads none.
    Raises:
        ConfigError: the file cannot be read, holds no row, is no JSON array (LLaVA), or no row has the column.
    """
    suffix = file.suffix.lower()
    keep = {*(candidates(takes) if column is None else (column,)), prompt_field, _CONVERSATIONS}
    columns: dict[str, None] = {}
    records: list[tuple[str, dict[str, Any] | ImageError]] = []
    try:
        for name, record in _records(file, suffix):
            if isinstance(record, dict):
                columns.update(dict.fromkeys(record))
                record = {key: value for key, value in record.items() if key in keep}  # the rest may be gigabytes
                if _CONVERSATIONS in record and _CONVERSATIONS not in (column, prompt_field):
                    record[_CONVERSATIONS] = True
            records.append((name, record))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    chosen = choose_column(file, columns, takes, column)
    if prompt_field is not None:
        check_prompt_field(file, columns, prompt_field)
    rows: list[Row] = []
    without = 0
    for name, record in records:
        if isinstance(record, ImageError):
            rows.append(Row(name, problem=record))
        elif suffix == ".json" and column is None and chosen not in record and _CONVERSATIONS in record:
            without += 1
        else:
            rows.append(row_of(name, record, chosen, prompt_field))
    return Manifest(tuple(rows), without)


def choose_column(file: Path, columns: Collection[str], takes: str, column: str | None) -> str:
    """The column that names the inputs.

    Raises:
        ConfigError: there is none; lists those there are.
    """
    wanted = (column,) if column is not None else candidates(takes)
    for name in wanted:
        if name in columns:
            return name
    raise ConfigError(
        f"{file} has no column {' or '.join(wanted)} in any row; it has {_listed(columns)}. "
        f"Say with --column which one names the {takes}s"
    )


def check_prompt_field(file: Path, columns: Collection[str], prompt_field: str) -> None:
    """Raise ConfigError where no row has it."""
    if prompt_field not in columns:
        raise ConfigError(
            f"{file} has no column {prompt_field} in any row; it has {_listed(columns)}. "
            "Say with --prompt-field which one holds the prompt"
        )


def row_of(name: str, record: dict[str, Any], column: str, prompt_field: str | None) -> Row:
    """The row of a record: its path, and its prompt where one is wanted."""
    try:
        path = _text(name, record, column)
        if len(path) > _MAX_PATH:
            raise ImageError("row", f"{name}: {column} is {len(path):,} characters long, which is no path")
        return Row(name, path, None if prompt_field is None else prompt_of(name, record, prompt_field))
    except ImageError as error:
        return Row(name, problem=error)


def prompt_of(name: str, record: dict[str, Any], prompt_field: str) -> str:
    """The prompt of a record.

    Raises:
        ImageError: it has none, or none that is text.
    """
    text = _text(name, record, prompt_field)
    if len(text) > MAX_PROMPT:
        raise ImageError("row", f"{name}: {prompt_field} has {len(text):,} characters; the limit is {MAX_PROMPT:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ImageError("row", f"{name}: {prompt_field} is not Unicode text ({error.reason})") from error
    return text


def _text(name: str, record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None:
        raise ImageError("row", f"{name} has no {column}")
    if not isinstance(value, str):
        raise ImageError("row", f"{name}: {column} must be a text, got {json.dumps(value, default=str)[:80]}")
    if not value.strip() or "\0" in value:
        raise ImageError("row", f"{name}: {column} is empty or holds a NUL character")
    return value


def _records(file: Path, suffix: str) -> Iterator[tuple[str, dict[str, Any] | ImageError]]:
    if suffix == ".json":
        return _array_records(file)
    return _csv_records(file, "\t" if suffix == ".tsv" else ",") if suffix in (".csv", ".tsv") else _line_records(file)


def _line_records(file: Path) -> Iterator[tuple[str, dict[str, Any] | ImageError]]:
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_ROW_BYTES):
            number += 1
            name = f"{file.name}:{number}"
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                while (rest := lines.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield name, ImageError("row", f"{name} is longer than {MAX_ROW_BYTES:,} bytes")
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                yield name, _object(name, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield name, ImageError("row", f"{name} is not JSON: {error}")


def _csv_records(file: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any] | ImageError]]:
    # a name that is not UTF-8 opens its file all the same
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            name = f"{file.name}:{reader.line_num + 1}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield name, ImageError("row", f"{name} is not CSV: {error}")
                continue
            if not values:
                continue
            if header is None:
                header = values
            else:
                yield name, dict(zip(header, values, strict=False))


def _array_records(file: Path) -> Iterator[tuple[str, dict[str, Any] | ImageError]]:
    """The elements of a JSON array, one at a time: LLaVA's files have a gigabyte."""
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as blocks:
        text, at, number, more = "", 0, 1, True

        def skip(expected: str) -> bool:
            """Step over blanks; and over one of these characters, if it comes next."""
            nonlocal text, at, more
            while True:
                while at < len(text) and text[at].isspace():
                    at += 1
                if at < len(text) or not more:
                    break
                text, at = blocks.read(_BLOCK), 0
                more = bool(text)
            if at < len(text) and text[at] in expected:
                at += 1
                return True
            return False

        if not skip("["):
            raise ConfigError(f"{file} is not a JSON array of objects; JSON lines are read from a .jsonl file")
        while not skip("]"):
            name = f"{file.name}:{number}"
            if number > 1 and not skip(","):
                raise ConfigError(f"{file} is not JSON: after element {number - 1} comes neither a comma nor its end")
            skip("")
            while True:
                try:
                    value, end = decoder.raw_decode(text, at)
                    if end < len(text) or not more:  # a number might go on in the next block
                        break
                except (ValueError, RecursionError) as error:
                    if not more or len(text) - at > MAX_ROW_BYTES:
                        raise ConfigError(f"{file} is not JSON at element {number}: {error}") from error
                block = blocks.read(max(_BLOCK, len(text) - at))  # twice as much each time: linear in all
                text, at, more = text[at:] + block, 0, bool(block)
            at = end
            try:
                yield name, _object(name, value)
            except ValueError as error:
                yield name, ImageError("row", str(error))
            number += 1


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds {type(value).__name__}, and a row is an object of named values")
    return cast(dict[str, Any], value)


def _listed(columns: Iterable[str]) -> str:
    names = list(columns)
    return (", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")) or "no columns at all"
