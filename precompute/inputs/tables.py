"""The rows of Parquet and Arrow files: each names an input file or holds its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.arrow_tables import arrow_batches, is_arrow, load_pyarrow, read_schema
from .manifests import MAX_PATH, Row, candidates, check_prompt_field, choose_column, path_of, prompt_of, row_of

_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file. Either each names a file, or each holds its bytes."""

    rows: tuple[Row, ...]
    """`path` is the name in the row, empty where bytes came without one."""
    column: str | None
    """Which column holds bytes; None where rows name files."""
    has_bytes: tuple[bool, ...]
    """By row."""


def read_table(file: Path, takes: str, *, column: str | None, prompt_field: str | None) -> Table:
    """The rows of a Parquet or Arrow file; of bytes, only whether they are there.

    Args:
        takes, column, prompt_field: as for `read_manifest`; where no column has one of the names to try, the only one
            that holds bytes is taken.
    Raises:
        ConfigError: pyarrow is missing, or no column fits.
        ImageError: the file is no table.
    """
    pa = load_pyarrow()
    try:
        schema = read_schema(file)
        fields = {field.name: field.type for field in schema}
        chosen = _choose(pa, file, fields, takes, column)
        if prompt_field is not None:
            check_prompt_field(file, list(fields), prompt_field)
        holds_bytes = _bytes_of(pa, fields[chosen]) is not None
        rows: list[Row] = []
        has_bytes: list[bool] = []
        for name, value, prompt in _cells(pa, file, fields, chosen, prompt_field):
            record = {chosen: value, **({} if prompt_field is None else {prompt_field: prompt})}
            if not holds_bytes:
                rows.append(row_of(name, record, chosen, prompt_field))
                has_bytes.append(False)
                continue
            is_present, path = value
            try:
                if not is_present:
                    path = path_of(name, {chosen: path or None}, chosen)
                elif len(path) > MAX_PATH:
                    path = ""  # beside bytes a path is only a name; without it the row number names the input
                prompt = None if prompt_field is None else prompt_of(name, record, prompt_field)
                rows.append(Row(name, path.replace("\0", ""), prompt))
            except ImageError as error:
                rows.append(Row(name, problem=error))
            has_bytes.append(is_present)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ImageError(FailureReason.TABLE, f"{file} cannot be read as a table: {str(error)[:300]}") from error
    return Table(tuple(rows), chosen if holds_bytes else None, tuple(has_bytes))


def _choose(pa: Any, file: Path, fields: dict[str, Any], takes: str, column: str | None) -> str:
    fit = {name for name, type_ in fields.items() if _is_text(pa, type_) or _bytes_of(pa, type_) is not None}
    blobs = [name for name, type_ in fields.items() if _bytes_of(pa, type_) is not None]
    if column is None and not fit.intersection(candidates(takes)) and len(blobs) == 1:
        return blobs[0]
    chosen = choose_column(file, list(fields if column else fit), takes, column)
    if chosen not in fit:
        raise ConfigError(f"{file}: the column {chosen} is of type {fields[chosen]}, and neither names nor bytes")
    return chosen


def _is_text(pa: Any, type_: Any) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _bytes_of(pa: Any, type_: Any) -> str | None:
    """Where in a type the bytes are: "" in itself, "bytes" in a field of it; None where it has none."""
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return ""
    if pa.types.is_struct(type_):
        names = {type_.field(number).name: type_.field(number).type for number in range(type_.num_fields)}
        if "bytes" in names and _bytes_of(pa, names["bytes"]) == "":
            return "bytes"
    return None


def _cells(
    pa: Any, file: Path, fields: dict[str, Any], chosen: str, prompt_field: str | None
) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and prompt of each row; of bytes, a pair: whether there are any, and the path beside them."""
    holds_bytes = _bytes_of(pa, fields[chosen]) is not None
    number = 0
    for batch in _batches(pa, file, fields, chosen, prompt_field):
        cells = batch.column(chosen)
        values = _paths(pa, cells) if holds_bytes else cells.to_pylist()
        prompts = batch.column(prompt_field).to_pylist() if prompt_field is not None else [None] * len(values)
        for value, prompt in zip(values, prompts, strict=True):
            yield f"{file.name}:{number}", value, prompt
            number += 1


def _paths(pa: Any, cells: Any) -> list[tuple[bool, str]]:
    is_valid = cells.is_valid()
    parts = {cells.type.field(at).name for at in range(cells.type.num_fields)} if pa.types.is_struct(cells.type) else ()
    if "bytes" in parts:
        is_valid = pa.compute.and_(is_valid, cells.field("bytes").is_valid())
    paths = cells.field("path").to_pylist() if "path" in parts else [None] * len(cells)
    pairs = zip(is_valid.to_pylist(), paths, strict=True)
    return [(has_bytes, path if isinstance(path, str) else "") for has_bytes, path in pairs]


def _batches(pa: Any, file: Path, fields: dict[str, Any], chosen: str, prompt_field: str | None) -> Iterator[Any]:
    columns = [chosen, *([prompt_field] if prompt_field not in (None, chosen) else [])]
    if is_arrow(file):
        yield from arrow_batches(file, columns)
        return
    has_path = pa.types.is_struct(fields[chosen]) and fields[chosen].get_field_index("path") >= 0
    with pa.parquet.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            # the bytes themselves need not be read to know that they are all there
            whole = has_path and _nulls(table.metadata.row_group(group), f"{chosen}.bytes") == 0
            wanted = [f"{chosen}.path", *columns[1:]] if whole else columns
            yield from table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=wanted)


def _nulls(group: Any, path: str) -> int | None:
    for number in range(group.num_columns):
        part = group.column(number)
        if part.path_in_schema == path:
            return part.statistics.null_count if part.is_stats_set and part.statistics.has_null_count else None
    return None


