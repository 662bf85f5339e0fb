"""Lists of inputs (JSON lines, CSV, LLaVA's JSON array): the path and prompt of each row; opens no named file.

An invalid row becomes a row with a problem and does not end the list.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files import limits
from ...pipeline.files.guarded_tables import Other
from ...pipeline.files.text_tables import read_records
from ...pipeline.messages import name_some

COLUMNS = ("image", "video", "path", "file", "file_name")
"""Columns that are tried for the input's path, in this order, after the one named as the kind's input."""
MAX_PATH = 4096
"""The longest path that Linux opens."""
MAX_PROMPT = 8000
"""Characters; world models read 512 tokens."""
_CONVERSATIONS = "conversations"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its path and prompt, or what is wrong with it."""

    name: str
    """Its place for people, such as `data.jsonl:17`."""
    path: str = ""
    prompt: str | None = None
    problem: ImageError | None = None


UNNAMED = Row("", problem=ImageError(FailureReason.ROW, "one of many"))
"""Stands for each wrong row after the first `MAX_BAD_ROWS`, which are counted and not named."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The rows of a list, and the number of LLaVA conversations without an image."""

    rows: tuple[Row, ...]
    without: int = 0


def candidates(takes: str) -> tuple[str, ...]:
    """Names of columns to try, for a kind's noun of one input."""
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
    rows: list[Any] = []  # first records, then what they say, in the same memory
    bad = 0
    try:
        for name, record in read_records(file):
            if isinstance(record, dict):
                if len(columns) < limits.MAX_COLUMNS:
                    columns.update(dict.fromkeys(record))
                kept: dict[str, Any] = {}
                for key in keep & record.keys():  # the rest may be gigabytes
                    value = record[key]
                    columns[key] = None
                    if key == _CONVERSATIONS and key not in (column, prompt_field):
                        value = True
                    kept[key] = value if isinstance(value, str | None) else Other(_not_text(value))
                rows.append((name, kept))
            elif bad < limits.MAX_BAD_ROWS:
                bad += 1
                rows.append(Row(name, problem=ImageError(FailureReason.ROW, record)))
            else:
                rows.append(UNNAMED)
            if len(rows) > limits.MAX_ROWS:
                raise ConfigError(f"{file} has more than {limits.MAX_ROWS:,} rows. Split it into several lists")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    chosen = choose_column(file, columns, takes, column)
    if prompt_field is not None:
        check_prompt_field(file, columns, prompt_field)
    without = written = 0
    for row in rows:
        if isinstance(row, tuple):
            name, kept = row
            if suffix == ".json" and column is None and chosen not in kept and _CONVERSATIONS in kept:
                without += 1
                continue
            row = row_of(name, kept, chosen, prompt_field)
            if row.problem is not None:
                bad += 1
                row = row if bad <= limits.MAX_BAD_ROWS else UNNAMED
        rows[written] = row
        written += 1
    del rows[written:]
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
        path = path_of(name, record, column)
        return Row(name, path, None if prompt_field is None else prompt_of(name, record, prompt_field))
    except ImageError as error:
        return Row(name, problem=error.with_traceback(None))  # which holds the whole record


def path_of(name: str, record: dict[str, Any], column: str) -> str:
    """The path of a record, which a file system can be asked for.

    Raises:
        ImageError: it has none, or none that could be a file's.
    """
    path = _text(name, record, column)
    if len(path) > MAX_PATH:
        raise ImageError(FailureReason.ROW, f"{name}: {column} is {len(path):,} characters long, which is no path")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:  # half a character, which JSON can say
        raise ImageError(FailureReason.ROW, f"{name}: {column} is not Unicode text ({error.reason})") from error
    return path


def prompt_of(name: str, record: dict[str, Any], prompt_field: str) -> str:
    """The prompt of a record.

    Raises:
        ImageError: it has none, or none that is text.
    """
    text = _text(name, record, prompt_field)
    if len(text) > MAX_PROMPT:
        raise ImageError(
            FailureReason.ROW, f"{name}: {prompt_field} has {len(text):,} characters; the limit is {MAX_PROMPT:,}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ImageError(FailureReason.ROW, f"{name}: {prompt_field} is not Unicode text ({error.reason})") from error
    return text


def _text(name: str, record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None:
        raise ImageError(FailureReason.ROW, f"{name} has no {column}")
    if isinstance(value, Other):
        raise ImageError(FailureReason.ROW, f"{name}: {column} {value.text}")
    if not value.strip() or "\0" in value:
        raise ImageError(FailureReason.ROW, f"{name}: {column} is empty or holds a NUL character")
    return value


def _not_text(value: object) -> str:
    start = itertools.islice(json.JSONEncoder().iterencode(value), 80)  # the whole may have megabytes
    return f"must be a text, got {''.join(start)[:80]}"


def _listed(columns: Iterable[str]) -> str:
    names = [name if len(name) <= 80 else f"{name[:80]}…" for name in columns]  # a stranger's may have megabytes
    return name_some(names, most=12) or "no columns at all"
