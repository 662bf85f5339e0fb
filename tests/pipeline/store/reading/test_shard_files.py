"""Reading from many threads, after a fork, and with few descriptors."""

import gc
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from theworld.pipeline.files import open_files
from theworld.pipeline.store.folder import LatentStore, open_store

from ....faults.harness import SCRATCH, in_child
from ....miniatures.store import create, expected, fill, key
from ....patience import patience


def files_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_read_right_while_files_are_opened_and_closed_under_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "soft_limit", lambda: 4)
    monkeypatch.setattr(open_files, "raise_limit", lambda: False)
    store = create(tmp_path, shard_size=1)
    fill(store, 12)
    gc.collect()  # stores of earlier tests
    before = files_open()

    def reads(seed: int) -> None:
        for numbers in np.random.default_rng(seed).integers(0, 12, (40, 5)).tolist():
            assert_array_equal(store.read([key(n) for n in numbers]), expected(store, numbers))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reads, range(8)))
    assert files_open() - before <= 2
    store.close()
    assert files_open() <= before  # others may have closed theirs
    reads(0)
    del store, reads
    assert files_open() <= before  # others may have closed theirs


def test_a_store_that_outlives_the_modules_at_the_end_of_python_closes_in_silence(tmp_path: Path) -> None:
    fill(create(tmp_path), 1)
    code = (
        "import sys; from pathlib import Path; from theworld.pipeline.store.folder import open_store\n"
        f"store = open_store(Path({str(tmp_path)!r})); store.read(store.keys)\n"
        "from theworld.pipeline.store.reading import shard_files\n"
        "shard_files.os = None  # as Python leaves it\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_process_goes_on_reading(tmp_path: Path) -> None:
    store = create(tmp_path, shard_size=2)
    fill(store, 6)
    store.read([key(0)])
    payload_lock = store._reader._files._lock
    payload_lock.acquire()  # as if another thread were inside at the moment of the fork
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        same = np.array_equal(store.read(store.keys), expected(store, range(6)))
        os._exit(0 if same else 1)
    payload_lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_array_equal(store.read(store.keys), expected(store, range(6)))


def limit(hard: int | None = None) -> int:
    """Limit a forked process's open files, as if it had begun alone, and return how many: half is free for others.

    The process of the tests holds files of its own, and stores of other tests that are not collected yet.
    """
    for keeper in list(open_files._process.keepers):
        keeper.close_to(0)
    open_files._process.ceiling = None
    files = max(64, 2 * files_open() + 16)
    assert files < 200, "the process of the tests holds too many files open for a store of 120 shards to meet the limit"
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard or files))
    return files


def read_all(store: LatentStore, count: int, seed: int = 0) -> None:
    numbers = np.random.default_rng(seed).permutation(count).tolist()
    assert_array_equal(store.read([key(n) for n in numbers]), expected(store, numbers))


@pytest.fixture(scope="module")
def many() -> Iterator[LatentStore]:
    """A store of more shards than a process may have open below; in memory, where fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir=SCRATCH if os.access(SCRATCH, os.W_OK) else None) as folder:
        store = create(Path(folder), shard_size=1)
        fill(store, 120)
        yield store


def open_payloads(store: LatentStore) -> set[int]:
    return set(store._reader._files.current())


def test_half_of_the_limit_is_used_and_the_files_not_used_for_longest_go_first(many: LatentStore) -> None:
    def read() -> None:
        files = limit()
        half = files // 2
        store = open_store(many.path)
        for number in range(half):
            store.read([key(number)])
        assert open_payloads(store) == set(range(half))
        store.read([key(0)])
        for number in (half + 8, half + 9, half + 10):
            store.read([key(number)])
        assert len(open_payloads(store)) <= half
        assert open_payloads(store) >= {0, half + 8, half + 9, half + 10, half - 1}
        assert 1 not in open_payloads(store)
        read_all(store, 120)
        assert files_open() <= files

    in_child(read)


def test_the_soft_limit_is_raised_to_the_hard_one_when_half_of_it_is_not_enough(
    many: LatentStore, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> None:
        files = limit(hard=300)
        store = open_store(many.path)
        store.read([key(0)])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (files, 300)
        with caplog.at_level("INFO"):
            read_all(store, 120)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 300)
        assert f"from {files} to 300 (ulimit -n)" in caplog.text
        assert len(open_payloads(store)) == 120

    in_child(read)


def test_where_others_have_taken_all_files_half_of_those_kept_open_close_and_reading_goes_on(many: LatentStore) -> None:
    def read() -> None:
        limit()
        store = open_store(many.path)
        for number in range(10):
            store.read([key(number)])
        taken = []
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        read_all(store, 120, seed=1)
        assert 0 < len(open_payloads(store)) <= 5
        fresh = open_store(many.path)  # its records need files, too
        read_all(fresh, 120)
        for fd in taken:
            os.close(fd)

    in_child(read)


def test_several_stores_share_the_half(many: LatentStore) -> None:
    def read() -> None:
        half = limit() // 2
        stores = [open_store(many.path) for _ in range(3)]
        for _ in range(2):
            for store in stores:
                read_all(store, 120)
        assert sum(len(open_payloads(store)) for store in stores) <= half + half // 2

    in_child(read)


def test_threads_and_forked_readers_keep_to_the_limit(many: LatentStore) -> None:
    def read() -> None:
        limit()
        store = open_store(many.path)

        def reads(seed: int) -> None:
            for _ in range(3):
                read_all(store, 120, seed)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(reads, range(8)))
            for _ in range(3):  # as a DataLoader forks its workers, while threads read
                running = [pool.submit(reads, seed) for seed in range(4)]
                in_child(lambda: read_all(store, 120))
                for each in running:
                    each.result()

    in_child(read)
