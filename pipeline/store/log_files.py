"""The files of a store's two logs, found by their names."""

from __future__ import annotations

import re

from ..files.places.place import Place
from .records import is_gone, unreadable


def log_files(store: Place, folder: str, name: re.Pattern[str]) -> list[str]:
    """Ours, in order of their names, from the store; a folder that a copy left out, as it was empty, is empty."""
    try:
        return [f"{folder}/{found}" for found in store.names(folder) if name.fullmatch(found)]
    except OSError as error:
        raise unreadable(store.location(folder), None, error) from error


def missing_or_unreadable(store: Place, name: str, error: OSError) -> Exception:
    """The error itself where the file was moved away, else one that says what to do."""
    location = store.location(name)
    return error if is_gone(error, location) else unreadable(location, None, error)
