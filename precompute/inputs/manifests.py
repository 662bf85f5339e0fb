"""Lists of inputs (JSON lines, CSV, LLaVA's JSON array): the path and prompt of each row; opens no named file.

An invalid row becomes a row with a problem and does not end the list.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator
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

    number: int
    """The line of a list, the row of a table from 0."""
    path: str = ""
    prompt: str | None = None
    problem: ImageError | None = None


AGAIN = Row(-1)
"""The rows so far count no more: the file is read again, since a later row has a column that comes first."""
WITHOUT = Row(-2)
"""A LLaVA conversation without an image."""


def candidates(takes: str) -> tuple[str, ...]:
    """Names of columns to try, for a kind's noun of one input."""
    return tuple(dict.fromkeys((takes, *COLUMNS)))


def read_manifest(file: Path, takes: str, *, column: str | None, prompt_field: str | None) -> Iterator[Row]:
    """The rows of a list one by one, in its order; none is kept. Among them are `AGAIN` and `WITHOUT`.

    Args:
        takes: what one input is, image or video.
        column: which one names the input; None takes the first of `candidates` that any row has.
        prompt_field: which one holds the input's prompt; None reads none.
    Raises:
        ConfigError: the file cannot be read, holds no row, is no JSON array (LLaVA), or no row has the column.
    """
    wanted = candidates(takes) if column is None else (column,)
    columns: dict[str, None] = {}
    best = len(wanted)
    """Place in `wanted` of the first one that any row has so far."""
    is_llava = column is None and file.suffix.lower() == ".json"
    is_first = True
    try:
        while True:
            for name, record in read_records(file):
                number = int(name[len(file.name) + 1 :])
                if not isinstance(record, dict):
                    yield Row(number, problem=ImageError(FailureReason.ROW, record))
                    continue
                if len(columns) < limits.MAX_COLUMNS:
                    columns.update(dict.fromkeys(record))
                if best and (here := next((at for at in range(best) if wanted[at] in record), best)) < best:
                    best = here
                    columns[wanted[best]] = None
                    if not is_first:
                        break  # at most as often as there are names to try
                is_first = False
                if prompt_field is not None and prompt_field in record:
                    columns[prompt_field] = None
                if best == len(wanted):
                    continue
                if is_llava and wanted[best] not in record and _CONVERSATIONS in record:
                    yield WITHOUT
                    continue
                yield row_of(number, name, record, wanted[best], prompt_field)
            else:
                break
            yield AGAIN
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    choose_column(file, columns, takes, column)
    if prompt_field is not None:
        check_prompt_field(file, columns, prompt_field)


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


def row_of(number: int, name: str, record: dict[str, Any], column: str, prompt_field: str | None) -> Row:
    """The row of a record: its path, and its prompt where one is wanted.

    Args:
        name: of the row for people, `list.jsonl:17`.
    """
    try:
        path = path_of(name, record, column)
        return Row(number, path, None if prompt_field is None else prompt_of(name, record, prompt_field))
    except ImageError as error:
        return Row(number, problem=error.with_traceback(None))  # which holds the whole record


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
    if not isinstance(value, str):
        text = value.text if isinstance(value, Other) else _not_text(value)
        raise ImageError(FailureReason.ROW, f"{name}: {column} {text}")
    if not value.strip() or "\0" in value:
        raise ImageError(FailureReason.ROW, f"{name}: {column} is empty or holds a NUL character")
    return value


def _not_text(value: object) -> str:
    start = itertools.islice(json.JSONEncoder().iterencode(value), 80)  # the whole may have megabytes
    return f"must be a text, got {''.join(start)[:80]}"


def _listed(columns: Iterable[str]) -> str:
    names = [name if len(name) <= 80 else f"{name[:80]}…" for name in columns]  # a stranger's may have megabytes
    return name_some(names, most=12) or "no columns at all"
