"""The rows of Parquet and Arrow files: each names an input file or holds its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files import guarded_tables
from .manifests import MAX_PATH, Row, candidates, check_prompt_field, choose_column, path_of, prompt_of, row_of


@dataclass(frozen=True, slots=True)
class Table:
    """One file, whose rows each name a file, or each hold its bytes."""

    column: str | None
    """Which column holds bytes; None where rows name files."""
    rows: Iterator[tuple[Row, bool]]
    """Each row, and whether it holds bytes. Its path is the name in the row, empty where bytes came without one.

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
    holds_bytes = columns[chosen].kind != "text"
    return Table(chosen if holds_bytes else None, _rows(file, chosen, prompt_field, holds_bytes=holds_bytes))


def _rows(file: Path, chosen: str, prompt_field: str | None, *, holds_bytes: bool) -> Iterator[tuple[Row, bool]]:
    try:
        for number, (value, prompt) in enumerate(guarded_tables.read_rows(file, chosen, prompt_field)):
            name = f"{file.name}:{number}"
            if holds_bytes:
                is_present, path = value
                yield _row_of_bytes(number, name, path, chosen, prompt_field, prompt, is_present=is_present), is_present
            else:
                yield row_of(number, name, {chosen: value} | _prompt(prompt_field, prompt), chosen, prompt_field), False
    except guarded_tables.TableError as error:
        raise _no_table(file, error) from error


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


def _prompt(prompt_field: str | None, prompt: object) -> dict[str, object]:
    return {} if prompt_field is None else {prompt_field: prompt}


def _choose(file: Path, columns: dict[str, guarded_tables.Column], takes: str, column: str | None) -> str:
    fit = {name for name, found in columns.items() if found.kind}
    blobs = [name for name, found in columns.items() if found.kind in ("bytes", "struct")]
    if column is None and not fit.intersection(candidates(takes)) and len(blobs) == 1:
        return blobs[0]
    chosen = choose_column(file, list(columns if column else fit), takes, column)
    if chosen not in fit:
        raise ConfigError(f"{file}: the column {chosen} is of type {columns[chosen].type}, and neither names nor bytes")
    return chosen
