"""What is known of many objects that are asked for one by one: folders that are asked about often are listed.

A list of images names objects of a few folders. To look at each is a request; a page of a listing tells of a thousand.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from .bucket import Bucket
from .place import Entry

LIST_FROM = 32
"""Looks into a folder before it is listed."""
_OBJECTS_A_LOOK = 64
"""A listing may have so many times as many objects as there were looks: a page has a thousand, and takes one's time."""
_KEPT_S = 60.0
"""A listing counts so long, as objects may change meanwhile."""
_SHARE = 20
"""Or so many times as long as it took."""
_MOST_FOLDERS = 1000


@dataclass(slots=True)
class _Folder:
    looks: int = 0
    list_at: int = LIST_FROM
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ListedEntries:
    """`Bucket.entry` for many objects. Thread-safe."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._folders: dict[str, _Folder] = {}

    def entry(self, name: str) -> Entry | None:
        """What is known of one object, a minute ago or now; None where there is none. Raises as `Bucket.entry`."""
        where = name.rpartition("/")[0]
        if len(self._folders) > _MOST_FOLDERS:
            self._folders.clear()
        folder = self._folders.setdefault(where, _Folder())
        if folder.until < time.monotonic() and folder.lock.acquire(blocking=False):  # others look at theirs meanwhile
            try:
                self._list(where, folder)
            finally:
                folder.lock.release()
        if folder.until >= time.monotonic() and (entry := folder.entries.get(name)) is not None:
            return entry
        return self._bucket.entry(name)

    def _list(self, where: str, folder: _Folder) -> None:
        folder.looks += 1
        if folder.looks < folder.list_at:
            return
        began = time.monotonic()
        entries = self._bucket.entries_within(where, _OBJECTS_A_LOOK * folder.looks)
        if entries is None:
            folder.list_at = 4 * folder.looks
            return
        folder.entries = {entry.name: entry for entry in entries}
        folder.until = time.monotonic() + max(_KEPT_S, _SHARE * (time.monotonic() - began))
