"""The log of a store's failures: which inputs have no latent, and why. Nothing in it decides whether a latent exists.

A file in failed/ holds what was noted at one time, a JSON object a line: that an input failed, or that its failure is
to be forgotten. It is named by the SHA-256 of its content and never changes. Of rows about one input the highest
version counts, so files may be merged, by several processes at once and in any order: small ones are, whenever a file
is written. An older release wrote a file an input (`<32 digits>.json`), of version 0.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

from ..errors import DamagedShardError
from ..files.changed import changed_by_a_tool
from ..files.places.place import Place
from ..files.sealed import unseal
from ..latents.keys import is_key
from .log_files import log_files, missing_or_unreadable
from .records import damaged
from .sources.table import FILE_BYTES, SOURCES, SOURCES_NAME, read_sources_file

_FORMAT = 1
_FOLDER = "failed"
_ROW_LIMIT_BYTES = 2**20
_NAME = re.compile(r"[0-9a-f]{32}\.json|[0-9a-f]{64}\.jsonl")
_TRIES = 16


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


class _Row(NamedTuple):
    """What was noted of an input, in the order in which one row gives way to another."""

    version: int
    is_failure: bool
    """False: its failure is to be forgotten."""
    failure: Failure

    @property
    def rank(self) -> tuple[int, bool, str]:
        return self.version, self.is_failure, repr(self.failure)


_Rows = Mapping[str, _Row]
"""By `Failure.file_name`."""


class FailureLog:
    """The failures of one store, as this process last saw them. Several processes may write at once."""

    def __init__(self, store: Place) -> None:
        self._store = store
        self._files: dict[str, _Rows] = {}
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()

    def failures(self) -> list[Failure]:
        """All failures, by source.

        Raises:
            DamagedShardError: a file is not what was written.
        """
        with self._lock:
            self._refresh(tolerate_damage=False)
            failures = [row.failure for row in self._rows.values() if row.is_failure]
        return sorted(failures, key=lambda failure: (failure.source, failure.key or ""))

    def record(self, failures: Iterable[Failure]) -> int:
        """Keep failures, durably, in one file. An earlier one of an input gives way; the same again is not written.

        Returns:
            How many were new.
        """
        with self._lock:
            self._refresh(tolerate_damage=True)
            new: dict[str, _Row] = {}
            for failure in failures:
                before = self._rows.get(failure.file_name)
                if before is None or not before.is_failure or before.failure != failure:
                    new[failure.file_name] = _Row(1 if before is None else before.version + 1, True, failure)
            self._write(new)
            return len(new)

    def clear(self, failures: Iterable[Failure]) -> None:
        """Forget failures, as far as they are known."""
        with self._lock:
            self._refresh(tolerate_damage=True)
            known = {failure.file_name: self._rows.get(failure.file_name) for failure in failures}
            self._write(
                {
                    name: _Row(row.version + 1, False, row.failure)
                    for name, row in known.items()
                    if row is not None and row.is_failure
                }
            )

    def _refresh(self, *, tolerate_damage: bool) -> None:
        for _ in range(_TRIES):
            names = set(log_files(self._store, _FOLDER, _NAME))
            if self._files.keys() - names:  # merged or set aside by others: what they said may be forgotten
                self._files = {name: rows for name, rows in self._files.items() if name in names}
                self._rows = _together(self._files.values())
            has_all = True
            for name in sorted(names - self._files.keys()):
                try:
                    self._files[name] = rows = read_failures_file(self._store, name)
                    _add(self._rows, rows)
                except FileNotFoundError:  # merged meanwhile: another file has its rows
                    has_all = False
                except DamagedShardError:
                    if not tolerate_damage:
                        raise
            if has_all:
                return

    def _write(self, new: dict[str, _Row]) -> None:
        """Write rows, and those of files that are not much larger, which are then removed."""
        if not new:
            return
        rows, merged = dict(new), [name for name in (f"{_FOLDER}/{name}" for name in new) if name in self._files]
        many = {name: others for name, others in self._files.items() if name.endswith(".jsonl")}
        for name, others in sorted(many.items(), key=lambda item: len(item[1])):
            if len(others) > 2 * len(rows):
                break
            _add(rows, others)
            merged.append(name)
        forgets = set(log_files(self._store, _FOLDER, _NAME)) == set(
            merged
        )  # no other file can bring back what is forgotten
        if forgets:
            rows = {name: row for name, row in rows.items() if row.is_failure}
        for content, part in _files_of(rows):
            name = f"{_FOLDER}/{hashlib.sha256(content).hexdigest()}.jsonl"
            self._store.create(name, content)
            self._files[name] = part
            merged = [other for other in merged if other != name]
        self._store.remove(merged)
        for name in merged:
            self._files.pop(name, None)
        if forgets:  # here too: another process begins such an input anew, at version 1
            self._rows = _together(self._files.values())
        else:
            _add(self._rows, new)


def write_failure(store: Place, failure: Failure) -> None:
    """Keep a failure; an earlier one of the same input gives way."""
    FailureLog(store).record([failure])


def read_failures(store: Place) -> list[Failure]:
    """All failures, by source; raises as `FailureLog.failures`."""
    return FailureLog(store).failures()


def check(store: Place, *, sources: Sequence[str] | None = None) -> dict[str, str]:
    """The damaged files of both logs, by name, and what is wrong with each.

    Args:
        sources: read only these of the sources; None reads all.
    """
    bad: dict[str, str] = {}
    for name in log_files(store, _FOLDER, _NAME):
        with suppress(FileNotFoundError):
            try:
                read_failures_file(store, name)
            except DamagedShardError as error:
                bad[name] = str(error)
    for name in log_files(store, SOURCES, SOURCES_NAME) if sources is None else sources:
        with suppress(FileNotFoundError):
            try:
                for _ in read_sources_file(store, name):
                    pass
            except DamagedShardError as error:
                bad[name] = str(error)
    return bad


def read_failures_file(store: Place, name: str) -> _Rows:
    """The rows of one file.

    Raises:
        DamagedShardError: it is not what was written.
        FileNotFoundError: somebody moved it away.
    """
    try:
        if name.endswith(".json"):
            row = _parse(unseal(store.read(name, _ROW_LIMIT_BYTES)))
            return {name.rpartition("/")[2]: row._replace(version=0)}
        content = store.read(name, FILE_BYTES + _ROW_LIMIT_BYTES)
        if name != f"{_FOLDER}/{hashlib.sha256(content).hexdigest()}.jsonl":
            raise ValueError(changed_by_a_tool(content) or "its content does not match its name")
        rows: dict[str, _Row] = {}
        for line in content.splitlines():
            row = _parse(line)
            _add(rows, {row.failure.file_name: row})
        return rows
    except (ValueError, RecursionError) as error:
        raise damaged(store.location(name), str(error)) from error
    except OSError as error:
        raise missing_or_unreadable(store, name, error) from error


def _add(rows: dict[str, _Row], others: _Rows) -> None:
    for name, row in others.items():
        if name not in rows or rows[name].rank < row.rank:
            rows[name] = row


def _together(files: Iterable[_Rows]) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for each in files:
        _add(rows, each)
    return rows


def _files_of(rows: _Rows) -> Iterable[tuple[bytes, _Rows]]:
    """The contents of files that hold these rows, and which each holds."""
    part: dict[str, _Row] = {}
    lines: list[bytes] = []
    size = 0
    for name, row in sorted(rows.items()):
        line = _line(row)
        if size + len(line) > FILE_BYTES and lines:
            yield b"".join(lines), part
            part, lines, size = {}, [], 0
        part[name] = row
        lines.append(line)
        size += len(line)
    if lines:
        yield b"".join(lines), part


def _line(row: _Row) -> bytes:
    fields: dict[str, object] = {"format": _FORMAT, "version": row.version, **asdict(row.failure)}
    if not row.is_failure:
        fields["forgotten"] = True
    return json.dumps(fields).encode() + b"\n"


def _parse(text: bytes) -> _Row:
    value: object = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    fields = cast(dict[str, object], value)
    if fields.pop("format", None) != _FORMAT:
        raise ValueError(f"it is not of format {_FORMAT}")
    version, is_forgotten = fields.pop("version", 0), fields.pop("forgotten", False)
    if type(version) is not int or not 0 <= version < 2**53 or not isinstance(is_forgotten, bool):
        raise ValueError("its version is wrong")
    source, key, attempts = fields.get("source"), fields.get("key"), fields.get("attempts")
    reason, message = fields.get("reason"), fields.get("message")
    if not (isinstance(source, str) and isinstance(reason, str) and isinstance(message, str)):
        raise ValueError("source, reason or message is not a text")
    if not (key is None or is_key(key)) or type(attempts) is not int or len(fields) != 5:
        raise ValueError("key, attempts or the number of fields is wrong")
    failure = Failure(source=source, key=cast(str | None, key), reason=reason, message=message, attempts=attempts)
    return _Row(version, not is_forgotten, failure)
