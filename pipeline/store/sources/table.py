"""Which input is which key: rows that only ever become more, kept as what is new.

Each file in sources/ is named by the SHA-256 of its content, a JSON object a line. A run adds the rows that no file has
yet, in files of at most 64 MiB, so a folder that grows every day costs its size once. Nothing here decides whether a
latent exists.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from json.encoder import encode_basestring_ascii
from typing import NamedTuple, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from ...errors import DamagedShardError
from ...files.changed import changed_by_a_tool
from ...files.places.place import Place
from ...latents.keys import is_key
from ..log_files import log_files, missing_or_unreadable
from ..records import damaged

FILE_BYTES = 64 * 2**20
"""Of a file at most, unless one row alone has more."""
SOURCES = "sources"
"""The folder."""
SOURCES_NAME = re.compile(r"[0-9a-f]{64}\.jsonl")
_READ_LIMIT_BYTES = 2**40
"""An older release wrote a whole listing into one file; it is read row by row."""
_LINE_LIMIT_BYTES = 2**20
"""Longer than any path and prompt, of whose characters JSON makes up to twelve bytes each."""
_BLOCK_BYTES = FILE_BYTES // 4
"""Read at a time: most files as a whole."""
_BLOCK_ROWS = 2**18


class SourceRow(NamedTuple):
    """One input of some run."""

    source: str
    """The input as the user named it."""
    key: str
    prompt: str | None
    """The prompt that is part of the key, where samples have their own."""
    start_s: float | None
    """The second of a video at which its clip or picture is, where one was chosen."""


def write_sources(
    store: Place,
    rows: Iterable[tuple[str, str]],
    prompts: Mapping[str, str] | None = None,
    starts: Mapping[str, float] | None = None,
) -> int:
    """Keep which source is which key. Rows that a file has are not written again.

    Args:
        prompts, starts: key -> what `SourceRow` says of it.
    Returns:
        How many rows were new.
    """
    known = _known_rows(store)
    count = 0
    pending: list[bytes] = []
    pending_bytes = 0
    rest = iter(rows)
    while block := list(islice(rest, _BLOCK_ROWS)):
        lines = [_line(source, key, prompts or {}, starts or {}) for source, key in block]
        digests, first = np.unique(_digests(lines), return_index=True)
        is_new = ~_is_in(digests, known)
        known = _merge(known, digests[is_new])
        ats: list[int] = np.sort(first[is_new]).tolist()
        for at in ats:
            if pending_bytes + len(lines[at]) + 1 > FILE_BYTES and pending:
                _place(store, pending)
                pending, pending_bytes = [], 0
            pending.append(lines[at])
            pending_bytes += len(lines[at]) + 1
            count += 1
    if pending:
        _place(store, pending)
    return count


def read_source_rows(store: Place) -> Iterator[SourceRow]:
    """Every row ever recorded, some perhaps twice, while little is kept in memory.

    Raises:
        DamagedShardError: a file is not what was written; its rows were not handed out.
    """
    for name in log_files(store, SOURCES, SOURCES_NAME):
        with suppress(FileNotFoundError):  # set aside meanwhile
            yield from read_sources_file(store, name)


def read_sources(store: Place) -> dict[str, tuple[str, ...]]:
    """The keys of every source ever recorded, in order of their digits; raises as `read_source_rows`."""
    keys: dict[str, tuple[str, ...]] = {}
    for source, key, _, _ in read_source_rows(store):
        before = keys.get(source)
        if before is None:
            keys[source] = (key,)
        elif key not in before:
            keys[source] = tuple(sorted((*before, key)))
    return keys


def read_prompts(store: Place) -> dict[str, str]:
    """Key -> the prompt that is part of it, where samples have their own; raises as `read_source_rows`."""
    return {row.key: row.prompt for row in read_source_rows(store) if row.prompt is not None}


def read_starts(store: Place) -> dict[str, float]:
    """Key -> the second of a video at which its clip or picture is; raises as `read_source_rows`."""
    return {row.key: row.start_s for row in read_source_rows(store) if row.start_s is not None}


def read_sources_file(store: Place, name: str) -> Iterator[SourceRow]:
    """The rows of one file, which is checked as a whole before the first is handed out.

    Raises:
        DamagedShardError: it is not what was written.
        FileNotFoundError: somebody moved it away.
    """
    try:
        for line in _checked_lines(store, name):
            yield _parse(line)
    except (ValueError, RecursionError) as error:
        raise damaged(store.location(name), str(error)) from error
    except OSError as error:
        raise missing_or_unreadable(store, name, error) from error


def _checked_lines(store: Place, name: str) -> Iterator[bytes]:
    with store.open(name, _READ_LIMIT_BYTES) as file:
        digest, size = hashlib.sha256(), 0
        content = first = b""
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            first = first or block
            content = block if size == len(block) else b""
        if name != f"{SOURCES}/{digest.hexdigest()}.jsonl":
            raise ValueError(changed_by_a_tool(first) or "its content does not match its name")
        if content:
            yield from content.removesuffix(b"\n").split(b"\n")
            return
        file.seek(0)
        while line := file.readline(_LINE_LIMIT_BYTES):
            yield line.removesuffix(b"\n")


def _known_rows(store: Place) -> NDArray[np.uint64]:
    """The hashes of all rows that sound files have, in order."""
    known = np.empty(0, np.uint64)
    for name in log_files(store, SOURCES, SOURCES_NAME):
        with suppress(DamagedShardError, OSError, ValueError):  # its rows are written again
            known = _merge(known, np.unique(_digests(_checked_lines(store, name))))
    return known


def _digests(lines: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.fromiter(map(xxhash.xxh3_64_intdigest, lines), np.uint64)


def _is_in(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _merge(ordered: NDArray[np.uint64], more: NDArray[np.uint64]) -> NDArray[np.uint64]:
    merged = np.concatenate([ordered, more])
    merged.sort(kind="stable")  # of two runs: cheap
    return merged


def _line(source: str, key: str, prompts: Mapping[str, str], starts: Mapping[str, float]) -> bytes:
    """As `json.dumps` writes it, several times faster."""
    more = f', "prompt": {encode_basestring_ascii(prompts[key])}' if key in prompts else ""
    if key in starts:
        more += f', "start_s": {json.dumps(starts[key])}'
    return f'{{"source": {encode_basestring_ascii(source)}, "key": "{key}"{more}}}'.encode()


def _place(store: Place, lines: list[bytes]) -> None:
    content = b"".join(part for line in lines for part in (line, b"\n"))
    store.create(f"{SOURCES}/{hashlib.sha256(content).hexdigest()}.jsonl", content)


def _parse(line: bytes) -> SourceRow:
    value: object = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    row = cast(dict[str, object], value)
    source, key, prompt, start_s = row.get("source"), row.get("key"), row.get("prompt"), row.get("start_s")
    if not isinstance(source, str) or not is_key(key) or not isinstance(prompt, str | None):
        raise ValueError("a row is not a source and its key")
    if start_s is not None and (not isinstance(start_s, int | float) or not 0 <= start_s < math.inf):
        raise ValueError("the start of a row is no number of seconds")
    return SourceRow(source, cast(str, key), prompt, start_s)
