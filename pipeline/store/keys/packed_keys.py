"""Keys as arrays of sixteen bytes each: millions take a fourth of the memory of texts, and a tenth of the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from ...latents.keys import KEY_DIGITS

_KEY = np.dtype(f"S{KEY_DIGITS // 2}")
_HEX_DIGITS = b"0123456789abcdef"

Keys = NDArray[np.bytes_]
"""(N,) of sixteen bytes each. numpy orders and compares these like the keys' digits."""
AnyKeys = Sequence[str] | Keys
"""Keys as digits, or packed."""
Halves = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""The first and the last eight bytes of keys, as numbers in the order of the digits."""


def is_packed(keys: AnyKeys) -> TypeGuard[Keys]:
    """Whether keys are packed already."""
    return isinstance(keys, np.ndarray) and keys.dtype == _KEY


def pack_keys(keys: AnyKeys) -> Keys:
    """The bytes of some keys."""
    return keys if is_packed(keys) else np.frombuffer(bytes.fromhex("".join(map(str, keys))), _KEY)


def unpack_keys(keys: Keys) -> tuple[str, ...]:
    """The digits of packed keys."""
    digits = keys.tobytes().hex()
    return tuple(digits[at : at + KEY_DIGITS] for at in range(0, len(digits), KEY_DIGITS))


def split_halves(keys: Keys) -> Halves:
    """The halves of packed keys."""
    numbers = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    return numbers[:, 0].astype(np.uint64), numbers[:, 1].astype(np.uint64)


def join_halves(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> Keys:
    """The packed keys of halves."""
    halves = np.empty((len(high), 2), ">u8")
    halves[:, 0], halves[:, 1] = high, low
    return halves.view(_KEY)[:, 0]


def first_of_each(keys: Keys) -> NDArray[np.int64]:
    """The positions of keys but for those that were there before, ascending."""
    high, low = split_halves(keys)
    order = key_order(high, low)
    high, low = high[order], low[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return np.sort(order[is_first])


def is_in(keys: Keys, ordered: Keys) -> NDArray[np.bool_]:
    """Which of some keys are among others, which are in order."""
    if not len(ordered) or not len(keys):
        return np.zeros(len(keys), bool)
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return ordered[places] == keys


def are_keys(keys: Sequence[str]) -> bool:
    """Whether all are keys; all digits at once, as there may be millions."""
    if any(len(key) != KEY_DIGITS for key in keys):
        return False
    digits = "".join(keys)
    return digits.isascii() and not digits.encode().translate(None, _HEX_DIGITS)


def key_order(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What sorts keys; equal ones stay in the order of their rows."""
    order = np.argsort(high, kind="stable")  # five times faster than by both halves, and nearly always enough
    start = high[order]
    alike = np.concatenate([[False], start[1:] == start[:-1], [False]])
    if alike.any():
        positions = np.flatnonzero(alike[1:] | alike[:-1])
        among = order[positions]
        order[positions] = among[np.lexsort((among, low[among], high[among]))]
    return order
