"""Read JSON lines, CSV, JSON arrays (as LLaVA's) and texts of one path a line, row by row, in constant memory.

A malformed row is returned as a message; reading goes on with the next row. A file compressed with gzip or bzip2 is
read as what it unpacks to; xz is not, since its files say how many gigabytes of memory unpacking takes. UTF-16 is read
where a mark begins the file, and of a .csv what some countries' Excel puts between values: `;` or a tab.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from ...errors import ConfigError
from ..limits import (
    MAX_COLUMNS,
    MAX_CSV_ROW_CHARACTERS,
    MAX_ROW_BYTES,
    MAX_SKIPPED_BYTES,
)
from .text_streams import open_text

SUFFIXES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".json"})
PATHS = ".txt"
"""The form of a text with one path a line, and its usual suffix."""
PATH_COLUMN = "path"
"""What such a line is called as a row."""
PACKED = frozenset({".gz", ".bz2"})
_SEPARATOR = re.compile(r"sep=(.)\s*")  # the first line of a CSV of Excel
_BLOCK = 2**20
_HEAD_BYTES = 4096
_BLANKS = re.compile(r"\s*")
_ENDLESS = f"is longer than {MAX_SKIPPED_BYTES:,} bytes, so the file is no list of lines. The rest of it is not read"

Record = dict[str, Any] | str
"""A row as column -> value; or, if the row is malformed, a message that names it."""


def read_records(file: Path, form: str | None = None) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a file in order, each with its place: `data.jsonl:17` is a line (in a JSON array, an element).

    Args:
        form: as of `form_of`, if it is known.

    Blank lines are skipped. Of a text with one path a line each row has one column, `PATH_COLUMN`.

    Raises:
        ConfigError: a .json file that is not a JSON array.
        OSError: the file cannot be read, or its compression is damaged or hides too much.
    """
    form = form or form_of(file)
    if form == ".json":
        return _array_records(file)
    if form == PATHS:
        return _path_records(file)
    return _csv_records(file, "\t" if form == ".tsv" else ",") if form in (".csv", ".tsv") else _line_records(file)


def form_of(file: Path) -> str:
    """The suffix that says how a list is read: its own, that of its name without `.gz`, or else one by its content.

    Raises:
        OSError: it cannot be read.
    """
    if (form := form_of_name(file.name)) in SUFFIXES:
        return form
    with open_text(file) as text:
        start = text.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return {b"[": ".json", b"{": ".jsonl"}.get(start, PATHS)


def form_of_name(name: str) -> str:
    """The last suffix of a name in small letters, that of compression left out: `.jsonl` of `LIST.JSONL.gz`."""
    path = Path(name)
    return Path(path.stem).suffix.lower() if path.suffix.lower() in PACKED else path.suffix.lower()


def read_lines(file: Path) -> Iterator[tuple[int, str | None]]:
    """Yield the lines of a UTF-8 text file with their numbers; None for one of more than `MAX_ROW_BYTES` characters.

    Raises:
        ValueError: a line does not end; the text says where and what of it.
        UnicodeDecodeError: it is not UTF-8; `start` counts from some block of the file.
        OSError: the file cannot be read.
    """
    with io.TextIOWrapper(open_text(file), encoding="utf-8-sig") as lines:  # Windows' editors put a mark in front
        number = 0
        while line := lines.readline(MAX_ROW_BYTES):
            number += 1
            if len(line) < MAX_ROW_BYTES or line.endswith("\n"):
                yield number, line
            elif _skip_line(lines, "\n"):
                yield number, None
            else:
                raise ValueError(f"line {number} {_ENDLESS}")


def _skip_line(lines: Any, end: Any) -> bool:
    """Read to the end of a line; False where it does not end in time."""
    skipped = MAX_ROW_BYTES
    while (part := lines.readline(MAX_ROW_BYTES)) and not part.endswith(end):
        skipped += len(part)
        if skipped > MAX_SKIPPED_BYTES:
            return False
    return True


def _line_records(file: Path) -> Iterator[tuple[str, Record]]:
    for name, line in _byte_lines(file):
        if isinstance(line, str):
            yield name, line
            continue
        try:
            yield name, _object(name, json.loads(line))
        except RecursionError:
            yield name, f"{name} is not JSON: it is nested too deeply"
        except ValueError as error:
            yield name, f"{name} is not JSON: {error}"


def _path_records(file: Path) -> Iterator[tuple[str, Record]]:
    for name, line in _byte_lines(file):
        if isinstance(line, str):
            yield name, line
        else:  # a file name that is not UTF-8 must still open its file
            yield name, {PATH_COLUMN: line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")}


def _byte_lines(file: Path) -> Iterator[tuple[str, bytes | str]]:
    """The lines that are not blank, each with its name; a message instead of one that is too long."""
    with open_text(file) as lines:
        number = 0
        while line := lines.readline(MAX_ROW_BYTES):
            number += 1
            name = f"{file.name}:{number}"
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                if not _skip_line(lines, b"\n"):
                    yield name, f"{name} {_ENDLESS}"
                    return
                yield name, f"{name} is longer than {MAX_ROW_BYTES:,} bytes"
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield name, line


class _TooLong(csv.Error):
    """A row has more characters than are read of one."""


class _Endless(_TooLong):
    """A row has no end that could be looked for."""


class _RowLines:
    """The lines of a CSV file, as many as one row may take.

    The csv module limits one value, but neither a line, nor the number of values, nor the lines of a row.
    """

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self._again = io.StringIO(newline="")
        """Lines that are given once more, before others are read."""
        self._error: csv.Error | None = None
        """Why the next line cannot be given."""
        self._is_at_end = False
        """Whether more lines were asked for than there are."""
        self._left = MAX_CSV_ROW_CHARACTERS
        self._first, self._row = "", io.StringIO(newline="")
        """The first line of this row; of a row of several, the text of all: a list would take 50 times as much."""
        self._count = 0
        self.number = 0
        """Of the last line that was given."""

    def __iter__(self) -> _RowLines:
        return self

    def __next__(self) -> str:
        if self._error is not None:
            self.number += 1
            error, self._error = self._error, None
            raise error
        line = self._again.readline() or self._read()
        self.number += 1
        self._left = max(self._left - len(line), 1)
        if not self._count:
            self._first = line
        elif self._count == 1:
            self._row = io.StringIO(newline="")
            self._row.write(self._first + line)
        else:
            self._row.write(line)
        self._count += 1
        return line

    def begin(self) -> None:
        """Begin a row: the lines before are done."""
        self._left = MAX_CSV_ROW_CHARACTERS
        self._count = 0
        self._is_at_end = False

    def peek(self) -> str:
        """The next line, which is given once more; empty where none can be."""
        self.begin()
        try:
            line = next(self)
        except StopIteration:
            return ""
        except csv.Error as error:
            self._error, line = error, ""
            self.number -= 1
        else:
            self._again = io.StringIO(line, newline="")
            self.number -= 1
        return line

    def give_again(self) -> None:
        """Give the lines of this row once more, but for the first."""
        if self._count == 1:
            return
        rest = self._row.getvalue()[len(self._first) :]
        at = self._again.tell() - len(rest)
        if self._again.read(1):  # all of them were given again before
            self._again.seek(at)
        else:
            self._again = io.StringIO(rest, newline="")
        self.number -= self._count - 1

    def has_long_value(self, error: csv.Error) -> bool:
        """Whether the csv module gave up a value of several lines, since it is longer than any value may be."""
        return self._count > 1 and not isinstance(error, _TooLong)

    def has_open_quote(self, delimiter: str) -> bool:
        """Whether a quotation mark of this row is not closed: to the file's end, or so that others are in its row."""
        if self._count == 1 or self._is_at_end:
            return self._is_at_end
        self._row.seek(0)
        try:
            next(csv.reader(self._row, delimiter=delimiter, strict=True))
        except csv.Error:
            return True
        return False

    def _read(self) -> str:
        line = self._lines.readline(self._left)
        if not line:
            self._is_at_end = True
            raise StopIteration
        if len(line) < self._left or line.endswith(("\n", "\r")):
            return line
        self.number += 1
        if not _skip_line(self._lines, ("\n", "\r")):
            raise _Endless(_ENDLESS)
        raise _TooLong(f"it is longer than {MAX_CSV_ROW_CHARACTERS:,} characters (is a quotation mark not closed?)")


def _csv_records(file: Path, delimiter: str) -> Iterator[tuple[str, Record]]:
    csv.field_size_limit(MAX_ROW_BYTES)  # the default, 131,072, is less than an image in base64
    # a file name that is not UTF-8 must still open its file
    with io.TextIOWrapper(open_text(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = _RowLines(lines)
        delimiter = _delimiter_of(rows) if delimiter == "," else delimiter
        reader = csv.reader(rows, delimiter=delimiter)
        header: list[str] | None = None
        is_first = True
        while True:
            name = f"{file.name}:{rows.number + 1}"
            rows.begin()
            try:
                values = next(reader)
            except StopIteration:
                return
            except _Endless as error:
                yield name, f"{name} {error}"
                return
            except csv.Error as error:
                if not rows.has_long_value(error):
                    yield name, f"{name} is not CSV: {error}"
                    continue
                values = [""]  # the quotation mark is told of below
            if not values:
                continue
            if rows.has_open_quote(delimiter):
                if header is None:
                    raise ConfigError(f"{name} is no row of column names: a quotation mark in it is not closed")
                rows.give_again()
                yield name, f"{name} is not CSV: a quotation mark in it is not closed (inside a value, it stands twice)"
            elif header is None:
                if len(values) > MAX_COLUMNS:
                    raise ConfigError(f"{name} names {len(values):,} columns; the limit is {MAX_COLUMNS:,}")
                header = _each_once(values)
            elif any(values[len(header) :]):  # an unquoted delimiter has shifted the columns
                counts = f"{len(values)} values for {len(header)} columns"
                yield name, f"{name} has {counts}. Put quotes around a value that holds {delimiter!r}"
            else:
                # the first row names all columns, those without a value too
                record = cast(dict[str, Any], dict.fromkeys(header) if is_first else {})
                is_first = False
                yield name, record | dict(zip(header, values, strict=False))


def _each_once(names: list[str]) -> list[str]:
    """The names of columns; of those that come twice the second gets a number, `image.1`, as in pandas."""
    taken, each = set[str](), list[str]()
    counts: Counter[str] = Counter()
    for name in names:
        new = name
        while name and new in taken:
            counts[name] += 1
            new = f"{name}.{counts[name]}"
        taken.add(new)
        each.append(new)
    return each


def _delimiter_of(rows: _RowLines) -> str:
    """What stands between the values: what the first line says, or what there is in it instead of a comma."""
    line = rows.peek()
    if match := _SEPARATOR.fullmatch(line):
        next(rows)
        return match[1]
    names = re.sub(r'"[^"]*"', "", line)
    return "," if "," in names else next((mark for mark in (";", "\t") if mark in names), ",")


def _array_records(file: Path) -> Iterator[tuple[str, Record]]:
    """Yield the elements of a JSON array one at a time: LLaVA's files have a gigabyte."""
    decoder = json.JSONDecoder()
    with io.TextIOWrapper(open_text(file), encoding="utf-8-sig", errors="surrogateescape") as blocks:
        text, position, number, has_more = "", 0, 1, True

        def skip(expected: str) -> bool:
            """Skip white space, then one of the expected characters; return whether there was one."""
            nonlocal text, position, has_more
            blanks = 0
            while True:
                blanks += (end := _BLANKS.match(text, position).end()) - position  # pyright: ignore[reportOptionalMemberAccess]
                position = end
                if blanks > MAX_ROW_BYTES:
                    raise ConfigError(f"{file} is no list: it has {MAX_ROW_BYTES:,} blanks after element {number - 1}")
                if position < len(text) or not has_more:
                    break
                text, position = blocks.read(_BLOCK), 0
                has_more = bool(text)
            if position < len(text) and text[position] in expected:
                position += 1
                return True
            return False

        if not skip("["):
            raise ConfigError(
                f"{file} is not a JSON array of objects; JSON lines are read from a .jsonl file. If its rows are a "
                f"list in an object, as COCO's images, take it out: jq .images {shlex.quote(file.name)} > rows.json"
            )
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
                except RecursionError as error:
                    raise ConfigError(f"{file} is not JSON at element {number}: it is nested too deeply") from error
                except ValueError as error:
                    if not has_more:
                        raise ConfigError(f"{file} is not JSON at element {number}: {error}") from error
                    if len(text) - position > MAX_ROW_BYTES:
                        raise ConfigError(
                            f"{file} is not JSON at element {number}, or it is longer than {MAX_ROW_BYTES:,} "
                            f"characters: {error}"
                        ) from error
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
