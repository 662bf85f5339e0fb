"""Two logs of a store's inputs: the key of each source, and the inputs that failed.

Nothing in them decides whether a latent exists.
"""

import errno
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from ..errors import DamagedShardError
from ..files.atomic import publish, remove, replace
from ..files.open_files import list_folder
from ..files.plain import open_file, read_file
from ..files.sealed import seal, unseal
from ..latents.keys import is_key
from .records import damaged, unreadable

_FORMAT = 1
"""Of a failure's file, whatever the format of the store."""
_FAILURE_LIMIT_BYTES = 2**20
_SOURCES_LIMIT_BYTES = 2**32
_SOURCE_LIMIT_BYTES = 2**20
"""A line: longer than any path and prompt, of whose characters JSON makes up to twelve bytes each."""
_SOURCES_NAME = re.compile(r"[0-9a-f]{64}\.jsonl")
_FAILURE_NAME = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One input that has no latent, and why."""

    source: str
    """The input as the user named it, for people: nothing opens it. Any text, also names that are not UTF-8."""
    key: str | None
    """None where not even its bytes could be read."""
    reason: str
    """A `FailureReason`, or a word that another release wrote."""
    message: str
    attempts: int

    @property
    def file_name(self) -> str:
        """One ledger row an input: by its key, so that copies of an image share it, else by its source."""
        identity = f"source {self.source}" if self.key is None else f"key {self.key}"
        return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:32] + ".json"


def write_failure(store: Path, failure: Failure) -> None:
    """Keep a failure; an earlier one of the same input gives way."""
    content = seal({**asdict(failure), "format": _FORMAT})
    replace(store / "tmp", store / "failed" / failure.file_name, content, within=store)


def remove_failure(store: Path, failure: Failure) -> None:
    """Forget a failure, if it is known."""
    remove(store / "failed" / failure.file_name, within=store)


def read_failures(store: Path) -> list[Failure]:
    """All failures, by source.

    Raises:
        DamagedShardError: a row is not what was written.
    """
    failures: list[Failure] = []
    for path in _files(store / "failed", _FAILURE_NAME):
        with suppress(FileNotFoundError):  # cleared meanwhile
            failures.append(_read_failure(path))
    return sorted(failures, key=lambda failure: (failure.source, failure.key or ""))


def write_sources(
    store: Path,
    rows: Iterable[tuple[str, str]],
    prompts: Mapping[str, str] | None = None,
    starts: Mapping[str, float] | None = None,
) -> None:
    """Keep which source is which key; the same set twice is one file, named by its content.

    Args:
        prompts: key -> the prompt that is part of it, where samples have their own.
        starts: key -> the second of a video at which its clip or picture is, where one was chosen.
    """
    more = {"prompt": prompts or {}, "start_s": starts or {}}
    lines: list[str] = []
    for source, key in sorted(set(rows)):
        stated = {name: values[key] for name, values in more.items() if key in values}
        lines.append(json.dumps({"source": source, "key": key} | stated))
    if lines:
        content = ("\n".join(lines) + "\n").encode()
        target = store / "sources" / f"{hashlib.sha256(content).hexdigest()}.jsonl"
        publish(store / "tmp", target, content, within=store)


def read_sources(store: Path) -> dict[str, tuple[str, ...]]:
    """The keys of every source ever recorded, in order of their digits.

    Raises:
        DamagedShardError: a file is not what was written.
    """
    keys_by_source: dict[str, set[str]] = {}
    for source, key, _, _ in _all_sources(store):
        keys_by_source.setdefault(source, set()).add(key)
    return {source: tuple(sorted(keys)) for source, keys in keys_by_source.items()}


def read_prompts(store: Path) -> dict[str, str]:
    """Key -> the prompt that is part of it, where samples have their own; raises as `read_sources`."""
    return {key: prompt for _, key, prompt, _ in _all_sources(store) if prompt is not None}


def read_starts(store: Path) -> dict[str, float]:
    """Key -> the second of a video at which its clip or picture is, where one was chosen; raises as `read_sources`."""
    return {key: start_s for _, key, _, start_s in _all_sources(store) if start_s is not None}


def check(store: Path) -> dict[Path, str]:
    """The damaged files of both logs, and what is wrong with each."""
    bad: dict[Path, str] = {}
    for folder, name, read in (("failed", _FAILURE_NAME, _read_failure), ("sources", _SOURCES_NAME, _read_sources)):
        for path in _files(store / folder, name):
            try:
                read(path)
            except FileNotFoundError:
                continue
            except DamagedShardError as error:
                bad[path] = str(error)
    return bad


def _files(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Ours, by name; a folder that a copy left out, as it was empty, is empty."""
    try:
        return sorted(path for path in list_folder(folder) if name.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, None, error) from error


def _all_sources(store: Path) -> Iterator[tuple[str, str, str | None, float | None]]:
    for path in _files(store / "sources", _SOURCES_NAME):
        with suppress(FileNotFoundError):  # set aside meanwhile
            yield from _read_sources(path)


def _read_failure(path: Path) -> Failure:
    try:
        return _parse_failure(unseal(read_file(path, _FAILURE_LIMIT_BYTES, within=path.parent.parent)))
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_sources(path: Path) -> list[tuple[str, str, str | None, float | None]]:
    try:
        rows: list[tuple[str, str, str | None, float | None]] = []
        digest = hashlib.sha256()
        with open_file(path, _SOURCES_LIMIT_BYTES, within=path.parent.parent) as file:
            while line := file.readline(_SOURCE_LIMIT_BYTES):
                digest.update(line)
                rows.append(_parse_source(line))
        if digest.hexdigest() != path.stem:
            raise ValueError("its content does not match its name")
        return rows
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> Exception:
    moved_away = error.errno == errno.ENOENT and not path.is_symlink()
    return error if moved_away else unreadable(path, None, error)


def _parse_failure(text: bytes) -> Failure:
    fields = _object(text)
    if fields.pop("format", None) != _FORMAT:
        raise ValueError(f"it is not of format {_FORMAT}")
    source, key, attempts = fields.get("source"), fields.get("key"), fields.get("attempts")
    reason, message = fields.get("reason"), fields.get("message")
    if not (isinstance(source, str) and isinstance(reason, str) and isinstance(message, str)):
        raise ValueError("source, reason or message is not a text")
    if not (key is None or is_key(key)) or type(attempts) is not int or len(fields) != 5:
        raise ValueError("key, attempts or the number of fields is wrong")
    return Failure(source=source, key=cast(str | None, key), reason=reason, message=message, attempts=attempts)


def _parse_source(line: bytes) -> tuple[str, str, str | None, float | None]:
    row = _object(line)
    source, key, prompt, start_s = row.get("source"), row.get("key"), row.get("prompt"), row.get("start_s")
    if not isinstance(source, str) or not is_key(key) or not isinstance(prompt, str | None):
        raise ValueError("a row is not a source and its key")
    if start_s is not None and (not isinstance(start_s, int | float) or not 0 <= start_s < math.inf):
        raise ValueError("the start of a row is no number of seconds")
    return source, cast(str, key), prompt, start_s


def _object(text: bytes) -> dict[str, object]:
    value: object = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return cast(dict[str, object], value)
