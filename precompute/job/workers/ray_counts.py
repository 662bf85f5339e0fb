"""Count the batches of tasks in progress: the driver reads the counts while the worker goes on.

first key of a task -> (samples it is done with, batches)
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from typing import Any, Protocol

Counted = dict[str, tuple[int, int]]

_PUT_S = 1.0
"""Between two counts that a worker writes to Ray's table: small batches take milliseconds."""
_ANSWER_S = 1.0


class Counts(Protocol):
    """The counts of all workers of a pool."""

    def put(self, first_key: str, samples: int, batches: int) -> None:
        """For a worker, after each batch of its task."""
        ...

    def read(self) -> Counted:
        """For the driver: the latest count of each worker, which may be of a task that has ended since."""
        ...


class LocalCounts:
    """Of the worker in this process."""

    def __init__(self) -> None:
        self._latest: Counted = {}

    def put(self, first_key: str, samples: int, batches: int) -> None:
        self._latest = {first_key: (samples, batches)}

    def read(self) -> Counted:
        return self._latest


class RayCounts:
    """Of the workers of one pool, wherever they run: a row a worker in Ray's own table, where the stop sign is too."""

    def __init__(self, pool: str) -> None:
        """
        Args:
            pool: name of its stop sign.
        """
        self._prefix = f"{pool}/count/"
        self._row = f"{self._prefix}{secrets.token_hex(8)}".encode()
        self._put_at = 0.0

    def put(self, first_key: str, samples: int, batches: int) -> None:
        now = time.monotonic()
        if now - self._put_at >= _PUT_S:
            self._put_at = now
            row = json.dumps([first_key, samples, batches]).encode()
            with suppress(Exception):  # for people alone; Ray ends the worker where its table is gone
                _table().internal_kv_put(self._row, row, True, timeout=_ANSWER_S)

    def read(self) -> Counted:
        """Nothing where Ray does not answer."""
        counted: Counted = {}
        with suppress(Exception):
            table = _table()
            if rows := table.internal_kv_keys(self._prefix.encode(), timeout=_ANSWER_S):
                for value in table.internal_kv_multi_get(rows, timeout=_ANSWER_S).values():
                    first_key, samples, batches = json.loads(value)
                    counted[first_key] = samples, batches
        return counted


def _table() -> Any:
    """Ray's client of it, whose calls can end in time: one that waits long for a table that is gone ends us."""
    from ray.experimental import internal_kv

    client = internal_kv.internal_kv_get_gcs_client()
    assert client is not None, "Ray is not up"
    return client
