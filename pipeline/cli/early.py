"""Checks that a command makes before torch and transformers are loaded, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError
from ..files.tables.arrow import HUB


def require_file(path: Path, what: str) -> None:
    """Refuse a file or folder that is not there; what it holds is seen later, and data sets of the Hub are fetched.

    Args:
        what: it is, for the message: "image".
    Raises:
        ConfigError: there is none.
    """
    if not str(path).startswith(HUB) and not os.path.lexists(path):
        raise ConfigError(f"cannot read the {what} file {path} (looked from {Path.cwd()}): No such file or directory")
