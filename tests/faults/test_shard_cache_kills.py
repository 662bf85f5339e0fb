"""Processes that share a local cache with room for five of eight shards, and are killed at random moments."""

import os
import random
import select
import time
from collections.abc import Callable
from pathlib import Path

from theworld.pipeline.files.places.place import Entry
from theworld.pipeline.store.reading import shard_fetch
from theworld.pipeline.store.reading.shard_cache import PART, ShardCache
from theworld.pipeline.store.reading.shard_fetch import CachedShards

from .harness import SEED, amount, finish, start

SHARDS, ROOM, PROCESSES = 8, 5, 4
SIZE = 2**18
CONTENT = [random.Random(number).randbytes(SIZE) for number in range(SHARDS)]


class SlowSource:
    """Payloads in memory that take some milliseconds a range, so that kills meet fetches."""

    def entry(self, name: str) -> Entry | None:
        return Entry(name, SIZE, 7, 0.0)

    def read_range(self, name: str, offset: int, size: int) -> memoryview:
        time.sleep(0.003)
        return memoryview(CONTENT[int(name)])[offset : offset + size]


def open_cache(cache: Path) -> CachedShards:
    return CachedShards(ShardCache(cache, ROOM * SIZE), SlowSource(), url="s3://bucket/store", recipe_id="0" * 64)


def read_for_ever(cache: Path, seed: int, tell: Callable[[str], None]) -> None:
    """Tell of each read: the time it took, or that its bytes were wrong."""
    shard_fetch.RANGE_BYTES = SIZE // 8
    draw, shards = random.Random(seed), open_cache(cache)
    while True:
        number, started = draw.randrange(SHARDS), time.monotonic()
        fd = shards.open(number, str(number), SIZE)
        tell(f"{time.monotonic() - started:.4f}" if os.pread(fd, 2 * SIZE, 0) == CONTENT[number] else "wrong")
        os.close(fd)


def test_killed_readers_leave_no_wrong_byte_and_nobody_waiting(cache: Path, figure: Callable[[str], None]) -> None:
    draw, kills = random.Random(SEED), amount("CACHE_KILLS", 25)
    waits: list[float] = []
    wrong = fetching = 0
    began = time.monotonic()

    def reader() -> tuple[int, int]:
        seed = draw.randrange(2**32)
        return start(lambda tell: read_for_ever(cache, seed, tell))

    def end(child: int, words: int) -> None:
        nonlocal wrong
        for word in finish(child, words, kill=True):
            wrong += word == "wrong"
            waits.extend([] if word == "wrong" else [float(word)])

    readers = [reader() for _ in range(PROCESSES)]
    for _ in range(kills):
        time.sleep(draw.uniform(0, 0.1))
        parts = sum(1 for _ in cache.glob(f"*/shards/*{PART}"))
        end(*readers.pop(draw.randrange(PROCESSES)))
        fetching += parts > 0
        readers.append(reader())
    started = time.monotonic()
    for _, words in readers:  # all of them go on
        assert select.select([words], [], [], 20)[0], "a reader waits for ever"
    for child, words in readers:
        end(child, words)
    shards = open_cache(cache)
    for number in range(SHARDS):
        fd = shards.open(number, str(number), SIZE)
        assert os.pread(fd, 2 * SIZE, 0) == CONTENT[number]
        os.close(fd)
    assert not wrong
    assert shards.cache.used_bytes() <= ROOM * SIZE
    assert not list(cache.glob(f"*/shards/*{PART}"))
    assert max(waits) < 15
    assert time.monotonic() - started < 20
    figure(
        f"local cache: {kills} kills ({fetching} during a fetch), {len(waits)} shards read, 0 wrong bytes, "
        f"longest wait {max(waits):.2f} s, {time.monotonic() - began:.1f} s"
    )
