"""Whether a value is absent, and its text.

Absent is absent: null, NaN, an empty list and a text that is blank, `nan`, `NaN`, `<NA>` or `NaT`, as pandas writes a
cell without a value, or `#N/A`, as Excel does. `None`, `null` and `NA` are words. A number is its text, 2.0 that of 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

_MISSING = frozenset({"", "nan", "NaN", "-nan", "-NaN", "<NA>", "NaT", "#N/A", "#NA", "#N/A N/A"})


_UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff]")
"""Soft hyphens, blanks without width and marks of byte order."""


class WrongValue(ValueError):  # noqa: N818 - a row's problem, not the user's error
    """A value is wrong; the reader of rows adds where."""


class Skipped(ValueError):  # noqa: N818
    """The row is not wrong, but it does not ask about exactly one image."""


def is_absent(value: Any) -> bool:
    """Whether a cell or field holds no value."""
    if isinstance(value, str):
        return value.strip() in _MISSING
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, Sequence | Mapping) and not value)


def text_of(value: Any) -> str:
    """A value as text: 2.0 as "2", True and False as "yes" and "no".

    Raises:
        WrongValue: it is missing, or not a single value.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_absent(value):
        raise WrongValue("a value is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError as error:  # more digits than Python prints
            raise WrongValue("a number has thousands of digits") from error
    if isinstance(value, str):
        return value.strip()
    raise WrongValue(f"expected a text, got {type(value).__name__}")


def as_seen(text: str) -> str:
    """The text in one form for all that look alike: composed letters, each run of blanks one, nothing unseen."""
    if text.isascii():
        return " ".join(text.split())
    return " ".join(_UNSEEN.sub("", normalize("NFC", text)).split())
