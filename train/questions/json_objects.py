"""Find the rows in a .json file that is no array: in one of its lists, by their ids, by columns, or line by line.

{"data": [row, …], "version": …}  {"annotations": […]}       TextVQA, VQAv2, COCO's
{"17": row, "18": row}                                       GQA, ScienceQA, MathVista: the names are ids
{"columns": […], "data": [[…], …]}  {"image": {"0": …}, …}   pandas' to_json, orient split and columns
row ⏎ row                                                   JSON lines of another name, as POPE's
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ...pipeline.errors import ConfigError
from ...pipeline.files import limits
from ...pipeline.files.tables import text as lists
from ...pipeline.files.tables.text import Record
from ...pipeline.files.tables.text_streams import open_text
from ...pipeline.messages import name_some
from .columns import FIELDS, plain_name


def is_object(path: Path) -> bool:
    """Whether a .json file begins with an object.

    Raises:
        OSError: it cannot be read.
    """
    with open_text(path) as file:
        start = file.read(limits.MAX_COLUMNS).removeprefix("\ufeff".encode()).lstrip()
    return start.startswith(b"{")


def read_object(path: Path) -> Iterator[tuple[str, Record]]:
    """The rows of such a file, each with its place.

    Raises:
        ConfigError: none of the forms above, or more than can be read at once. OSError: it cannot be read.
    """
    if _has_lines(path):
        return lists.read_records(path, ".jsonl")
    with open_text(path) as file:
        text = file.read(limits.MAX_RESULT_BYTES + 1)
    if len(text) > limits.MAX_RESULT_BYTES:
        raise ConfigError(
            f"{path} is one JSON object of more than {limits.MAX_RESULT_BYTES:,} bytes, and it would be read at once: "
            "write its rows as JSON lines"
        )
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ConfigError(f"{path} is neither JSON nor JSON lines: {why}") from error
    return _rows(path, cast(dict[str, Any], value))


def _has_lines(path: Path) -> bool:
    """Whether the first line is an object by itself, and another follows."""
    with open_text(path) as file:
        first = file.readline(limits.MAX_ROW_BYTES)
        more = file.readline(limits.MAX_ROW_BYTES)
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict) and bool(more.strip())
    except (ValueError, RecursionError):
        return False


def _rows(path: Path, value: Mapping[str, Any]) -> Iterator[tuple[str, Record]]:
    names = {plain_name(name) for name in value}
    lists_in = {name: part for name, part in value.items() if _is_list(part, dict)}
    columns, data = value.get("columns"), value.get("data")
    if _is_list(columns, str) and _is_list(data, list):
        names_in, table = cast(list[str], columns), cast(list[list[Any]], data)
        rows: Any = [dict(zip(names_in, row, strict=False)) for row in table]
        return _named(path, enumerate(rows, start=1))
    if not names.isdisjoint(FIELDS["question"]) and not any(isinstance(part, dict) for part in value.values()):
        return _named(path, [(1, dict(value))])
    if not names.isdisjoint(FIELDS["question"]) and all(isinstance(part, dict) for part in value.values()):
        ids = dict.fromkeys(key for column in value.values() for key in column)
        return _named(path, ((key, {name: column.get(key) for name, column in value.items()}) for key in ids))
    if len(lists_in) == 1:
        [rows] = lists_in.values()
        return _named(path, enumerate(rows, start=1))
    if value and all(isinstance(part, dict) for part in value.values()):
        return _named(path, ((name, {"id": name, **part}) for name, part in value.items()))
    content = f"several lists: {name_some(list(lists_in))}" if lists_in else f"no rows, but {name_some(list(value))}"
    raise ConfigError(f"{path} is a JSON object of {content}. Write the questions as an array, or as JSON lines")


def _named(path: Path, rows: Any) -> Iterator[tuple[str, Record]]:
    return ((f"{path.name}:{name}", row) for name, row in rows)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, kind) for part in cast(list[Any], value))
