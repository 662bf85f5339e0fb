"""Lists of inputs (JSON lines, CSV, LLaVA's JSON array): the paths and fields of each row; opens no named file.

"a.png"                               one input
["a.png", "b.png"]                    one input each; also as text, which CSV has
{"path": "a.png"}, {"src": …}         one input; also in lists, and in one another

An invalid row becomes a row with a problem and does not end the list.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ....pipeline.errors import ConfigError, ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files import limits
from ....pipeline.files.tables.columns import PATH_FIELDS
from ....pipeline.files.tables.guarded import Other
from ....pipeline.files.tables.text import form_of_name, read_records
from ....pipeline.messages import name_some
from ...media.video_times import Window
from .fields import Fields, window_of
from .spellings import hint_of_text

COLUMNS = ("image", "video", "path", "file", "file_name")
"""Columns that are tried for the input's path, in this order, after the one named as the kind's input."""
_MORE_COLUMNS = (
    *("images", "videos", "image_path", "video_path", "file_path", "image_file", "video_file"),
    *("image_name", "video_name", "img", "img_path", "imgs"),
)
"""Columns that are tried after those: what LLaMA-Factory, ShareGPT, pandas users and others call them."""
_ADDRESSES = frozenset({"url", "urls", "imageurl", "videourl", "contenturl", "link", "uri"})
"""What columns of addresses are called: img2dataset, WebVid, LAION."""
MAX_PATH = 4096
"""The longest path that Linux opens."""
MAX_PROMPT = 8000
"""Characters; world models read 512 tokens."""
_CONVERSATIONS = ("conversations", "messages")
_MAX_NAME = 80
"""Letters of a column's name that are compared or shown; a stranger's may have megabytes."""
_DEPTH = 4
"""Objects in objects that are looked into for a path."""
_PYTHON_LIST = re.compile(r"\['[^'\\]*'(?:, '[^'\\]*')*\]")
"""How pandas writes a list of texts into CSV."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its path and prompt, or what is wrong with it."""

    number: int
    """The line of a list, the row of a table from 0."""
    path: str = ""
    prompt: str | None = None
    problem: ImageError | None = None
    element: int | None = None
    """Of a row with several inputs, which one this is, from 0."""
    window: Window | None = None
    """Where in a video it is read."""


AGAIN = Row(-1)
"""The rows so far count no more: the file is read again, since a later row has a column that comes first."""
WITHOUT = Row(-2)
"""A LLaVA conversation without an image."""


def candidates(takes: str) -> tuple[str, ...]:
    """Names of columns to try, for a kind's noun of one input."""
    more = sorted(_MORE_COLUMNS, key=lambda name: not name.startswith(takes))
    return tuple(dict.fromkeys((takes, *COLUMNS, *more)))


def column_in(names: Iterable[str], wanted: str) -> str | None:
    """The column of this name: exactly so, or else apart from capitals, blanks, `_` and `-`."""
    if isinstance(names, Collection) and wanted in names:
        return wanted
    plain = _plain_name(wanted)
    return next((name for name in names if _plain_name(name) == plain), None)


def _plain_name(name: str) -> str:
    return _plain_letters(name) if len(name) <= _MAX_NAME else name


@lru_cache(maxsize=1024)
def _plain_letters(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def read_manifest(file: Path, takes: str, *, column: str | None, fields: Fields) -> Iterator[Row]:
    """The rows of a list one by one, in its order; none is kept. Among them are `AGAIN` and `WITHOUT`.

    Args:
        takes: what one input is, image or video.
        column: which one names the input; None takes the first of `candidates` that any row has.
        fields: which others are read.
    Raises:
        ConfigError: the file cannot be read, holds no row, is no JSON array (LLaVA), or no row has the column.
    """
    wanted = candidates(takes) if column is None else (column,)
    columns: dict[str, None] = {}
    best = len(wanted)
    """Place in `wanted` of the first one that any row has so far."""
    names: tuple[str, ...] = ()
    is_llava = form_of_name(file.name) == ".json"
    is_first = True
    problem = ""
    """Of the first row that is none."""
    flags = fields.flags()
    try:
        while True:
            for name, record in read_records(file):
                number = int(name[len(file.name) + 1 :])
                if not isinstance(record, dict):
                    problem = problem or record
                    yield Row(number, problem=ImageError(FailureReason.ROW, record))
                    continue
                if len(columns) < limits.MAX_COLUMNS:
                    columns.update(dict.fromkeys(record))
                if best and (these := tuple(record)) != names:  # most rows have the names of the one before
                    names = these
                    if (rank := _best(names, wanted, best)) < best:
                        best = rank
                        columns[column_in(names, wanted[best]) or wanted[best]] = None
                        if not is_first:
                            break  # at most as often as there are names to try
                is_first = False
                for wanted_field in flags.values():
                    if (matching := column_in(record, wanted_field)) is not None:
                        columns[matching] = None
                if best == len(wanted):
                    continue
                chosen = wanted[best] if wanted[best] in record else column_in(record, wanted[best]) or wanted[best]
                is_none = record[chosen] == [] if chosen in record else is_llava
                if is_none and any(key in record for key in _CONVERSATIONS):
                    yield WITHOUT
                else:
                    yield from rows_of(number, name, record, chosen, fields)
            else:
                break
            yield AGAIN
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    if problem and not columns:
        raise ConfigError(f"{file} holds no row that can be read. The first: {problem}")
    choose_column(file, columns, takes, column)
    check_fields(file, columns, fields)


def _best(names: tuple[str, ...], wanted: tuple[str, ...], best: int) -> int:
    plain = set(map(_plain_name, names))
    return next((at for at in range(best) if wanted[at] in names or _plain_name(wanted[at]) in plain), best)


def choose_column(file: Path, columns: Collection[str], takes: str, column: str | None) -> str:
    """The column that names the inputs.

    Raises:
        ConfigError: there is none; lists those there are.
    """
    wanted = (column,) if column is not None else candidates(takes)
    for name in wanted:
        if (matching := column_in(columns, name)) is not None:
            return matching
    tried = " or ".join(wanted[: len(COLUMNS)]) + (", or of a name like these," if column is None else "")
    raise ConfigError(
        f"{file} has no column {tried} in any row; it has {_listed(columns)}. "
        f"Say with --column which one names the {takes}s{about_addresses(columns)}"
    )


def about_addresses(columns: Iterable[str]) -> str:
    """What to do where only addresses of the files are there; empty where there are none."""
    addresses = [name for name in columns if _plain_name(name) in _ADDRESSES]
    if not addresses:
        return ""
    return (
        f". The column {addresses[0]} holds addresses, and nothing is downloaded: fetch the files first "
        "(img2dataset does) and name the folder, list or tars that this makes"
    )


def check_fields(file: Path, columns: Collection[str], fields: Fields) -> None:
    """Raise ConfigError where no row has one of them."""
    for flag, field in fields.flags().items():
        if column_in(columns, field) is None:
            holds = {"--prompt-field": "prompt", "--start-field": "start of its clip", "--end-field": "end of its clip"}
            raise ConfigError(
                f"{file} has no column {field} in any row; it has {_listed(columns)}. "
                f"Say with {flag} which one holds the {holds[flag]}"
            )


def rows_of(number: int, name: str, record: dict[str, Any], column: str, fields: Fields) -> Iterable[Row]:
    """The rows of a record: one, or of a list of several inputs one each.

    Args:
        name: of the row for people, `list.jsonl:17`.
    """
    value = _inputs_in(record.get(column))
    if isinstance(value, list):
        return _rows_of_list(number, name, record, column, fields, cast(list[Any], value))
    return (row_of(number, name, record, column, fields),)


def _rows_of_list(
    number: int, name: str, record: dict[str, Any], column: str, fields: Fields, parts: list[Any]
) -> Iterator[Row]:
    if not any(isinstance(part, str | dict | Other) for part in parts):
        why = _not_text(parts) if any(part is not None for part in parts) else "is an empty list"
        yield Row(number, problem=ImageError(FailureReason.ROW, f"{name}: {column} {why}"))
    elif len(parts) > limits.MAX_ROW_INPUTS:
        why = f"{name}: {column} has {len(parts):,} inputs; the limit for one row is {limits.MAX_ROW_INPUTS:,}"
        yield Row(number, problem=ImageError(FailureReason.ROW, why))
    else:
        alone = dict(record)
        for at, part in enumerate(parts):
            alone[column] = part
            if len(parts) == 1:
                yield row_of(number, name, alone, column, fields)
            else:
                yield replace(row_of(number, f"{name}[{at}]", alone, column, fields), element=at)


def row_of(number: int, name: str, record: dict[str, Any], column: str, fields: Fields) -> Row:
    """The row of a record with one input: its path, and its prompt where one is wanted.

    Args:
        name: of the row for people, `list.jsonl:17`.
    """
    try:
        path = path_of(name, record, column)
        prompt = None if fields.prompt is None else prompt_of(name, record, fields.prompt)
        return Row(number, path, prompt, window=window_in(name, record, fields))
    except ImageError as error:
        return Row(number, problem=error.with_traceback(None))  # which holds the whole record


def window_in(name: str, record: dict[str, Any], fields: Fields) -> Window | None:
    """Where in a video the input of a record is read; raises as `window_of`."""
    if not fields.times:
        return None
    start, end = (field and (column_in(record, field) or field) for field in (fields.start, fields.end))
    return window_of(name, record, start, end)


def _inputs_in(value: object) -> object:
    """A list that was written as text, as in CSV, as a list; another value as it is."""
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        if value[1:2] == '"':
            with suppress(ValueError, RecursionError):
                return json.loads(value)
        if _PYTHON_LIST.fullmatch(value):
            return value[2:-2].split("', '")
    return value


def _unwrapped(value: object) -> object:
    """The path in an object such as {"path": "a.png", "bytes": null}; another value as it is."""
    for _ in range(_DEPTH):
        if not isinstance(value, dict):
            break
        fields = cast(dict[str, object], value)
        names = (fields[field] for field in (*PATH_FIELDS, "image_url") if isinstance(fields.get(field), str | dict))
        value = next(names, None)
        if value is None:
            return fields
    return value


def path_of(name: str, record: dict[str, Any], column: str) -> str:
    """The path of a record, which a file system can be asked for.

    Raises:
        ImageError: it has none, or none that could be a file's.
    """
    path = _text(name, column, _unwrapped(record.get(column)))
    if len(path) > MAX_PATH:
        hint = hint_of_text(path[:MAX_PATH])
        why = f"{name}: {column} is {len(path):,} characters long, which is no path"
        raise ImageError(FailureReason.ROW, f"{why}; {hint}" if hint else why)
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
    text = _text(name, prompt_field, record.get(column_in(record, prompt_field) or prompt_field))
    if len(text) > MAX_PROMPT:
        raise ImageError(
            FailureReason.ROW, f"{name}: {prompt_field} has {len(text):,} characters; the limit is {MAX_PROMPT:,}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ImageError(FailureReason.ROW, f"{name}: {prompt_field} is not Unicode text ({error.reason})") from error
    return text


def _text(name: str, column: str, value: object) -> str:
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
    names = [name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…" for name in columns]
    return name_some(names, most=12) or "no columns at all"
