"""Compute content digests of remote inputs, several at a time and ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from ....pipeline.files.remote import is_remote
from ..locations import File
from .entries import Entries, Entry

_MOST_AT_ONCE = 32
_MOST_BYTES = 2**31
"""Of contents in memory at once, were each as large as it may be."""


class DigestsAhead:
    """The entries of a place one by one; digests of those that lie elsewhere are begun before they are asked for."""

    def __init__(self, entries: Entries, count: int, digest: Callable[[Entry], bytes], max_bytes: int) -> None:
        """
        Args:
            digest: called in threads for files that lie elsewhere, and for all others when they are asked for.
            max_bytes: of one content.
        """
        self._entries, self._count, self._digest = entries, count, digest
        self._at_once = max(1, min(_MOST_AT_ONCE, _MOST_BYTES // max_bytes))
        self._pool: ThreadPoolExecutor | None = None
        self._waiting = deque[tuple[Entry, Future[bytes] | None]]()

    @contextmanager
    def running(self) -> Iterator[Iterator[tuple[Entry, Callable[[], bytes]]]]:
        """The entries in order, each with what returns or raises its digest."""
        try:
            yield self._run()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def _run(self) -> Iterator[tuple[Entry, Callable[[], bytes]]]:
        begun = 0
        for at in range(self._count):
            while begun < min(self._count, at + 1 + 2 * self._at_once) and (begun <= at or self._pool is not None):
                self._waiting.append(self._begin(self._entries.entry(begun)))
                begun += 1
            entry, future = self._waiting.popleft()
            yield entry, (lambda entry=entry: self._digest(entry)) if future is None else future.result

    def _begin(self, entry: Entry) -> tuple[Entry, Future[bytes] | None]:
        if entry.problem is not None or not isinstance(entry.location, File) or not is_remote(entry.location.path):
            return entry, None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._at_once, "fetch")
        return entry, self._pool.submit(self._digest, entry)
