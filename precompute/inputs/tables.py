"""The rows of Parquet and Arrow files: each names input files or holds their bytes, one or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files import guarded_tables
from ...pipeline.messages import name_some
from .manifests import (
    COLUMNS,
    MAX_PATH,
    Row,
    about_addresses,
    candidates,
    check_prompt_field,
    choose_column,
    column_in,
    path_of,
    prompt_of,
    rows_of,
)


@dataclass(frozen=True, slots=True)
class Table:
    """One file, whose rows each name files, or each hold their bytes."""

    column: str | None
    """Which column holds bytes; None where rows name files."""
    rows: Iterator[tuple[Row, bool]]
    """Each row, one of each input in it, and whether it holds bytes. Its path is the name in the row, empty where
    bytes came without one.

    Raises:
        ImageError: the file is no table, or only at its start.
    """


def read_table(file: Path, takes: str, *, column: str | None, prompt_field: str | None) -> Table:
    """The rows of a Parquet or Arrow file; of bytes, only whether they are there.

    Args:
        takes, column, prompt_field: as for `read_manifest`; where no column has one of the names to try, the only one
            that holds bytes is taken.
    Raises:
        ConfigError: pyarrow is missing, or no column fits.
        ImageError: the file is no table.
    """
    try:
        columns = guarded_tables.read_schema(file).columns
    except guarded_tables.TableError as error:
        raise _no_table(file, error) from error
    chosen = _choose(file, columns, takes, column)
    if prompt_field is not None:
        check_prompt_field(file, list(columns), prompt_field)
        prompt_field = column_in(columns, prompt_field)
    holds_bytes = columns[chosen].kind == "bytes"
    return Table(chosen if holds_bytes else None, _rows(file, chosen, prompt_field, holds_bytes=holds_bytes))


def _rows(file: Path, chosen: str, prompt_field: str | None, *, holds_bytes: bool) -> Iterator[tuple[Row, bool]]:
    try:
        for number, (value, prompt) in enumerate(guarded_tables.read_rows(file, chosen, prompt_field)):
            name = f"{file.name}:{number}"
            record = {} if prompt_field is None else {prompt_field: prompt}
            if holds_bytes and _are_cells(value):
                yield from _rows_of_bytes(number, name, value, chosen, prompt_field, prompt)
            else:
                rows = rows_of(number, name, record | {chosen: value}, chosen, prompt_field)
                yield from ((row, False) for row in rows)
    except guarded_tables.TableError as error:
        raise _no_table(file, error) from error


def _are_cells(value: Any) -> bool:
    """Whether a row's value is `[True, "a.png"]`, or a list of some of these; else it is missing, or too long."""
    return isinstance(value, list) and bool(cast(list[Any], value))


def _rows_of_bytes(
    number: int, name: str, value: list[Any], chosen: str, prompt_field: str | None, prompt: object
) -> Iterator[tuple[Row, bool]]:
    is_one = isinstance(value[0], bool)
    for at, (is_present, path) in enumerate([value] if is_one else value):
        element = None if is_one or len(value) == 1 else at
        where = name if element is None else f"{name}[{at}]"
        row = _row_of_bytes(number, where, path, chosen, prompt_field, prompt, is_present=is_present)
        yield (row if element is None else replace(row, element=element)), is_present


def _no_table(file: Path, error: guarded_tables.TableError) -> ImageError:
    return ImageError(FailureReason.TABLE, f"{file} cannot be read as a table: {error}")


def _row_of_bytes(
    number: int, name: str, path: str, chosen: str, prompt_field: str | None, prompt: object, *, is_present: bool
) -> Row:
    try:
        if not is_present:
            path = path_of(name, {chosen: path or None}, chosen)
        elif len(path) > MAX_PATH:
            path = ""  # beside bytes a path is only a name; without it the row number names the input
        text = None if prompt_field is None else prompt_of(name, {prompt_field: prompt}, prompt_field)
        return Row(number, path.replace("\0", ""), text)
    except ImageError as error:
        return Row(number, problem=error.with_traceback(None))


def _choose(file: Path, columns: dict[str, guarded_tables.Column], takes: str, column: str | None) -> str:
    fit = {name: found.kind for name, found in columns.items() if found.kind}
    typed = name_some([f"{name[:80]}: {found.type}" for name, found in columns.items()], most=12)
    if column is not None:
        if (chosen := choose_column(file, columns, takes, column)) in fit:
            return chosen
        raise ConfigError(
            f"{file}: the column {chosen} holds neither names nor bytes, alone or in lists; the columns are {typed}"
        )
    names = candidates(takes)
    usual, blobs = names[: len(COLUMNS)], [name for name, kind in fit.items() if kind == "bytes"]
    found = (column_in(fit, name) for name in (usual if len(blobs) == 1 else names))
    chosen = next((name for name in found if name is not None), blobs[0] if len(blobs) == 1 else None)
    if chosen is None:
        raise ConfigError(
            f"{file} has no column {' or '.join(usual)}, or of a name like these, that holds names or bytes, alone or "
            f"in lists. It has {typed or 'no columns at all'}. Say with --column which one names or holds the {takes}s"
            f"{about_addresses(columns)}"
        )
    return chosen
