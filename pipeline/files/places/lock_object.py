"""A lock in a bucket, which has none: an object that only one process can create, and that says who it was.

    LOCK            a `Holder` as JSON: the lock is held
    LOCK-<hash>     another `Holder`, who broke the lock whose object has this SHA-256; it holds it now, and may be
                    broken in turn

It outlives a killed process, so somebody who knows that the process has ended breaks it. Of several that try, one
creates the object of that name. To free the lock is to remove LOCK: what stays behind it means nothing from then on.
A process whose lock was broken, though it was only slow, finds out before it takes anything away (`require_held`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ...errors import StoreError, StoreLockedError
from ...messages import printable
from ..lock_holder import Holder
from .place import Place

LOCK = "LOCK"
_LIMIT_BYTES = 4096
_MOST_BROKEN = 100
"""Times that one lock was broken."""
_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))

_held: dict[str, list[str]] = {}
"""Place -> the names and hashes of the lock objects that this process went by when it got the lock."""


class _Link(NamedTuple):
    """One of the objects of a lock: the first, or who broke the one before."""

    name: str
    content: bytes
    modified: float

    @property
    def next_name(self) -> str:
        return f"{LOCK}-{hashlib.sha256(self.content).hexdigest()[:32]}"

    @property
    def holder(self) -> Holder | None:
        """None where it does not say."""
        try:
            return Holder.model_validate_json(self.content)
        except ValueError:
            return None


@contextmanager
def held_object(place: Place, *, busy: str, break_lock: bool = False) -> Generator[None]:
    """Hold the lock of a place inside the block.

    Args:
        busy: the error message if another process holds it.
        break_lock: take it from a process that has ended; of this machine, one that runs keeps it.
    Raises:
        StoreLockedError: another process holds it.
        StoreError: the place does not answer.
    """
    mine = _acquire(place, busy, break_lock)
    _held[str(place)] = mine
    try:
        yield
    except BaseException:
        with suppress(StoreError):  # what went wrong counts; the lock says whose it was
            _release(place, mine)
        raise
    finally:
        del _held[str(place)]
    _release(place, mine)


def require_held(place: Place) -> None:
    """Make sure, before something is taken away, that nobody has broken the lock that this process holds, if any.

    Raises:
        StoreError: somebody has.
    """
    if (mine := _held.get(str(place))) is not None and _fingerprint(_chain(place)) != mine:
        raise StoreError(
            f"the lock of {place} was broken by somebody else while this command held it, so it changes nothing more. "
            "When theirs has ended, run the same command again"
        )


def lock_of(place: Place) -> str | None:
    """Which other process holds the lock of a place, for how long, and what to do; None where none does."""
    chain = _chain(place)
    return _sentence(place, chain[-1]) if chain and _fingerprint(chain) != _held.get(str(place)) else None


def freed_locks(place: Place) -> list[str]:
    """The names of objects that locks which are free by now have left."""
    used = {link.name for link in _chain(place)}
    return [name for name in place.names("") if name.startswith(f"{LOCK}-") and name not in used]


def _acquire(place: Place, busy: str, break_lock: bool) -> list[str]:
    content = Holder.this().model_dump_json().encode()
    if place.create(LOCK, content):
        return _fingerprint([_Link(LOCK, content, 0.0)])
    chain = _chain(place)
    if not chain:  # freed meanwhile
        raise StoreLockedError(busy)
    last = chain[-1]
    if not break_lock:
        raise StoreLockedError(f"{busy}. {_sentence(place, last)}")
    if (holder := last.holder) is not None and holder.is_alive():
        raise StoreLockedError(
            f"{busy}. {place.location(last.name)} is of process {holder.pid}, which runs on this machine: end it first"
        )
    mine = _Link(last.next_name, content, 0.0)
    if not place.create(mine.name, content):
        raise StoreLockedError(f"{busy}. Somebody else has just broken the lock of the one before")
    if _fingerprint(_chain(place)) != (expected := _fingerprint([*chain, mine])):  # freed and taken meanwhile
        place.remove([mine.name])
        raise StoreLockedError(busy)
    return expected


def _release(place: Place, mine: list[str]) -> None:
    chain = _chain(place)
    if _fingerprint(chain) == mine:
        place.remove_once([LOCK])
        place.remove(link.name for link in chain[1:])


def _chain(place: Place) -> list[_Link]:
    """The objects of the lock, in order; none where it is free."""
    chain: list[_Link] = []
    name = LOCK
    while len(chain) < _MOST_BROKEN and (entry := place.entry(name)) is not None:
        try:
            content = place.read(name, _LIMIT_BYTES)
        except FileNotFoundError:  # freed meanwhile
            break
        except ValueError:  # not ours
            content = b""
        chain.append(_Link(name, content, entry.modified))
        name = chain[-1].next_name
    return chain


def _fingerprint(chain: list[_Link]) -> list[str]:
    return [f"{link.name} {link.next_name}" for link in chain]


def _sentence(place: Place, link: _Link) -> str:
    age, holder = _age(place.now() - link.modified), link.holder
    location = place.location(link.name)
    advice = "run `theworld cache gc STORE --apply --break-lock`, or the same command with --break-lock"
    if holder is None:
        return f"{location} has been there for {age} and does not say who holds it. If nobody is at work, {advice}"
    who = f"{location}: process {holder.pid} on {printable(holder.host)} has held the lock for {age}"
    if holder.is_gone():
        return f"{who}, and has ended: {advice}"
    return f"{who}. If you know that this process has ended, {advice}"


def _age(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
