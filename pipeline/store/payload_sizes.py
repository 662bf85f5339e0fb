"""What the size of a payload says about it."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import DamagedShardError
from ..files.changed import IS_LFS_POINTER, LFS_POINTER
from ..files.places.place import Place
from .records import unreadable

_POINTER_BYTES = 1000
"""What stands in place of a payload is small."""


def size_problem(store: Place, payload: str, stated_bytes: int, number: int) -> str | None:
    """What is wrong with a payload by its size; None where nothing is.

    Args:
        payload: its name in the store.
    """
    try:
        entry = store.entry(payload)
    except ValueError as error:
        return str(error)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "it is missing"
        store_error = unreadable(store.location(payload), number, error)
        if isinstance(store_error, DamagedShardError):
            return error.strerror or str(error)
        raise store_error from error
    if entry is None:
        return "it is missing" + _link_to_nothing(store, payload)
    if (problem := _size_differs(entry.bytes, stated_bytes)) is None:
        return None
    with suppress(OSError, ValueError):
        if store.read(payload, _POINTER_BYTES).startswith(LFS_POINTER):
            return IS_LFS_POINTER
    return problem


def _link_to_nothing(store: Place, payload: str) -> str:
    where = store.location(payload)
    if not isinstance(where, Path) or not where.is_symlink():
        return ""
    return f": it is a link to {where.readlink()}, which is not here (`git annex get` and `dvc pull` fetch what is)"


def listed_sizes(store: Place, folder: str) -> dict[str, int]:
    """The size of each payload by its name, from one listing."""
    return {entry.name: entry.bytes for entry in store.entries(folder, deep=True)}


def listed_problem(sizes: Mapping[str, int], payload: str, stated_bytes: int) -> str | None:
    """`size_problem` by a listing."""
    return _size_differs(sizes[payload], stated_bytes) if payload in sizes else "it is missing"


def _size_differs(size: int, stated_bytes: int) -> str | None:
    return None if size == stated_bytes else f"it has {size} bytes, its record states {stated_bytes}"
