"""Parse the values of a table: an image, choices, an answer. Nothing here opens a file."""

from __future__ import annotations

import base64 as base64_
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_ENCODED = 512  # characters: no path is as long, no image in base64 as short


class WrongValue(ValueError):  # noqa: N818 - a row's problem, not the user's error
    """A value is wrong; the reader of rows adds where."""


class Skipped(ValueError):  # noqa: N818
    """The row is not wrong, but it does not ask about exactly one image."""


class Images:
    """Names of images, and the SHA-256 of those whose bytes are in the table."""

    def __init__(self, *, base64: bool = False, keep: Callable[[str, bytes], None] | None = None) -> None:
        """
        Args:
            base64: long texts are images in base64, as VLMEvalKit's.
            keep: called with SHA-256 and bytes of each image that is here, once for each.
        """
        self._base64, self._keep = base64, keep
        self._digest_of: dict[str, str] = {}
        self._name_of: dict[str, str] = {}

    def take(self, value: Any, where: str) -> dict[str, Any]:
        """The fields `image` and, where the bytes are here, `image_sha256` of one row.

        Raises:
            Skipped: no image, or several.
            WrongValue: what is there is neither a name nor bytes.
        """
        path, content = self._read(value)
        if content is None:
            return {"image": path}
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._name_of:  # one image keeps one name, and a name one image
            name = path if path and path not in self._digest_of else where
            self._name_of[digest], self._digest_of[name] = name, digest
            if self._keep is not None:
                self._keep(digest, content)
        return {"image": self._name_of[digest], "image_sha256": digest}

    def _read(self, value: Any) -> tuple[str, bytes | None]:
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            if len(value) > 1:
                raise Skipped("shows several images")
            value = value[0] if value else None
        if isinstance(value, Mapping):
            path = value.get("path")
            value, path = value.get("bytes") or path, path if isinstance(path, str) else ""
        else:
            path = value if isinstance(value, str) else ""
        if value is None or value == "":
            raise Skipped("has no image")
        if isinstance(value, bytes):
            return path, value
        if not isinstance(value, str):
            raise WrongValue(f"its image is a {type(value).__name__}, neither a name nor bytes")
        if self._base64 and len(value) > _ENCODED:
            return "", decode_base64(value)
        if "\0" in value:
            raise WrongValue("the name of its image holds a NUL character")
        return value, None


def decode_base64(text: str) -> bytes:
    """The bytes of a text in base64.

    Raises:
        WrongValue: it is not base64.
    """
    try:
        return base64_.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongValue(f"its image is not base64: {error}") from error


def text_of(value: Any) -> str:
    """A value as text: 2.0 as "2", True and False as "yes" and "no".

    Raises:
        WrongValue: it is missing, or not a single value.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return value.strip()
    raise WrongValue("a value is missing" if value is None else f"expected a text, got {type(value).__name__}")


def choices_of(value: Any) -> dict[str, str]:
    """Choices by their letters, A, B, …; empty if there are none.

    Args:
        value: a list, an object by letter, or JSON of either.
    Raises:
        WrongValue: it is none of these.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise WrongValue(f"its choices are no list, and no JSON of one: {value[:60]!r}") from error
    if isinstance(value, Mapping):
        return {str(name): text_of(choice) for name, choice in value.items() if choice not in (None, "")}
    if not isinstance(value, Sequence) or len(value) > len(_LETTERS):
        raise WrongValue(f"its choices are a {type(value).__name__}, and no list of up to {len(_LETTERS)}")
    return dict(zip(_LETTERS, map(text_of, value), strict=False))


def answer_of(value: Any, choices: Mapping[str, str]) -> str:
    """The right answer as text: the value itself, or the choice that it names by letter or by place (a number from 0).

    Raises:
        WrongValue: it is empty, names none of the choices, or is one choice itself and the place of another.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 1:
        value = value[0]
    answer = text_of(value)
    if not answer:
        raise WrongValue("its answer is empty")
    at_place = None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        at_place = list(choices.values())[value]
    if not choices or answer in choices.values():
        if at_place not in (None, answer):
            raise WrongValue(
                f"its answer {answer} is one of the choices, and the place (from 0) of another, {at_place!r}: write it "
                "as a letter, or as text"
            )
        return answer
    letter = _LETTER.fullmatch(answer)
    if letter and letter[1].upper() in choices:
        return choices[letter[1].upper()]
    if at_place is not None:
        return at_place
    raise WrongValue(
        f"its answer {answer!r} is none of the choices {list(choices.values())}, nor a letter or place (from 0) of one"
    )


def shuffle_choices(name: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Choices in an order that `name` decides, so that the place of the right one carries no information."""
    return tuple(sorted(choices, key=lambda choice: hashlib.sha256(f"{name}\0{choice}".encode()).digest()))
