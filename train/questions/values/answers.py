"""The right answer of a row, as its text, its letter, its place among the choices, or what most people said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from .choices import LETTERED, Choices
from .list_text import LIST_TEXT, items_of_text
from .text import WrongValue, as_seen, is_absent, text_of

_LETTER = re.compile(r"(?:option\s|choice\s|answer:\s)?\s*[(\[]?([A-Z])[)\].:]*", re.IGNORECASE)
_WHOLE = re.compile(r"(-?\d{1,18})(?:\.0+)?")
Given = Literal["text", "either", "number", "letter", "case", "look", "place"]
"""How a row gives its answer; `either` is a text that is one choice and the letter or place of another."""


def answer_of(value: Any, choices: Mapping[str, str | None]) -> str:
    """The right answer as text; as of `read_answer`."""
    return read_answer(value, Choices(dict(choices)))[0]


def read_answer(value: Any, choices: Choices) -> tuple[str, Given]:
    """The right answer as text, and how the row gives it: the text itself, or the choice that it names by letter or by
    place (a number from 0, also where it is text).

    Raises:
        WrongValue: it is empty, names none of the choices, or is one choice itself and the place of another.
    """
    value = _single(value, choices)
    if is_absent(value):
        raise WrongValue("answer is empty" if isinstance(value, str) else "answer is missing")
    answer = _word_of(value, choices) if isinstance(value, bool) else text_of(value)
    offered = choices.offered
    if not offered:
        return answer, "text"
    names = {name.casefold(): name for name in choices.texts}
    place = None if answer.casefold() in names else _place(value, answer, choices)
    at_place = None if place is None else list(choices.texts.values())[place]
    if answer in offered:
        named = choices.texts.get(answer, answer)
        if named != answer and _whole(answer) is not None:
            raise _two_meanings(answer, named)
        if named not in (None, answer):
            return answer, "either"
        if at_place not in (None, answer):
            if not isinstance(value, str):
                raise _two_meanings(answer, at_place)
            return answer, "either"
        return answer, "text"
    equal = [text for text in offered if (whole := _whole(text)) is not None and whole == _whole(answer)]
    if len(equal) == 1:  # "1.0" of a column that has empty cells, too, is "1"
        if at_place not in (None, equal[0]):
            raise _two_meanings(answer, at_place)
        return equal[0], "number"
    if (name := names.get(answer.casefold()) or _letter(answer, names, choices)) is not None:
        return _offered(answer, choices.texts[name]), "letter"
    same = [text for text in offered if text.casefold() == answer.casefold()]
    if len(same) == 1:
        return same[0], "case"
    alike = [text for text in offered if as_seen(text).casefold() == as_seen(answer).casefold()]
    if len(alike) == 1:
        return alike[0], "look"
    if place is not None:
        return _offered(answer, at_place), "place"
    raise WrongValue(
        f"its answer {answer!r} is none of the choices {list(offered)}, nor a letter or place (from 0) of one"
    )


def _two_meanings(answer: str, at_place: str | None) -> WrongValue:
    return WrongValue(
        f"its answer {answer} is one of the choices, and the place (from 0) of another, {at_place!r}: write it "
        "as a letter, or as text"
    )


def _offered(answer: str, text: str | None) -> str:
    if text is None:
        raise WrongValue(f"its answer {answer!r} names a choice that is empty")
    return text


def _single(value: Any, choices: Choices) -> Any:
    """The one value of a list of one, also where a cell holds it as text."""
    if isinstance(value, str) and value[:1] == "[" and value not in choices.offered and len(value) <= LIST_TEXT:
        items = items_of_text(value)
        value = items if items is not None and len(items) == 1 and isinstance(items[0], str) else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = [item for item in cast(Sequence[Any], value) if not is_absent(item)]
        if len(items) > 1:
            raise WrongValue(f"it has {len(items)} answers, and a question has one")
        value = items[0] if items else None
    return value


def most_frequent(value: Any) -> tuple[Any, int]:
    """The answer that most people gave (the first of several equally frequent ones), and how many answered.

    Args:
        value: their answers: a list of texts, or of objects with an `answer`, or the text of such a list; anything else
            is one answer.
    """
    if isinstance(value, str) and value[:1] == "[" and len(value) <= LIST_TEXT:
        value = items_of_text(value) or value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value, 1
    items = [
        cast(Mapping[Any, Any], item).get("answer") if isinstance(item, Mapping) else item
        for item in cast(Sequence[Any], value)
    ]
    texts = Counter(text_of(item) for item in items if not is_absent(item))
    return (texts.most_common(1)[0][0] if texts else None), texts.total()


def _word_of(value: bool, choices: Choices) -> str:
    words = ("yes", "true") if value else ("no", "false")
    return next((text for text in choices.offered if text.casefold() in words), words[0])


def _place(value: Any, answer: str, choices: Choices) -> int | None:
    if isinstance(value, bool) or (not isinstance(value, str) and value in choices.numbers):
        return None  # a number among numbers is no place
    place = _whole(answer)
    return place if place is not None and 0 <= place < len(choices.texts) else None


def _whole(text: str) -> int | None:
    return int(match[1]) if (match := _WHOLE.fullmatch(text)) else None


def _letter(answer: str, names: Mapping[str, str], choices: Choices) -> str | None:
    """The name of the choice that `b`, `(B)`, `B.` or `B. right` names."""
    if match := _LETTER.fullmatch(answer):
        return names.get(match[1].casefold())
    if (match := LETTERED.fullmatch(answer)) and (name := names.get(match[1].casefold())) is not None:
        text = choices.texts[name]
        return name if text is not None and text.casefold() == match[2].strip().casefold() else None
    return None
