"""The local cache of shards: whole ones alone, one fetch a machine, a limit that holds, and nobody else's files."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from theworld.pipeline.errors import ConfigError, StoreError
from theworld.pipeline.store.reading import shard_fetch
from theworld.pipeline.store.reading.shard_cache import MARKER, ShardCache
from theworld.pipeline.store.reading.shard_fetch import CachedShards

from ....miniatures.sources import FolderSource

SIZE = 3000
RECIPE = "0123456789abcdef" * 4


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    folder = tmp_path / "bucket"
    folder.mkdir()
    for number in range(8):
        (folder / str(number)).write_bytes(content(number))
    return FolderSource(folder)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_fetch, "RANGE_BYTES", 1024)


def content(number: int, turn: int = 0) -> bytes:
    return bytes([number, turn]) * (SIZE // 2)


def shards_in(tmp_path: Path, source: FolderSource, *, limit: int = 5 * SIZE) -> CachedShards:
    return CachedShards(ShardCache(tmp_path / "cache", limit), source, url="s3://bucket/store", recipe_id=RECIPE)


def read(shards: CachedShards, number: int) -> bytes:
    fd = shards.open(number, str(number), SIZE)
    try:
        return os.pread(fd, 2 * SIZE, 0)
    finally:
        os.close(fd)


def held(tmp_path: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*/shards/*"))


def test_a_shard_is_fetched_once_in_ranges_and_then_read_from_disk(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source)
    assert [read(shards, number) for number in (3, 4, 3, 4, 3)] == [content(n) for n in (3, 4, 3, 4, 3)]
    assert source.reads == 6
    assert (shards.stats.shards, shards.stats.bytes) == (2, 2 * SIZE)
    assert read(shards_in(tmp_path, source), 3) == content(3)
    assert source.reads == 6


def test_the_shard_opened_longest_ago_gives_way_and_who_has_it_open_reads_on(
    tmp_path: Path, source: FolderSource
) -> None:
    shards = shards_in(tmp_path, source, limit=3 * SIZE)
    fd = shards.open(0, "0", SIZE)
    for number in (1, 2, 0, 3, 4):
        read(shards, number)
        time.sleep(0.002)
    assert held(tmp_path) == ["0", "3", "4"]
    read(shards, 5)
    read(shards, 6)
    assert held(tmp_path) == ["4", "5", "6"]
    assert os.pread(fd, SIZE, 0) == content(0)
    os.close(fd)


def test_opening_a_shard_again_leaves_its_modification_time(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source)
    os.close(shards.open(1, "1", SIZE))
    [file] = (tmp_path / "cache").glob("*/shards/1-*")
    before = file.stat()
    os.close(shards.open(1, "1", SIZE))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_atime_ns > before.st_atime_ns


def test_many_threads_that_want_the_same_shards_fetch_each_once(tmp_path: Path, source: FolderSource) -> None:
    source.before_read = lambda: time.sleep(0.01)
    caches = [shards_in(tmp_path, source) for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        whole = list(pool.map(lambda n: read(caches[n % 4], n % 3) == content(n % 3), range(48)))
    assert all(whole)
    assert sum(cache.stats.shards for cache in caches) == 3


def test_the_limit_holds_while_many_fetch(tmp_path: Path, source: FolderSource) -> None:
    source.before_read = lambda: time.sleep(0.002)
    shards, most, ended = shards_in(tmp_path, source, limit=4 * SIZE), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            with shards.cache.locked():  # in a listing, a shard that is being named may have two names
                most = max(most, shards.cache.used_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda n: read(shards, n % 8) == content(n % 8), range(96)))
    ended.set()
    watcher.join()
    assert 0 < most <= 4 * SIZE


def test_a_shard_that_was_made_again_never_meets_the_bytes_of_the_old_one(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source)
    assert read(shards, 2) == content(2)
    (source.path / "2").write_bytes(content(2, turn=1))
    shards.forget([2])
    assert read(shards, 2) == content(2, turn=1)


def test_a_shard_that_changes_while_it_is_fetched_is_fetched_again(tmp_path: Path, source: FolderSource) -> None:
    def change() -> None:
        source.before_read = lambda: None
        (source.path / "new").write_bytes(content(2, turn=1))
        (source.path / "new").replace(source.path / "2")

    source.before_read = change
    shards = shards_in(tmp_path, source)
    assert read(shards, 2) == content(2, turn=1)
    assert held(tmp_path) == ["2"]


def test_a_copy_that_lost_its_end_or_is_found_damaged_is_fetched_anew(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source)
    read(shards, 1)
    [file] = (tmp_path / "cache").glob("*/shards/1-*")
    os.truncate(file, 100)
    assert read(shards, 1) == content(1)
    shards.discard(1)
    assert held(tmp_path) == []
    assert read(shards, 1) == content(1)


def test_a_failed_fetch_leaves_nothing_and_the_next_one_starts_anew(tmp_path: Path, source: FolderSource) -> None:
    def fail() -> None:
        raise StoreError("the bucket does not answer")

    shards = shards_in(tmp_path, source)
    source.before_read = fail
    with pytest.raises(StoreError, match="does not answer"):
        read(shards, 1)
    assert held(tmp_path) == []
    source.before_read = lambda: None
    assert read(shards, 1) == content(1)


def test_a_payload_that_is_gone_short_or_of_another_size_is_told(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source)
    with pytest.raises(FileNotFoundError):
        shards.open(9, "9", SIZE)
    with pytest.raises(ValueError, match="it has 3000 bytes, its record states 4000"):
        shards.open(1, "1", 4000)


def test_a_killed_fetch_blocks_nobody_and_its_rest_is_removed(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source, limit=3 * SIZE)
    read(shards, 0)
    [file] = (tmp_path / "cache").glob("*/shards/0-*")
    for number in (1, 2, 3):
        file.with_name(f"{number}-{'0' * 16}.part").write_bytes(bytes(SIZE))
    started = time.monotonic()
    assert read(shards, 4) == content(4)
    assert time.monotonic() - started < 5
    assert held(tmp_path) == ["0", "4"]


def test_a_fetch_of_a_process_that_was_stopped_is_taken_over(
    tmp_path: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_fetch, "_STALLED_S", 0.2)
    stopped, other = shards_in(tmp_path, source), shards_in(tmp_path, source)
    goes_on, begun = threading.Event(), threading.Event()

    def stop() -> None:
        source.before_read = lambda: None
        begun.set()
        goes_on.wait(20)

    source.before_read = stop
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(read, stopped, 1)
        begun.wait(20)
        assert read(other, 1) == content(1)
        goes_on.set()
        assert first.result() == content(1)
    assert held(tmp_path) == ["1"]


def test_a_full_disk_evicts_and_then_says_so(
    tmp_path: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_in(tmp_path, source)
    for number in range(3):
        read(shards, number)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"cannot take a shard: No space left.*--local-cache"):
        read(shards, 4)
    assert held(tmp_path) == []


def test_a_cache_that_was_deleted_meanwhile_is_made_again(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source)
    read(shards, 1)
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "cache").rmdir()
    assert read(shards, 1) == content(1)
    assert (tmp_path / "cache" / MARKER).is_file()


def test_a_folder_with_other_content_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds other content, such as 1.jpg.*--local-cache"):
        ShardCache(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1.jpg"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        ShardCache(tmp_path / "file" / "cache")
    cache = ShardCache(tmp_path / "cache")
    (cache.folder / MARKER).write_text('{"theworld": "shard cache", "format": 2}')
    with pytest.raises(ConfigError, match="not that of a local cache of this version"):
        ShardCache(cache.folder)


def test_only_shards_by_place_and_name_are_evicted(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source, limit=SIZE)
    read(shards, 0)
    kept = [
        "latents/tiny-0123456789ab/shards/0.tar",
        "latents/tiny-0123456789ab/latents/c/0/0/0/0/0",
        "0123456789ab-01234567/theworld.json",
        "0123456789ab-01234567/shards/0.tar",
        "0123456789ab-01234567/shards/notes",
    ]
    for name in kept:
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(bytes(SIZE))
    outside = tmp_path / "elsewhere" / "shards" / f"7-{'0' * 16}"
    outside.parent.mkdir(parents=True)
    outside.write_bytes(bytes(SIZE))
    (tmp_path / "cache" / "0123456789ab-0123456a").symlink_to(outside.parents[1])
    for number in (1, 2, 3):
        read(shards, number)
    assert all((tmp_path / "cache" / name).is_file() for name in kept)
    assert outside.is_file()


def test_a_limit_too_small_for_the_blocks_is_refused_and_the_size_that_works_is_named(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 9 * 2**26)
    with pytest.raises(ConfigError, match=r"need 10 of them there\. Pass --local-cache-size 640MiB"):
        cache.require_room(2**26, window=8)
    ShardCache(tmp_path / "cache", 640 * 2**20).require_room(2**26, window=8)


def test_without_a_limit_half_of_what_is_free_is_taken(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    assert 0.3 * free < ShardCache(tmp_path / "cache").limit_bytes < 0.7 * free


def test_a_forked_process_reads_what_is_in_the_cache(tmp_path: Path, source: FolderSource) -> None:
    shards = shards_in(tmp_path, source)
    read(shards, 1)
    if (pid := os.fork()) == 0:
        os._exit(0 if read(shards, 1) == content(1) and read(shards, 2) == content(2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
