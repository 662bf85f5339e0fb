"""Check the part of a tokenizer.json that rewrites texts: a few steps that lengthen each other fill any memory."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..file_facts import FileFacts, facts_of
from ..limits import MAX_TEXT_GROWTH, MAX_TOKENIZER_BYTES
from ..plain import read_json

_BEFORE = ("normalizer", "pre_tokenizer")
_AFTER = ("decoder",)


def check_tokenizer_json(path: Path) -> None:
    """Read the steps that rewrite a text, without running them; of a file that has not changed since, only once.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no tokenizer, or together its steps may lengthen a text too much.
    """
    _check(path, facts_of(str(path)))


@lru_cache(maxsize=16)  # Gemma's 33 MB take a second or two, and a training loads its tokenizer several times
def _check(path: Path, facts: FileFacts | None) -> None:
    del facts
    try:
        content = read_json(path, MAX_TOKENIZER_BYTES)
    except ValueError as problem:
        raise ValueError(f"{path.name} cannot be read: {problem}") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} cannot be read: it is not a JSON object")
    tokenizer = cast(dict[str, Any], content)
    for parts in (_BEFORE, _AFTER):
        growth = 1
        for part in parts:
            for step in _steps(tokenizer.get(part)):
                growth *= _growth(path, step)
                if growth > MAX_TEXT_GROWTH:
                    raise ValueError(
                        f"{path.name}: the steps of its {part} may make a text {growth:,} times as long; the limit is "
                        f"{MAX_TEXT_GROWTH}, which those of Gemma, T5, Qwen and CLIP are far below"
                    )


def _steps(part: object) -> Iterator[dict[str, Any]]:
    todo: list[object] = [part]
    while todo:
        inner = todo.pop()
        if isinstance(inner, dict):
            step = cast(dict[str, Any], inner)
            yield step
            todo += step.values()
        elif isinstance(inner, list):
            todo += cast(list[object], inner)


def _growth(path: Path, step: dict[str, Any]) -> int:
    """How many letters or bytes may come of one."""
    kind = step.get("type")
    if kind == "Replace":
        return 1 + len(str(step.get("content", "")))  # a pattern may match between letters
    if kind == "ByteLevel":
        return 2
    if kind == "Precompiled" and step.get("precompiled_charsmap"):
        # a search tree, its size in front, then what letters are replaced with, each ended by a zero
        try:
            table = base64.b64decode(step["precompiled_charsmap"], validate=True)
            [size] = struct.unpack_from("<I", table)
            table[4 + size :].decode()
        except (ValueError, TypeError, struct.error) as problem:
            raise ValueError(f"{path.name}: its precompiled_charsmap is damaged ({problem})") from problem
        return max(1, *map(len, table[4 + size :].split(b"\0")), 1)
    return 1
