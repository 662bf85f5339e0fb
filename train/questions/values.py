"""Parse the values of a row, the same in every layout: an image, choices, an answer. Nothing here opens a file.

Absent is absent: null, NaN, an empty list and a text that is blank, `nan`, `NaN`, `<NA>` or `NaT`, as pandas writes a
cell without a value, or `#N/A`, as Excel does. `None`, `null` and `NA` are words. A number is its text, 2.0 that of 2.
"""

from __future__ import annotations

import ast
import base64 as base64_
import binascii
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import unquote_to_bytes

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MISSING = frozenset({"", "nan", "NaN", "-nan", "-NaN", "<NA>", "NaT", "#N/A", "#NA", "#N/A N/A"})
_ENCODED = 512  # characters: no path is as long, no image in base64 as short
_LETTER = re.compile(r"(?:option\s|choice\s|answer:\s)?\s*[(\[]?([A-Z])[)\].:]*", re.IGNORECASE)
_LETTERED = re.compile(r"[(\[]?([A-Z])[)\].:]\s*(\S.*)", re.IGNORECASE | re.DOTALL)
_WHOLE = re.compile(r"(-?\d{1,18})(?:\.0+)?")
_TEXT_NAMES = dict.fromkeys(("text", "value", "content", "choice", "option", "answer")).keys()
_LABEL_NAMES = ("label", "letter", "key", "id")
_ARRAY = re.compile(r"array\(([\[(].*[\])])(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_ITEM = re.compile(
    r"""\s*(?:(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<bare>[^\s,'"\[\](){}]+))(?P<between>\s*,?\s*)""",
    re.DOTALL,
)
_BARE: dict[str, Any] = {"None": None, "nan": None, "NaN": None, "<NA>": None, "True": True, "False": False}
_LIST_TEXT = 2**20
"""Characters of a list in one cell."""
_DEEPEST = 32

Given = Literal["text", "either", "number", "letter", "case", "place"]
"""How a row gives its answer; `either` is a text that is one choice and the place of another."""


class WrongValue(ValueError):  # noqa: N818 - a row's problem, not the user's error
    """A value is wrong; the reader of rows adds where."""


class Skipped(ValueError):  # noqa: N818
    """The row is not wrong, but it does not ask about exactly one image."""


class Images:
    """Names of images, and the SHA-256 of those whose bytes are in the table."""

    def __init__(self, *, keep: Callable[[str, bytes], None] | None = None) -> None:
        """
        Args:
            keep: called with SHA-256 and bytes of each image that is here, once for each.
        """
        self._keep = keep
        self._digest_of: dict[str, str] = {}
        self._name_of: dict[str, str] = {}

    def take(self, values: Sequence[Any], where: str) -> dict[str, Any]:
        """The fields `image` and, where the bytes are here, `image_sha256` of one row.

        Args:
            values: what the row names; lists of names count as the names in them, and one named twice once.
        Raises:
            Skipped: no image, or several.
            WrongValue: what is there is neither a name nor bytes.
        """
        images: list[tuple[str, bytes | None]] = []
        for value in values:
            images += [image for image in map(_image, _items(value)) if image is not None and image not in images]
        if not images:
            raise Skipped("has no image")
        if len(images) > 1:
            raise Skipped("shows several images")
        [(path, content)] = images
        if content is None:
            return {"image": path}
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._name_of:  # one image keeps one name, and a name one image
            name = path if path and path not in self._digest_of else where
            self._name_of[digest], self._digest_of[name] = name, digest
            if self._keep is not None:
                self._keep(digest, content)
        return {"image": self._name_of[digest], "image_sha256": digest}


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and len(value) <= _LIST_TEXT:
        parsed = _list_in(value)
        return parsed if parsed and all(isinstance(name, str) for name in parsed) else [value]
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


def _image(value: Any) -> tuple[str, bytes | None] | None:
    """Name and bytes of an image; None where there is none."""
    path = ""
    if isinstance(value, Mapping):  # datasets' {bytes, path}; OpenAI's {url}; Qwen's {image}
        parts = cast(Mapping[str, Any], value)
        names = [parts.get(name) for name in ("path", "url", "image", "video", "file_name")]
        names = [name for name in names if not is_absent(name)]
        path = names[0] if names and isinstance(names[0], str) else ""
        value = next((part for part in (parts.get("bytes"), *names) if not is_absent(part)), None)
    elif isinstance(value, str):
        path = value
    if is_absent(value):
        return None
    if isinstance(value, bytes):
        return path, value
    if not isinstance(value, str):
        raise WrongValue(f"its image is a {type(value).__name__}, neither a name nor bytes")
    if value[:5].lower() == "data:":
        return "", _data_url(value)
    if len(value) > _ENCODED:
        return "", decode_base64(value)
    if "\0" in value:
        raise WrongValue("the name of its image holds a NUL character")
    return value, None


def _data_url(url: str) -> bytes:
    head, comma, content = url.partition(",")
    if not comma:
        raise WrongValue("its image is a data: URL without content")
    return decode_base64(content) if head.lower().endswith(";base64") else unquote_to_bytes(content)


def decode_base64(text: str) -> bytes:
    """The bytes of a text in base64.

    Raises:
        WrongValue: it is not base64.
    """
    try:
        return base64_.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongValue(f"its image is not base64: {error}") from error


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
        value = _listed(value)
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
        match = None if text is None else _LETTERED.fullmatch(text)
        if text is not None and (match is None or match[1].upper() != letter):
            return None
        bare.append(None if match is None else match[2].strip())
    return bare if len(bare) == len(texts) and len(bare) - bare.count(None) > 1 else None


def _listed(text: str) -> Any:
    """The list or object that a text writes.

    Raises:
        WrongValue: it is none, or it is not clear where one item ends.
    """
    text = text.strip()
    if len(text) <= _LIST_TEXT:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list | dict):
            return cast(Any, value)
        if text.startswith("{") and text.endswith("}") and (named := _literal(text)) is not None:
            return named
        if (items := _list_in(text)) is not None:
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


def _list_in(text: str) -> list[Any] | None:
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
    if isinstance(value, str) and value[:1] == "[" and value not in choices.offered and len(value) <= _LIST_TEXT:
        items = _list_in(value)
        value = items if items is not None and len(items) == 1 and isinstance(items[0], str) else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = [item for item in cast(Sequence[Any], value) if not is_absent(item)]
        if len(items) > 1:
            raise WrongValue(f"it has {len(items)} answers, and a question has one")
        value = items[0] if items else None
    return value


def most_frequent(value: Any) -> tuple[Any, int]:
    """What most of several people answered, the first of what is said equally often, and how many answered.

    Args:
        value: their answers: a list of texts, or of objects with an `answer`, or the text of such a list; anything else
            is one answer.
    """
    if isinstance(value, str) and value[:1] == "[" and len(value) <= _LIST_TEXT:
        value = _list_in(value) or value
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
    if (match := _LETTERED.fullmatch(answer)) and (name := names.get(match[1].casefold())) is not None:
        text = choices.texts[name]
        return name if text is not None and text.casefold() == match[2].strip().casefold() else None
    return None


def shuffle_choices(name: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Choices in an order that `name` decides, so that the place of the right one carries no information."""
    return tuple(sorted(choices, key=lambda choice: hashlib.sha256(f"{name}\0{choice}".encode()).digest()))
