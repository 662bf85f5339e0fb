"""The files of a store's two logs, found by their names."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from ..files.open_files import list_folder
from .records import unreadable


def log_files(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Ours, by name; a folder that a copy left out, as it was empty, is empty."""
    try:
        return sorted(path for path in list_folder(folder) if name.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, None, error) from error


def missing_or_unreadable(path: Path, error: OSError) -> Exception:
    """The error itself where the file was moved away, else one that says what to do."""
    moved_away = error.errno == errno.ENOENT and not path.is_symlink()
    return error if moved_away else unreadable(path, None, error)
