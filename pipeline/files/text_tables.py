"""Read JSON lines, CSV and JSON arrays (as LLaVA's) row by row, in constant memory.

A malformed row is returned as a message; reading goes on with the next row.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigError

SUFFIXES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".json"})
MAX_ROW_BYTES = 2**24
_BLOCK = 2**20

Record = dict[str, Any] | str
"""A row as column -> value; or, if the row is malformed, a message that names it."""


def read_records(file: Path) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a file in order, each with its place: `data.jsonl:17` is a line (in `.json`, an element).

    Blank lines are skipped.

    Raises:
        ConfigError: a .json file that is not a JSON array.
        OSError: the file cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix == ".json":
        return _array_records(file)
    return _csv_records(file, "\t" if suffix == ".tsv" else ",") if suffix in (".csv", ".tsv") else _line_records(file)


def _line_records(file: Path) -> Iterator[tuple[str, Record]]:
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_ROW_BYTES):
            number += 1
            name = f"{file.name}:{number}"
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                while (part := lines.readline(MAX_ROW_BYTES)) and not part.endswith(b"\n"):
                    pass
                yield name, f"{name} is longer than {MAX_ROW_BYTES:,} bytes"
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                yield name, _object(name, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield name, f"{name} is not JSON: {error}"


def _csv_records(file: Path, delimiter: str) -> Iterator[tuple[str, Record]]:
    csv.field_size_limit(MAX_ROW_BYTES)  # the default, 131,072, is less than an image in base64
    # a file name that is not UTF-8 must still open its file
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
                yield name, f"{name} is not CSV: {error}"
                continue
            if not values:
                continue
            if header is None:
                header = values
            elif any(values[len(header) :]):  # an unquoted delimiter has shifted the columns
                counts = f"{len(values)} values for {len(header)} columns"
                yield name, f"{name} has {counts}. Put quotes around a value that holds {delimiter!r}"
            else:
                yield name, dict(zip(header, values, strict=False))


def _array_records(file: Path) -> Iterator[tuple[str, Record]]:
    """Yield the elements of a JSON array one at a time: LLaVA's files have a gigabyte."""
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as blocks:
        text, position, number, has_more = "", 0, 1, True

        def skip(expected: str) -> bool:
            """Skip white space, then one of the expected characters; return whether there was one."""
            nonlocal text, position, has_more
            while True:
                while position < len(text) and text[position].isspace():
                    position += 1
                if position < len(text) or not has_more:
                    break
                text, position = blocks.read(_BLOCK), 0
                has_more = bool(text)
            if position < len(text) and text[position] in expected:
                position += 1
                return True
            return False

        if not skip("["):
            raise ConfigError(f"{file} is not a JSON array of objects; JSON lines are read from a .jsonl file")
        while not skip("]"):
            name = f"{file.name}:{number}"
            if number > 1 and not skip(","):
                raise ConfigError(f"{file} is not JSON: no comma and no closing bracket after element {number - 1}")
            skip("")
            while True:
                try:
                    value, end = decoder.raw_decode(text, position)
                    if end < len(text) or not has_more:  # a number may continue in the next block
                        break
                except (ValueError, RecursionError) as error:
                    if not has_more or len(text) - position > MAX_ROW_BYTES:
                        raise ConfigError(f"{file} is not JSON at element {number}: {error}") from error
                block = blocks.read(max(_BLOCK, len(text) - position))  # double the size each time: linear in total
                text, position, has_more = text[position:] + block, 0, bool(block)
            position = end
            try:
                yield name, _object(name, value)
            except ValueError as error:
                yield name, str(error)
            number += 1


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is of type {type(value).__name__}, but a row must be an object with named values")
    return cast(dict[str, Any], value)
