"""Lists without types: JSON lines, CSV, and the JSON array of LLaVA, one row at a time, however large the file.

A row that is wrong is a row with a problem, never the end of the list. Lives here: the formats. Elsewhere: tables with
types (arrow_files.py), what a row means (precompute/inputs/manifests.py, train/questions/readers.py).
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
"""A row by its columns' names, or what is wrong with it, in words that name it."""


def read_records(file: Path) -> Iterator[tuple[str, Record]]:
    """The rows of a list, in its order, each with what a person finds it by: `data.jsonl:17`, a line (`.json`: an
    element). Blank lines are skipped.

    Raises:
        ConfigError: a .json that is no JSON array.
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
                while (rest := lines.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
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
    csv.field_size_limit(MAX_ROW_BYTES)  # the library's own, 131,072, is less than an image in base64
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
                yield name, f"{name} is not CSV: {error}"
                continue
            if not values:
                continue
            if header is None:
                header = values
            elif any(values[len(header) :]):  # its columns have moved: the answer would be half a question
                wrong = f"has {len(values)} values in {len(header)} columns; one that holds {delimiter!r} needs quotes"
                yield name, f"{name} {wrong}"
            else:
                yield name, dict(zip(header, values, strict=False))


def _array_records(file: Path) -> Iterator[tuple[str, Record]]:
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
                yield name, str(error)
            number += 1


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds {type(value).__name__}, and a row is an object of named values")
    return cast(dict[str, Any], value)
