"""What a column of a Parquet or Arrow file can hold, and its values: names of files, or bytes, alone or in lists.

string, binary, large and view types, dictionaries of them        one name, or one input's bytes
struct<bytes, path> (`Image` of datasets), struct<path>, nested   the same, in fields
list, large_list, fixed_size_list, list_view of these             several a row

Runs in the process of tables (process.py) alone: `pa` is pyarrow there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, cast

from .. import limits

OTHER = "\0other"
"""Key of an object in an answer that stands for a value that is nothing of JSON, or says what is wrong with one."""
PATH_FIELDS = ("path", "src", "image", "video", "file", "file_name", "filename", "image_path", "url")
"""Fields of an object that name a file, in the order in which they are tried."""
_BESIDE = ("path", "file_name", "filename")
"""Fields that name the bytes beside them."""
_DEPTH = 4
"""Structs in structs that are looked into."""
_TIMES, _TIME_CHARACTERS = 2, 200
"""Moments in one cell, and the letters of one."""
_TEXT_CHARACTERS = 2**16
"""Longer texts are neither paths nor prompts; only their length is passed on."""
_VALUES = 2**16
"""Values of lists in one answer, if a row has no more."""


class Shape(NamedTuple):
    """How the values of a column hold inputs."""

    kind: str
    """`text`, `bytes`, or empty for neither."""
    way: tuple[int, ...] = ()
    """Fields of structs, by number, that lead to the text or the bytes: two fields may have one name."""
    beside: tuple[int, ...] | None = None
    """Fields that lead to the path beside bytes."""
    is_list: bool = False


def shape_of(pa: Any, type_: Any) -> Shape:
    """How a type holds inputs."""
    type_ = _stored(pa, type_)
    if not _is_list(pa, type_):
        return _single(pa, type_, _DEPTH)
    shape = _single(pa, type_.value_type, _DEPTH)
    return shape._replace(is_list=bool(shape.kind))


def _single(pa: Any, type_: Any, depth: int) -> Shape:
    type_ = _stored(pa, type_)
    if _is_dictionary(pa, type_):
        type_ = type_.value_type
    if _is_text(pa, type_):
        return Shape("text")
    if _is_bytes(pa, type_):
        return Shape("bytes")
    if not pa.types.is_struct(type_) or not depth:
        return Shape("")
    fields = [type_.field(at) for at in range(min(type_.num_fields, limits.MAX_FIELDS))]
    shapes = [
        _single(pa, field.type, depth - 1 if pa.types.is_struct(_stored(pa, field.type)) else 0) for field in fields
    ]
    blobs = [at for at, shape in enumerate(shapes) if shape == Shape("bytes")]
    named = [at for at in blobs if fields[at].name == "bytes"]
    if len(named) == 1 or len(blobs) == 1:
        beside = _first(fields, shapes, _BESIDE, Shape("text"))
        return Shape("bytes", ((named or blobs)[0],), None if beside is None else (beside,))
    at = _first(fields, shapes, PATH_FIELDS, None)
    if at is None:
        return Shape("")
    inner = shapes[at]
    return Shape(inner.kind, (at, *inner.way), None if inner.beside is None else (at, *inner.beside))


def _first(fields: list[Any], shapes: list[Shape], names: tuple[str, ...], wanted: Shape | None) -> int | None:
    """The field of the first of these names that has a use."""
    for name in names:
        for at, field in enumerate(fields):
            if field.name == name and (shapes[at] == wanted if wanted else shapes[at].kind):
                return at
    return None


def type_text(field: Any) -> str:
    """The type of a column for people; of an extension type that is not known here, its name too."""
    metadata: dict[bytes, bytes] = field.metadata or {}
    name = metadata.get(b"ARROW:extension:name", b"")
    text = f"{name.decode(errors='replace')}({field.type})" if name else str(field.type)
    return text[:200]


def pieces(pa: Any, batch: Any, column: str) -> Iterator[Any]:
    """A batch in parts of so few values in its lists that one answer holds them, or of one row."""
    cells = _storage(pa, batch.column(column))
    if not _is_list(pa, cells.type):
        yield batch
        return
    start = held = 0
    for at, length in enumerate(pa.compute.list_value_length(cells).to_pylist()):
        if held + (length or 0) > _VALUES and at > start:
            yield batch.slice(start, at - start)
            start, held = at, 0
        held += length or 0
    if start < batch.num_rows:
        yield batch.slice(start)


def names_in(pa: Any, cells: Any, shape: Shape) -> list[Any]:
    """Of each row its text, None, or an object that says what is wrong with it; of a row of several a list of these."""
    return _in_rows(pa, cells, _names, shape) if shape.is_list else _names(pa, cells, shape)


def bytes_in(pa: Any, cells: Any, shape: Shape) -> tuple[list[Any], list[Any]]:
    """Of each row whether it has bytes, and the path beside them, empty for none; lists of these of a row of several.

    Where only paths were read, all bytes are there.
    """
    if not shape.is_list:
        return _are_there(pa, cells, shape), _paths_beside(pa, cells, shape)
    return _in_rows(pa, cells, _are_there, shape), _in_rows(pa, cells, _paths_beside, shape)


def _names(pa: Any, cells: Any, shape: Shape) -> list[Any]:
    return _texts_at(pa, cells, shape.way)


def _are_there(pa: Any, cells: Any, shape: Shape) -> list[bool]:
    return [True] * len(cells) if shape_of(pa, cells.type).kind == "text" else _is_valid(pa, cells, shape.way)


def _paths_beside(pa: Any, cells: Any, shape: Shape) -> list[str]:
    read = shape_of(pa, cells.type)
    way = read.way if read.kind == "text" else shape.beside
    paths = _texts_at(pa, cells, way) if way is not None else [None] * len(cells)
    return [path if isinstance(path, str) else "" for path in paths]


def texts(cells: Any) -> list[Any]:
    """Each value as it is where it is a text or missing; else an object that says what is wrong with it."""
    return [
        value if value is None or (isinstance(value, str) and len(value) <= _TEXT_CHARACTERS) else _wrong(value)
        for value in cells.to_pylist()
    ]


def times_in(cells: Any) -> list[Any]:
    """Each value as it is where it is a number, a text, missing or a pair of these; else what is wrong with it."""
    return [_time(value) for value in cells.to_pylist()]


def _time(value: Any) -> Any:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, list) and len(parts := cast(list[Any], value)) <= _TIMES:
        return [_time(part) for part in parts]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    is_usual = isinstance(value, int | float) and abs(value) < 2**63
    is_short = isinstance(value, str) and len(value) <= _TIME_CHARACTERS
    return cast(Any, value) if value is None or is_usual or is_short else _wrong(value)


def content_of(pa: Any, value: Any, shape: Shape, element: int) -> Any:
    """The buffer of bytes in one cell; None where there are none.

    Raises:
        IndexError: the row has no such element.
    """
    value = _plain_scalar(pa, value)
    if shape.is_list:
        values = value.values if value.is_valid else ()
        if element >= len(values):
            raise IndexError(f"the row has {len(values):,} of them")
        value = values[element]
    for at in shape.way:
        value = _plain_scalar(pa, value)
        if not value.is_valid:
            return None
        value = value[at]
    value = _plain_scalar(pa, value)
    return value.as_buffer() if shape.kind == "bytes" and value.is_valid else None


def expanded_bytes(pa: Any, cells: Any) -> int:
    """The bytes of some cells, values that are kept once and stand in many rows counted as often."""
    cells = _storage(pa, cells)
    if _is_dictionary(pa, cells.type):
        values = cells.dictionary
        if _is_view(pa, values.type):
            values = values.cast(pa.large_binary() if _is_bytes(pa, values.type) else pa.large_string())
        elif not (_is_text(pa, values.type) or _is_bytes(pa, values.type)):
            return cells.nbytes
        lengths = pa.compute.binary_length(values).take(cells.indices)
        return cells.indices.nbytes + (pa.compute.sum(lengths.cast("int64")).as_py() or 0)
    if _is_view(pa, cells.type):
        views = cells.buffers()[1]
        if views is None:
            return 0
        # a view has 16 bytes, and its length comes first
        lengths = memoryview(views).cast("B").cast("i")[4 * cells.offset : 4 * (cells.offset + len(cells)) : 4]
        return 16 * len(cells) + sum(max(length, 0) for length in lengths)
    if pa.types.is_list_view(cells.type) or pa.types.is_large_list_view(cells.type):
        # views of lists may overlap: counted as if all values were of one size
        used = pa.compute.sum(pa.compute.list_value_length(cells).cast("int64")).as_py() or 0
        return 16 * len(cells) + expanded_bytes(pa, cells.values) * used // max(1, len(cells.values))
    if _is_list(pa, cells.type):
        return 8 * len(cells) + expanded_bytes(pa, cells.flatten())
    if pa.types.is_struct(cells.type):
        return sum(expanded_bytes(pa, cells.field(at)) for at in range(cells.type.num_fields))
    return cells.nbytes


def _in_rows(pa: Any, cells: Any, look: Callable[[Any, Any, Shape], list[Any]], shape: Shape) -> list[Any]:
    """What `look` finds in the values of each row's list."""
    cells = _storage(pa, cells)
    lengths: list[int | None] = pa.compute.list_value_length(cells).to_pylist()
    if len(lengths) == 1 and (lengths[0] or 0) > limits.MAX_ROW_INPUTS:
        return [{OTHER: f"holds {lengths[0]:,} inputs; the limit for one row is {limits.MAX_ROW_INPUTS:,}"}]
    values = iter(look(pa, cells.flatten(), shape))
    return [None if length is None else [next(values) for _ in range(length)] for length in lengths]


def _texts_at(pa: Any, cells: Any, way: tuple[int, ...]) -> list[Any]:
    cells = _storage(pa, cells)
    if not way:
        return texts(cells)
    texts_in = _texts_at(pa, cells.field(way[0]), way[1:])
    return [text if is_valid else None for text, is_valid in zip(texts_in, cells.is_valid().to_pylist(), strict=True)]


def _is_valid(pa: Any, cells: Any, way: tuple[int, ...]) -> list[bool]:
    cells = _storage(pa, cells)
    is_valid: list[bool] = cells.is_valid().to_pylist()
    if _is_dictionary(pa, cells.type):
        inner = [bool(value) for value in cells.dictionary.is_valid().take(cells.indices).to_pylist()]
    elif way:
        inner = _is_valid(pa, cells.field(way[0]), way[1:])
    else:
        return is_valid
    return [outer and value for outer, value in zip(is_valid, inner, strict=True)]


def _wrong(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {OTHER: f"has {len(value):,} characters; the limit is {_TEXT_CHARACTERS:,}"}
    return {OTHER: f"must be a text, got {json.dumps(value, default=str)[:80]}"}


def _stored(pa: Any, type_: Any) -> Any:
    """A type without the extensions around it."""
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    return type_


def _storage(pa: Any, cells: Any) -> Any:
    while isinstance(cells, pa.ExtensionArray):
        cells = cells.storage
    return cells


def _plain_scalar(pa: Any, value: Any) -> Any:
    while isinstance(value, (pa.ExtensionScalar, pa.DictionaryScalar)) and value.is_valid:
        value = value.value
    return value


def _is_text(pa: Any, type_: Any) -> bool:
    types = pa.types
    return types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)


def _is_bytes(pa: Any, type_: Any) -> bool:
    types = pa.types
    return types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_)


def _is_view(pa: Any, type_: Any) -> bool:
    return pa.types.is_string_view(type_) or pa.types.is_binary_view(type_)


def _is_dictionary(pa: Any, type_: Any) -> bool:
    return pa.types.is_dictionary(type_)


def _is_list(pa: Any, type_: Any) -> bool:
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_one(type_) for is_one in lists)
