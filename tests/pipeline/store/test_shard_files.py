"""Reading from many threads, after a fork, and with few descriptors."""

import gc
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.files import open_files as limits

from ...miniatures.store import create, expected, fill, key


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_read_right_while_files_are_opened_and_closed_under_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "allowance", lambda _keeper, _wanted: 2)
    store = create(tmp_path, shard_size=1)
    fill(store, 12)
    gc.collect()  # stores of earlier tests
    before = open_files()

    def reads(seed: int) -> None:
        for numbers in np.random.default_rng(seed).integers(0, 12, (40, 5)).tolist():
            np.testing.assert_array_equal(store.read([key(n) for n in numbers]), expected(store, numbers))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reads, range(8)))
    assert open_files() - before <= 2
    store.close()
    assert open_files() == before
    reads(0)
    del store, reads
    assert open_files() == before


def test_a_forked_process_goes_on_reading(tmp_path: Path) -> None:
    store = create(tmp_path, shard_size=2)
    fill(store, 6)
    store.read([key(0)])
    payload_lock = store._payloads._lock
    payload_lock.acquire()  # as if another thread were inside at the moment of the fork
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        same = np.array_equal(store.read(store.keys), expected(store, range(6)))
        os._exit(0 if same else 1)
    payload_lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(store.read(store.keys), expected(store, range(6)))
