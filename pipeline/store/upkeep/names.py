"""Verify by names: look at many shards at once, and tell apart those that are beyond doubt.

Many times as fast as parsing each record, which then finds out more of the others. A record beyond doubt has its seal,
which is the one that the index was made from, and the index has its keys.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...files.inside import require_inside
from ...files.places.folder import Folder
from ...files.places.place import Place
from ...files.sealed import unseal
from ...latents.keys import KEY_DIGITS
from ..latent_store import LatentStore
from ..records import RECORD_LIMIT_BYTES, seal_of

_LOOK = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
"""Where Linux has it, a file is found and looked at without being opened."""
_NO_LINK = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
_BEFORE_KEYS, _BETWEEN_KEYS, _AFTER_KEYS = b'"keys":["', '","', b'"]'


class Stated(NamedTuple):
    """What a sound record states."""

    rows: int
    bytes: int
    """Of the payload."""


def sound_records(store: LatentStore, numbers: Sequence[int]) -> dict[int, Stated]:
    """Which of some shards have a record that is beyond doubt, and what it states. A few hundred at a time."""
    some = store.shards.some(np.array(numbers, np.int64))
    digits = some.keys.tobytes().hex(",", KEY_DIGITS // 2).replace(",", _BETWEEN_KEYS).encode()
    width = KEY_DIGITS + len(_BETWEEN_KEYS)
    sound: dict[int, Stated] = {}
    if not store.place.is_local:
        return sound
    try:
        folder = os.open(store.path / "commits", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return sound
    try:
        end = 0
        facts = zip(some.numbers.tolist(), some.rows.tolist(), some.bytes.tolist(), some.seals.tolist(), strict=True)
        for number, rows, size, seal in facts:
            start, end = end, end + width * rows
            keys = digits[start : end - len(_BETWEEN_KEYS)]
            if rows and _is_sound(folder, number, keys, seal):
                sound[number] = Stated(rows, size)
    finally:
        os.close(folder)
    return sound


def is_in_place(store: LatentStore, number: int, size: int) -> bool:
    """Whether the payload of a shard is a file of this size inside the store."""
    payload = f"{store.path}/{store.layout.payload_name(number)}"
    try:
        fd = os.open(payload, _LOOK)
        try:
            status = os.fstat(fd)
            require_inside(store.path, payload, fd)
            return stat.S_ISREG(status.st_mode) and status.st_size == size
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return False


def is_there(place: Place, name: str) -> bool:
    """Whether something has this name, whatever it is."""
    return os.path.lexists(place.path / name) if isinstance(place, Folder) else place.entry(name) is not None


def is_file(place: Place, name: str) -> bool:
    """Whether a regular file has this name."""
    try:
        return place.entry(name) is not None
    except ValueError:
        return False


def _is_sound(folder: int, number: int, keys: bytes, seal: int) -> bool:
    try:
        fd = os.open(f"{number}.json", _NO_LINK, dir_fd=folder)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > RECORD_LIMIT_BYTES:
                return False
            text = os.read(fd, status.st_size + 1)
        finally:
            os.close(fd)
        unseal(text)
    except (OSError, ValueError):
        return False
    at = text.rfind(_BEFORE_KEYS) + len(_BEFORE_KEYS)  # the last: what is above them may hold anything
    return seal_of(text) == seal and text.startswith(keys, at) and text.startswith(_AFTER_KEYS, at + len(keys))
