"""The choices of a row, each with its letter, or with the name that the row gives it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .list_text import read_list_text
from .text import WrongValue, is_absent, text_of

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERED = re.compile(r"[(\[]?([A-Z])[)\].:]\s*(\S.*)", re.IGNORECASE | re.DOTALL)
_TEXT_NAMES = dict.fromkeys(("text", "value", "content", "choice", "option", "answer")).keys()
_LABEL_NAMES = ("label", "letter", "key", "id")


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices of one question, each with its letter, or with the name that the row gives it."""

    texts: dict[str, str | None]
    """None is a choice without a text: it keeps its letter and its place, and is not offered."""
    numbers: frozenset[float] = frozenset()
    """Those that the row gives as numbers."""
    lettered: bool = False
    """Whether letters stood in the texts, and were taken off."""

    @property
    def offered(self) -> tuple[str, ...]:
        return tuple(text for text in self.texts.values() if text is not None)


def choices_of(value: Any, *, most: int = len(_LETTERS)) -> dict[str, str | None]:
    """Choices by their letters, A, B, …; as of `read_choices`."""
    return read_choices(value, most=most).texts


def read_choices(value: Any, *, most: int) -> Choices:
    """The choices that a row offers; without any, there is nothing in them.

    Args:
        value: a list; an object by letter, or of the lists `text` and `label`; JSON of these; a list as Python or numpy
            prints it; texts between `|`, or a line each.
        most: how many there may be.
    Raises:
        WrongValue: it is none of these.
    """
    if is_absent(value):
        return Choices({})
    if isinstance(value, str):
        value = read_list_text(value)
    if isinstance(value, Mapping):
        named = cast(Mapping[Any, Any], value)
        texts, labels = named.get("text"), named.get("label")
        if named.keys() == {"text", "label"} and isinstance(texts, list) and isinstance(labels, list):  # ARC's
            value = dict(zip(map(text_of, cast(list[Any], labels)), cast(list[Any], texts), strict=False))
            named = cast(Mapping[Any, Any], value)
        names, items = [str(name).strip() for name in named], list(named.values())
    elif isinstance(value, Sequence) and not isinstance(value, bytes) and len(value) <= most:
        items = list(cast(Sequence[Any], value))
        if (pairs := _named_texts(items)) is not None:
            return read_choices(pairs, most=most)
        names = [_LETTERS[place] if place < len(_LETTERS) else str(place) for place in range(len(items))]
    else:
        raise WrongValue(f"its choices are a {type(value).__name__}, and no list of up to {most}")
    numbers = frozenset(float(item) for item in items if isinstance(item, int | float) and _is_number(item))
    texts_read = [None if is_absent(item) else text_of(item) for item in items]
    bare = _without_letters(texts_read)
    return Choices(dict(zip(names, bare or texts_read, strict=True)), numbers, bare is not None)


def _named_texts(items: Sequence[Any]) -> dict[str, Any] | None:
    """Choices of objects, such as {"label": "A", "text": "left"}, by their labels, else by letters."""
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    texts: dict[str, Any] = {}
    for letter, item in zip(_LETTERS, cast(Sequence[Mapping[Any, Any]], items), strict=False):
        fields = {str(name).casefold(): part for name, part in item.items()}
        text = next((fields[name] for name in _TEXT_NAMES if name in fields), None)
        label = next((fields[name] for name in _LABEL_NAMES if name in fields and not is_absent(fields[name])), letter)
        if text is None and not _TEXT_NAMES & fields.keys():
            return None
        texts[text_of(label)] = text
    return texts if len(texts) == len(items) else None


def _is_number(value: float) -> bool:
    return not isinstance(value, bool) and not is_absent(value) and abs(value) < 2**53


def _without_letters(texts: Sequence[str | None]) -> list[str | None] | None:
    """What follows `A.`, `B.`, … where each text begins with the letter of its place, as VSI-Bench's do; else None."""
    bare: list[str | None] = []
    for letter, text in zip(_LETTERS, texts, strict=False):
        match = None if text is None else LETTERED.fullmatch(text)
        if text is not None and (match is None or match[1].upper() != letter):
            return None
        bare.append(None if match is None else match[2].strip())
    return bare if len(bare) == len(texts) and len(bare) - bare.count(None) > 1 else None


def shuffle_choices(name: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Choices in an order that `name` decides, so that the place of the right one carries no information."""
    return tuple(sorted(choices, key=lambda choice: hashlib.sha256(f"{name}\0{choice}".encode()).digest()))
