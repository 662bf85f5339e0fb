"""Lists and objects that a text writes, as JSON, Python or numpy prints them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any, cast

from .text import WrongValue

_ARRAY = re.compile(r"array\(([\[(].*[\])])(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_ITEM = re.compile(
    r"""\s*(?:(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<bare>[^\s,'"\[\](){}]+))(?P<between>\s*,?\s*)""",
    re.DOTALL,
)
_BARE: dict[str, Any] = {"None": None, "nan": None, "NaN": None, "<NA>": None, "True": True, "False": False}
LIST_TEXT = 2**20
"""Characters of a list in one cell."""
_DEEPEST = 32


def read_list_text(text: str) -> Any:
    """The list or object that a text writes.

    Raises:
        WrongValue: it is none, or it is not clear where one item ends.
    """
    text = text.strip()
    if len(text) <= LIST_TEXT:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list | dict):
            return cast(Any, value)
        if text.startswith("{") and text.endswith("}") and (named := _literal(text)) is not None:
            return named
        if (items := items_of_text(text)) is not None:
            return items
        for between in ("\n", "|"):
            if between in text and not text.startswith(("[", "{")):
                return text.split(between)
    raise WrongValue(
        f"its choices are no list, and no text of one: {text[:60]!r}. Write JSON, such as "
        '["left", "right"], or left|right'
    )


def _literal(text: str) -> dict[Any, Any] | None:
    if sum(map(text.count, "{[(")) > _DEEPEST:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return cast(dict[Any, Any], value) if isinstance(value, dict) else None


def items_of_text(text: str) -> list[Any] | None:
    """The items of a list as JSON, Python or numpy prints it; None where the text is none.

    Python itself would read `['a' 'b']`, which numpy writes for two items, as one.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return cast(list[Any], value) if isinstance(value, list) else None
    text = match[1] if (match := _ARRAY.fullmatch(text.strip())) else text.strip()
    if text[:1] + text[-1:] not in ("[]", "()"):
        return None
    items: list[Any] = []
    position, end = 1, len(text) - 1
    while position < end:
        match = _ITEM.match(text, position, end)
        if match is None:
            return items if items and not text[position:end].strip() else None
        if match["quoted"] is not None:
            try:
                items.append(ast.literal_eval(match["quoted"]))
            except (ValueError, SyntaxError):
                return None
        elif match["bare"] in _BARE:
            items.append(_BARE[match["bare"]])
        else:
            try:
                items.append(json.loads(match["bare"]))
            except (ValueError, RecursionError):
                return None
        if not match["between"] and match.end() < end:
            return None  # 'a''b': one item or two?
        position = match.end()
    return items
