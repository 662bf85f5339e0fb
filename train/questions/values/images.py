"""The image of a row: its name, or its bytes in a cell, a data URL or base64."""

from __future__ import annotations

import base64 as base64_
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from .list_text import LIST_TEXT, items_of_text
from .text import Skipped, WrongValue, is_absent

_ENCODED = 512  # characters: no path is as long, no image in base64 as short


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
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and len(value) <= LIST_TEXT:
        parsed = items_of_text(value)
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
    if isinstance(value, int) and not isinstance(value, bool):  # its number in a data set, as VQAv2's image_id
        return str(value), None
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
