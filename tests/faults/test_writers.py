"""Many writers at once: every key is visible once, nobody's commit is lost, and all of them succeed."""

import random
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import pytest

from theworld.pipeline.files import atomic
from theworld.pipeline.store.folder import StoreFormat

from ..patience import patience
from .harness import SHARD_SIZE, amount, broken, check, finish, job, start

WRITERS = 8


def race(cache: Path, format: StoreFormat, plans: Sequence[Sequence[int]]) -> set[str]:
    """Run a job for each plan, all from the same moment on; what they were told is acknowledged."""
    line = get_context("fork").Barrier(len(plans))

    def work(plan: Sequence[int], tell: Callable[[str], None]) -> None:
        line.wait(patience(60))
        job(cache, plan, format=format, tell=tell)

    children = [start(lambda tell, plan=plan: work(plan, tell)) for plan in plans]
    results = [broken_or_words(child, pipe) for child, pipe in children]
    assert not [fault for fault, _ in results if fault], [fault for fault, _ in results]
    return {word for _, words in results for word in words if word != "sources"}


def broken_or_words(child: int, pipe: int) -> tuple[str, list[str]]:
    words: list[str] = []
    return broken(lambda: words.extend(finish(child, pipe))), words


def race_for_the_same(cache: Path, format: StoreFormat, samples: int) -> tuple[int, int]:
    """All writers want the same keys, each in its own order; (commits, of which in vain)."""
    plan = range(samples)
    acknowledged = race(cache, format, [random.Random(seed).sample(plan, len(plan)) for seed in range(WRITERS)])
    store = check(cache, plan, format=format, acknowledged=acknowledged)
    assert store is not None
    assert len(store) == len(plan)
    records = store.records()
    return len(records), len(records) - len(plan) // SHARD_SIZE


def race_side_by_side(cache: Path, format: StoreFormat, samples: int) -> int:
    """Each writer has its own keys; commits."""
    share = samples // WRITERS
    plans = [range(first * share, (first + 1) * share) for first in range(WRITERS)]
    acknowledged = race(cache, format, plans)
    store = check(cache, range(share * WRITERS), format=format, acknowledged=acknowledged)
    assert store is not None
    assert len(store) == share * WRITERS
    assert sum(record.rows for record in store.records()) == share * WRITERS, "a sample was made twice"
    return len(store.records())


def test_writers_racing_for_the_same_keys_make_each_visible_once(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    began = time.monotonic()
    turns, again = 0, 0
    while not again:  # a busy machine may run the writers one after another
        turns += 1
        assert turns <= 10, "the writers never raced"
        commits, again = race_for_the_same(cache / str(turns), format, amount("RACE", 80))
        figure(
            f"{WRITERS} writers, the same keys, {format}: {commits} commits, {again} of keys others had, 0 lost, "
            f"each visible once, {time.monotonic() - began:.1f} s"
        )


def test_writers_with_keys_of_their_own_lose_none(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    began = time.monotonic()
    commits = race_side_by_side(cache, format, amount("RACE", 80) * 4)
    figure(
        f"{WRITERS} writers, their own keys, {format}: {commits} commits, 0 lost, 0 twice, "
        f"{time.monotonic() - began:.1f} s"
    )


def replace_always(temp: Path, target: Path) -> bool:
    """A broken `place`: the last writer wins."""
    temp.replace(target)
    return True


def look_then_replace(temp: Path, target: Path) -> bool:
    """A broken `place`: looks first, as most programs do."""
    if target.exists():
        return False
    time.sleep(0.002)  # as a busy machine does now and then
    temp.replace(target)
    return True


@pytest.mark.parametrize("place", [replace_always, look_then_replace])
def test_the_races_notice_a_writer_that_replaces(
    cache: Path, format: StoreFormat, place: Callable[[Path, Path], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "place", place)
    assert any(broken(lambda turn=turn: race_side_by_side(cache / str(turn), format, 80)) for turn in range(5))
