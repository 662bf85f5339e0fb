"""The keys that were taken out of a store on purpose: a withdrawn licence, an opt-out, a wrong folder.

A list in dropped/ is a text file of keys, one a line, named by the SHA-256 of its content. Once it is there, its keys
are invisible to every reader, no copy brings them back, and precompute does not make them again. Taking their bytes out
of the payloads comes after that (drop.py) and may be interrupted: a key never comes back to life.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import DamagedShardError
from ..files.atomic import made_folder, publish, remove, writing
from ..files.open_files import list_folder
from ..files.plain import read_file
from ..latents.keys import KEY_DIGITS, is_key
from .packed_keys import Keys, is_in, pack_keys, unpack_keys
from .records import damaged, unreadable

DROPPED = "dropped"
_LIST_NAME = re.compile(r"[0-9a-f]{64}\.txt")
_LINE_BYTES = KEY_DIGITS + 1
_MAX_KEYS = 2**20
"""Of one list: 33 MiB."""
_LIMIT_BYTES = 64 * 2**20


class DroppedKeys:
    """What a reader hides."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._lists: list[Path] = []
        self.keys = pack_keys([])
        """In order."""
        self.damage: tuple[str, ...] = ()

    def refresh(self, *, tolerate_damage: bool) -> None:
        """Read the lists anew where there are others: a list never changes.

        Args:
            tolerate_damage: note a damaged list in `damage`, and hide what can still be read of it.
        Raises:
            DamagedShardError: a list is not what was written, and that is not tolerated.
        """
        try:
            lists = _lists(self._store)
        except DamagedShardError as error:
            if not tolerate_damage:
                raise
            self.damage = (str(error),)
            return
        if lists == self._lists:
            return
        bad = check_dropped(self._store) if tolerate_damage else {}
        salvaged = [pack_keys(salvage(path)) for path in bad]
        self.keys = np.unique(np.concatenate([pack_keys([]), *salvaged, *(_read(p) for p in lists if p not in bad)]))
        self._lists, self.damage = lists, tuple(bad.values())


def add_dropped(store: Path, keys: Iterable[str]) -> None:
    """Drop keys: from here on no reader sees them. Durable, list by list."""
    lines = sorted(set(keys))
    for start in range(0, len(lines), _MAX_KEYS):
        content = "".join(f"{key}\n" for key in lines[start : start + _MAX_KEYS]).encode()
        name = f"{hashlib.sha256(content).hexdigest()}.txt"
        with writing(store), made_folder(store, store / DROPPED):
            publish(store / "tmp", store / DROPPED / name, content, within=store)


def remove_dropped(store: Path, keys: Iterable[str]) -> None:
    """Undo a drop: precompute may make these keys again. Lists that name them give way to lists that do not."""
    undone = np.unique(pack_keys(sorted(set(keys))))
    for path in _lists(store):
        listed = _read(path)
        if (hits := is_in(listed, undone)).any():
            add_dropped(store, unpack_keys(listed[~hits]))
            with writing(store):
                remove(path, within=store)


def check_dropped(store: Path) -> dict[Path, str]:
    """The lists that are not what was written, and what is wrong with each."""
    bad: dict[Path, str] = {}
    for path in _lists(store):
        try:
            _read(path)
        except DamagedShardError as error:
            bad[path] = str(error)
    return bad


def salvage(path: Path) -> list[str]:
    """The lines of a damaged list that are keys. One that a flipped bit made is nobody's: dropping it does no harm."""
    try:
        lines = read_file(path, _LIMIT_BYTES, within=path.parent.parent).decode("ascii", "replace").split("\n")
    except (OSError, ValueError):
        return []
    return [line for line in lines if is_key(line)]


def _lists(store: Path) -> list[Path]:
    try:
        return sorted(path for path in list_folder(store / DROPPED) if _LIST_NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(store / DROPPED, None, error) from error


def _read(path: Path) -> Keys:
    try:
        content = read_file(path, _LIMIT_BYTES, within=path.parent.parent)
        if hashlib.sha256(content).hexdigest() != path.stem:
            raise ValueError("its content does not match its name")
        lines = content.decode("ascii").splitlines()
        if not all(map(is_key, lines)):
            raise ValueError("a line is not a key")
        return pack_keys(lines)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise unreadable(path, None, error) from error
