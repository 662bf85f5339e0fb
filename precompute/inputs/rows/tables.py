"""The rows of Parquet and Arrow files: each names input files or holds their bytes, one or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ....pipeline.errors import ConfigError, ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files.tables import guarded as guarded_tables
from ....pipeline.messages import name_some
from .fields import Fields
from .manifests import (
    COLUMNS,
    MAX_PATH,
    Row,
    about_addresses,
    candidates,
    check_fields,
    choose_column,
    column_in,
    path_of,
    prompt_of,
    rows_of,
    window_in,
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


def read_table(file: Path, takes: str, *, column: str | None, fields: Fields) -> Table:
    """The rows of a Parquet or Arrow file; of bytes, only whether they are there.

    Args:
        takes, column, fields: as for `read_manifest`; where no column has one of the names to try, the only one
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
    check_fields(file, list(columns), fields)
    prompt, start, end = (name and column_in(columns, name) for name in (fields.prompt, fields.start, fields.end))
    fields = Fields(prompt, start, end)
    holds_bytes = columns[chosen].kind == "bytes"
    return Table(chosen if holds_bytes else None, _rows(file, chosen, fields, holds_bytes=holds_bytes))


def _rows(file: Path, chosen: str, fields: Fields, *, holds_bytes: bool) -> Iterator[tuple[Row, bool]]:
    try:
        for number, (value, prompt, *times) in enumerate(
            guarded_tables.read_rows(file, chosen, fields.prompt, fields.times)
        ):
            name = f"{file.name}:{number}"
            record = {} if fields.prompt is None else {fields.prompt: prompt}
            if times:
                record.update(zip(fields.times, times, strict=True))
            if isinstance(value, tuple):
                is_present, path = value
                yield _row_of_bytes(number, name, path, chosen, fields, record, is_present=is_present), is_present
            elif holds_bytes and isinstance(value, list) and value:
                for at, (is_present, path) in enumerate(parts := cast(list[tuple[bool, str]], value)):
                    where = name if len(parts) == 1 else f"{name}[{at}]"
                    row = _row_of_bytes(number, where, path, chosen, fields, record, is_present=is_present)
                    yield (row if len(parts) == 1 else replace(row, element=at)), is_present
            else:
                record[chosen] = value
                for row in rows_of(number, name, record, chosen, fields):
                    yield row, False
    except guarded_tables.TableError as error:
        raise _no_table(file, error) from error


def _no_table(file: Path, error: guarded_tables.TableError) -> ImageError:
    return ImageError(FailureReason.TABLE, f"{file} cannot be read as a table: {error}")


def _row_of_bytes(
    number: int, name: str, path: str, chosen: str, fields: Fields, record: dict[str, Any], *, is_present: bool
) -> Row:
    try:
        if not is_present:
            path = path_of(name, {chosen: path or None}, chosen)
        elif len(path) > MAX_PATH:
            path = ""  # beside bytes a path is only a name; without it the row number names the input
        prompt = None if fields.prompt is None else prompt_of(name, record, fields.prompt)
        return Row(number, path.replace("\0", ""), prompt, window=window_in(name, record, fields))
    except ImageError as error:
        return Row(number, problem=error.with_traceback(None))


def _choose(file: Path, columns: dict[str, guarded_tables.Column], takes: str, column: str | None) -> str:
    fit = {name: columns_by_name.kind for name, columns_by_name in columns.items() if columns_by_name.kind}
    typed = name_some([f"{name[:80]}: {columns_by_name.type}" for name, columns_by_name in columns.items()], most=12)
    if column is not None:
        if (chosen := choose_column(file, columns, takes, column)) in fit:
            return chosen
        raise ConfigError(
            f"{file}: the column {chosen} holds neither names nor bytes, alone or in lists; the columns are {typed}"
        )
    names = candidates(takes)
    usual, blobs = names[: len(COLUMNS)], [name for name, kind in fit.items() if kind == "bytes"]
    columns_by_name = (column_in(fit, name) for name in (usual if len(blobs) == 1 else names))
    chosen = next((name for name in columns_by_name if name is not None), blobs[0] if len(blobs) == 1 else None)
    if chosen is None:
        raise ConfigError(
            f"{file} has no column {' or '.join(usual)}, or of a name like these, that holds names or bytes, alone or "
            f"in lists. It has {typed or 'no columns at all'}. Say with --column which one names or holds the {takes}s"
            f"{about_addresses(columns)}"
        )
    return chosen
