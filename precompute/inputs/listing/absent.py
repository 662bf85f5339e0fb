"""Report inputs that do not exist, before torch is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ....pipeline.errors import ConfigError
from ....pipeline.files.places.local import url_of
from ....pipeline.files.tables.arrow import HUB
from .folders import has_braces, has_magic

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_there(path: str) -> bool:
    """Whether there is anything at a path, also a link to nothing."""
    try:
        return os.path.lexists(path)
    except ValueError:  # of a NUL
        return False


def absent(text: str, takes: str) -> ConfigError:
    """The error of a place with nothing there.

    Args:
        takes: what a kind takes, such as `image`.
    """
    hub = f". For a data set of the Hugging Face Hub write hf:{text}" if _HUB_ID.fullmatch(text) else ""
    return ConfigError(f"there is no folder or {takes} at {text} (looked from {Path.cwd()}){hub}")


def refuse_absent(place: Path, takes: str) -> None:
    """Refuse a place with nothing there. URLs, patterns and data sets of the Hub are looked for later.

    Raises:
        ConfigError: nothing is there.
    """
    text = os.path.expanduser(place)  # noqa: PTH111 - of any length
    if not (url_of(text) is not None or text.startswith(HUB) or has_braces(text) or has_magic(text) or is_there(text)):
        raise absent(text, takes)
