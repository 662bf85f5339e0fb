"""Rows whose file is not where the list says: try other spellings of its path, count them, or give a hint."""

from __future__ import annotations

import errno
import os
from collections import Counter

from ....pipeline.credentials import hide_passwords
from ....pipeline.errors import ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files.remote import is_remote
from ..rows.spellings import find_spelling, hint_of_folder, hint_of_text, spellings
from .entries import Entries, Entry

_MOST_SEARCHES = 20
"""Rows of one place for which the disk is searched for a hint: they mostly lack their files for the same reason."""


class Respelled:
    """The rows of one place that are not where they are written."""

    def __init__(self, entries: Entries, *, has_root: bool) -> None:
        """
        Args:
            has_root: whether the folder that rows are relative to was named.
        """
        self._entries, self._has_root = entries, has_root
        self._counts: dict[str, Counter[str]] = {}
        self._searches = 0

    def find(self, at: int, entry: Entry, error: ImageError) -> Entry:
        """The entry at another spelling of its path.

        Raises:
            ImageError: it is none that is missing, or no spelling leads to a file; then with a hint.
        """
        if error.reason != FailureReason.MISSING or not self._entries.names_file(at) or _is_there(entry, error):
            raise error
        if entry.location is not None and is_remote(entry.location.path):
            raise error
        spelling = find_spelling(entry.source, entry.container.folder)
        if spelling is None:
            raise ImageError(error.reason, self._why(entry, error)) from error
        counts = self._counts.setdefault(entry.container.name, Counter())
        counts[spellings(entry.source)[spelling].how] += 1
        return self._entries.respell(at, spelling)

    def notes(self) -> list[str]:
        """How many rows of each list were found in another spelling."""
        return [
            f"{name}: files found by another spelling of their paths: {counts.total():,} "
            f"({', '.join(f'{how} {count:,}' for how, count in counts.most_common(5))})"
            for name, counts in self._counts.items()
        ]

    def _why(self, entry: Entry, error: ImageError) -> str:
        if hint := hint_of_text(entry.source):
            return f"{entry.name}: there is no file {hide_passwords(entry.source)}: {hint}"
        self._searches += 1
        if self._searches > _MOST_SEARCHES:
            return str(error)
        folder = entry.container.folder
        if folder_hint := hint_of_folder(entry.source, folder):
            return f"{error}; {folder_hint}"
        if entry.source.strip().startswith("/"):
            return str(error)
        if self._has_root:
            return f"{error}; paths are relative to --image-root, {folder}"
        where = "" if folder in ("", ".") else f", {folder}"
        return f"{error}; paths are relative to the folder of the list{where}; --image-root names another"


def _is_there(entry: Entry, error: ImageError) -> bool:
    """Whether the path is right, and another thing is wrong with it: a closed folder, a link that leads nowhere."""
    is_closed = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EACCES, errno.EPERM)
    return is_closed or (entry.location is not None and os.path.lexists(entry.location.path))
