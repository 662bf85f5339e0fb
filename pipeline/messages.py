"""Text of messages and of what is typed: lists cut short or split, sizes, names made safe for a terminal, commands that
can be pasted, and pydantic's errors in plain words."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.filesize import pick_unit_and_suffix

from .errors import ConfigError

MAX_NAMES = 3
"""A list in a message names this many items and counts the rest."""

_PARSED = {
    **dict.fromkeys(("int_parsing", "int_from_float", "int_type"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("string_type", "path_type"), "a text"),
}
_VALUE = reprlib.Repr()
_VALUE.maxstring = _VALUE.maxother = 80


def name_some(names: Sequence[object], *, between: str = ", ", most: int = MAX_NAMES) -> str:
    """Return the first names and the number of the others: `a, b, c and 7 more`."""
    listed = between.join(map(str, names[:most]))
    joint = "" if between == ", " else between.rstrip()
    return f"{listed}{joint} and {len(names) - most:,} more" if len(names) > most else listed


def split_names(text: str, option: str, *, example: str) -> tuple[str, ...]:
    """The items of a comma-separated text, without the blanks around them.

    Args:
        option: how the user gave the text, such as `--choices`.
        example: a text that is accepted.
    Raises:
        ConfigError: an item is empty.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ConfigError(f"{option} takes items with a comma between, none empty, such as {example}; got {text!r}")
    return names


def format_bytes(size: float) -> str:
    """A number of bytes in the binary unit that suits its size: `512 bytes`, `34.2 MiB`."""
    unit, name = pick_unit_and_suffix(int(size), ["bytes", "KiB", "MiB", "GiB", "TiB"], 1024)
    return f"{size / unit:,.{0 if unit == 1 else 1}f} {name}"


def format_amount(value: float) -> str:
    """A number with the digits that matter: `0.0471`, `7.48`, `236`, `12,500`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_rate(per_second: float, unit: str) -> str:
    """A rate in the unit that suits it, so that none reads as 0: `4.3 images/s`, `2.3 s/image`, `3.5 min/image`.

    Args:
        unit: what is counted, such as `images`.
    """
    if per_second >= 1 or per_second <= 0:
        return f"{per_second:.1f} {unit}/s"
    seconds, singular = 1 / per_second, unit.removesuffix("s")
    return f"{seconds:.1f} s/{singular}" if seconds < 120 else f"{seconds / 60:,.1f} min/{singular}"


def printable(text: str) -> str:
    """Return the text on one line with escapes for whatever is not to be seen, or acts on what is around it.

    These are control and format characters (terminal commands, marks that turn the direction of writing), line ends of
    all kinds, characters of no width, surrogates, and characters without a common meaning. Letters of all scripts stay.
    """
    return "".join(c if _is_seen(c) else c.encode("unicode_escape").decode() for c in text)


_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Letters and marks by their category, but without any ink."""


def _is_seen(character: str) -> bool:
    if character in _INVISIBLE:
        return False
    return character.isprintable() or unicodedata.category(character) == "Zs"  # spaces of some scripts


def command(*words: str | Path) -> str:
    """Return a command of theworld as it can be pasted into a shell: `theworld cache repair 'a b' --apply`.

    Args:
        words: what follows `theworld`. A `Path` is never taken for a flag; other words stay as they are, such as
            `--apply` and `IMAGE`.
    """
    return " ".join(["theworld", *map(_shell_word, words)])


_NOT_SHOWN_QUOTED = frozenset("`")
"""Messages put commands between backticks, so a backtick in a word would seem to end them."""


def _shell_word(word: str | Path) -> str:
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if all(_is_seen(c) and c not in _NOT_SHOWN_QUOTED for c in text):
        return shlex.quote(text)
    try:
        return f"$'{''.join(map(_in_dollar_quotes, text))}'"
    except UnicodeEncodeError:  # half a character, which no file's name holds
        return shlex.quote(printable(text))


def _in_dollar_quotes(character: str) -> str:
    """A character inside $'…' of bash, zsh and ksh: what cannot be seen as its bytes."""
    if character in "'\\!`" or not _is_seen(character):
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return character


def markdown(text: str) -> str:
    """Return the text as Markdown that shows it, in a paragraph or a table: nothing in it is markup, HTML or a link."""
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\g<0>", plain)


_MARKUP = re.compile(
    r"[\\`*\[\]|~$]"
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # inside a word it is a letter
    r"|:(?=//)|(?<=www)\.",  # of addresses, which become links by themselves
    re.IGNORECASE,
)


def markdown_code(text: str) -> str:
    """The same as code, where code can hold the text."""
    return f"`{text}`" if text and printable(text) == text and not set("`|") & set(text) else markdown(text)


def install_extra(name: str) -> str:
    """How to install one of the extras of pyproject.toml: from the source, since no package index has theworld."""
    return f"pip install -e '.[{name}]' in the folder of theworld's source"


def list_problems(
    error: ValidationError | OSError,
    *,
    fields: Iterable[str] = (),
    spelling: Mapping[str, str] | None = None,
    value: str = "",
) -> str:
    """Return what is wrong with some values: for each its field, what is expected, and what was given.

    Args:
        error: from pydantic, or from reading the file that holds the values.
        fields: all valid field names; listed if the error is an unknown one.
        spelling: field -> how the user wrote it, for example as a flag.
        value: the name of a value without fields, for example a flag.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    names, flags = sorted(fields), spelling or {}
    problems = [_describe(problem, names, flags, value) for problem in error.errors(include_url=False)]
    return name_some(problems, between="; ")


def _describe(problem: Any, fields: list[str], spelling: Mapping[str, str], value: str) -> str:
    first, *path = problem["loc"] or (value,)
    name = ".".join(map(str, [spelling.get(str(first), first), *path]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        matches = difflib.get_close_matches(str(first), fields, n=1)
        hint = f"; did you mean {matches[0]!r}?" if matches else ""
        choices = f" (there are {', '.join(fields)})" if fields else ""
        return f"there is no {name!r}{hint}{choices}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    if not name:
        return message
    if problem["type"] in ("value_error", "assertion_error"):  # our own message, which names the value already
        return f"{name}: {message}"
    if problem["type"] in _PARSED:
        return f"{name} must be {_PARSED[problem['type']]}, got {_VALUE.repr(problem['input'])}"
    expected = re.sub(r"^\w+ should ", "", message)  # pydantic begins with the type: Input, String, List
    joint = ": " if expected == message else " should "
    return f"{name}{joint}{expected}, got {_VALUE.repr(problem['input'])}"
