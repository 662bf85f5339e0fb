"""The keys that were taken out of a store on purpose: a withdrawn licence, an opt-out, a wrong folder.

A list in dropped/ is a text file of keys, one a line, named by the SHA-256 of its content. Once it is there, its keys
are invisible to every reader, no copy brings them back, and precompute does not make them again. Taking their bytes out
of the payloads comes after that (drop.py) and may be interrupted: a key never comes back to life.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np

from ...errors import DamagedShardError
from ...files.changed import changed_by_a_tool
from ...files.places.place import Place
from ...latents.keys import KEY_DIGITS, is_key
from ..records import damaged, unreadable
from .packed_keys import Keys, is_in, pack_keys, unpack_keys

DROPPED = "dropped"
_LIST_NAME = re.compile(r"[0-9a-f]{64}\.txt")
_LINE_BYTES = KEY_DIGITS + 1
_MAX_KEYS = 2**20
"""Of one list: 33 MiB."""
_LIMIT_BYTES = 64 * 2**20


class DroppedKeys:
    """What a reader hides."""

    def __init__(self, store: Place) -> None:
        self._store = store
        self._lists: list[str] = []
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
        salvaged = [pack_keys(salvage(self._store, name)) for name in bad]
        sound = (_read(self._store, name) for name in lists if name not in bad)
        self.keys = np.unique(np.concatenate([pack_keys([]), *salvaged, *sound]))
        self._lists, self.damage = lists, tuple(bad.values())


def add_dropped(store: Place, keys: Iterable[str]) -> None:
    """Drop keys: from here on no reader sees them. Durable, list by list."""
    lines = sorted(set(keys))
    for start in range(0, len(lines), _MAX_KEYS):
        content = "".join(f"{key}\n" for key in lines[start : start + _MAX_KEYS]).encode()
        name = f"{hashlib.sha256(content).hexdigest()}.txt"
        with store.writing():
            store.create(f"{DROPPED}/{name}", content)


def remove_dropped(store: Place, keys: Iterable[str]) -> None:
    """Undo a drop: precompute may make these keys again. Lists that name them give way to lists that do not."""
    undone = np.unique(pack_keys(sorted(set(keys))))
    for name in _lists(store):
        listed = _read(store, name)
        if (hits := is_in(listed, undone)).any():
            add_dropped(store, unpack_keys(listed[~hits]))
            with store.writing():
                store.remove([name])


def check_dropped(store: Place) -> dict[str, str]:
    """The lists that are not what was written, by name, and what is wrong with each."""
    bad: dict[str, str] = {}
    for name in _lists(store):
        try:
            _read(store, name)
        except DamagedShardError as error:
            bad[name] = str(error)
    return bad


def salvage(store: Place, name: str) -> list[str]:
    """The lines of a damaged list that are keys. One that a flipped bit made is nobody's: dropping it does no harm."""
    try:
        lines = store.read(name, _LIMIT_BYTES).decode("ascii", "replace").split("\n")
    except (OSError, ValueError):
        return []
    return [line for line in lines if is_key(line)]


def _lists(store: Place) -> list[str]:
    try:
        return [f"{DROPPED}/{name}" for name in store.names(DROPPED) if _LIST_NAME.fullmatch(name)]
    except OSError as error:
        raise unreadable(store.location(DROPPED), None, error) from error


def _read(store: Place, name: str) -> Keys:
    try:
        content = store.read(name, _LIMIT_BYTES)
        if name != f"{DROPPED}/{hashlib.sha256(content).hexdigest()}.txt":
            raise ValueError(changed_by_a_tool(content) or "its content does not match its name")
        lines = content.decode("ascii").splitlines()
        if not all(map(is_key, lines)):
            raise ValueError("a line is not a key")
        return pack_keys(lines)
    except ValueError as error:
        raise damaged(store.location(name), str(error)) from error
    except OSError as error:
        raise unreadable(store.location(name), None, error) from error
