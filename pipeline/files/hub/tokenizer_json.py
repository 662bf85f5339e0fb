"""Check the parts of a tokenizer.json that rewrite texts or add to them: a few steps that multiply fill any memory."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..file_facts import FileFacts, facts_of
from ..limits import MAX_ADDED_TOKENS, MAX_TEXT_GROWTH, MAX_TOKEN_LETTERS, MAX_TOKENIZER_BYTES
from ..plain import read_json

_BEFORE = ("normalizer", "pre_tokenizer")
_AFTER = ("decoder",)


def check_tokenizer_json(path: Path) -> None:
    """Read the steps that lengthen a text, without running them; of a file that has not changed since, only once.

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
    if (added := sum(map(_added, _steps(tokenizer.get("post_processor"))))) > MAX_ADDED_TOKENS:
        raise ValueError(
            f"{path.name}: its post_processor adds {added:,} tokens to each text; the limit is {MAX_ADDED_TOKENS:,}, "
            "and known tokenizers add two or three"
        )
    if (longest := max(map(len, _tokens(tokenizer)), default=0)) > MAX_TOKEN_LETTERS:
        raise ValueError(f"{path.name} has a token of {longest:,} letters; the limit is {MAX_TOKEN_LETTERS:,}")


def _tokens(tokenizer: dict[str, Any]) -> Iterator[str]:
    vocabulary = _dict(tokenizer.get("model")).get("vocab")
    yield from _dict(vocabulary)
    listed = [*(next(iter(_list(entry)), None) for entry in _list(vocabulary))]  # of Unigram: [token, score]
    listed += [_dict(entry).get("content") for entry in _list(tokenizer.get("added_tokens"))]
    yield from (token for token in listed if isinstance(token, str))


def _added(step: dict[str, Any]) -> int:
    """How many tokens a step puts around one text, or two: pieces times the ids of each."""
    if step.get("type") != "TemplateProcessing":
        return 0
    tokens = _dict(step.get("special_tokens"))
    count = 0
    for piece in (*_steps(step.get("single")), *_steps(step.get("pair"))):
        count += len(_list(_dict(tokens.get(str(piece.get("id")))).get("ids")))
    return count


def _dict(value: object) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast(list[object], value) if isinstance(value, list) else []


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
