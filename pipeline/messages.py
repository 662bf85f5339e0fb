"""How messages name things: a list too long to be told whole, a name no terminal should obey, and what is wrong with
values that pydantic refused.

Who raises adds the file and what to do next. Elsewhere: the errors themselves (errors.py).
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

MAX_NAMES = 3
"""Of many, so many are told by name."""

_VALUE = reprlib.Repr()
_VALUE.maxstring = _VALUE.maxother = 80


def name_some(names: Sequence[object], *, between: str = ", ", most: int = MAX_NAMES) -> str:
    """The first few, the rest counted: `a, b, c and 7 more`."""
    told = between.join(map(str, names[:most]))
    joint = "" if between == ", " else between.rstrip()
    return f"{told}{joint} and {len(names) - most:,} more" if len(names) > most else told


def printable(text: str) -> str:
    """On one line of a terminal, and nothing but seen: a name may hold anything, and a store be a stranger's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def install_extra(name: str) -> str:
    """How to install one of the extras of pyproject.toml: from the source, since no package index has theworld."""
    return f"pip install -e '.[{name}]' in the folder of theworld's source"


def list_problems(
    error: ValidationError | OSError, *, known: Iterable[str] = (), spelled: Mapping[str, str] | None = None
) -> str:
    """Why values could not be taken, each as its field, what is expected, and what was there.

    Args:
        error: of pydantic, or of reading the file the values were in.
        known: the fields there are, told where one is named that is not.
        spelled: field -> how the user wrote it, a flag say.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    problems = [_in_words(problem, sorted(known), spelled or {}) for problem in error.errors(include_url=False)]
    return name_some(problems, between="; ")


def _in_words(problem: Any, fields: list[str], spelled: Mapping[str, str]) -> str:
    first, *rest = problem["loc"] or ("",)
    name = ".".join(map(str, [spelled.get(str(first), first), *rest]))
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first), fields, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        listed = f" (there are {', '.join(fields)})" if fields else ""
        return f"there is no {name!r}{meant}{listed}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    if not name:
        return said
    if problem["type"] in ("value_error", "assertion_error"):  # our own words, which say what was there
        return f"{name}: {said}"
    should = re.sub(r"^\w+ should ", "", said)  # pydantic begins with what it is: Input, String, List
    joint = ": " if should == said else " should "
    return f"{name}{joint}{should}, got {_VALUE.repr(problem['input'])}"
