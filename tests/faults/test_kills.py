"""Jobs killed at random times, alone and in pairs: nothing lost, nothing twice, nothing half-visible.

A job is a forked process that tells this one what the store has acknowledged. It is killed at random moments and begun
again, until it came to its end before the kill; then the next folder is begun. Only kills that met a job count.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from theworld.pipeline.store.folder import LatentStore, StoreFormat

from . import harness
from .harness import FORMATS, SEED, amount, broken, check, check_resumes, finish, job, record_first, start

PLAN = range(40)

Job = Callable[[Path, list[int], Callable[[str], None]], object]


@dataclass
class Counters:
    """What happened, over all kills."""

    kills: int = 0
    """Of processes in the middle of their job."""
    plans: int = 0
    leftovers: int = 0
    """Files that dead writers left in tmp/."""
    holes: int = 0
    """Shard numbers that dead writers left without a record."""
    found: list[str] = field(default_factory=list)

    def note(self, fault: str) -> None:
        if fault:
            self.found.append(fault)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.plans} plans, {self.leftovers} torn files and {self.holes} unnamed shards "
            f"left behind, broken promises {len(self.found)}"
        )


def duration_of(cache: Path, work: Job) -> float:
    """Seconds of one job from its fork to its end."""
    began = time.monotonic()
    finish(*start(lambda tell: work(cache, list(PLAN), tell)))
    shutil.rmtree(cache)
    return time.monotonic() - began


def kill_at_random(
    cache: Path, format: StoreFormat, work: Job, whole: float, draw: random.Random, tally: Counters
) -> None:
    """One plan: kill its job and look at what is there, again and again, until it came to its end."""
    acknowledged: set[str] = set()
    pair = draw.random() < 0.3
    here = cache / "killed"
    ended = False
    while not ended:
        orders = [draw.sample(PLAN, len(PLAN)) for _ in range(1 + pair)]
        children = [start(lambda tell, order=order: work(here, order, tell)) for order in orders]
        time.sleep(draw.uniform(0.0, 0.6 * whole * (1 + pair)))
        for child, pipe in draw.sample(children, len(children)):
            try:
                words = finish(child, pipe, kill=True)
            except AssertionError as error:  # it failed by itself, before it was killed
                tally.note(str(error))
                words = ["end"]
            ended = ended or words[-1:] == ["end"]
            tally.kills += words[-1:] != ["end"]
            acknowledged.update(words)
        acknowledged.discard("end")
        tally.note(broken(lambda: check(here, PLAN, format=format, acknowledged=acknowledged)))

    def complete() -> None:
        store = check_resumes(here, PLAN, format=format)
        tally.leftovers += len(list((store.path / "tmp").iterdir()))
        numbers = [record.shard for record in store.records()]
        tally.holes += 1 + max(numbers) - len(numbers)
        if not pair:
            assert sum(record.rows for record in store.records()) == len(PLAN), "a sample was made twice"

    tally.note(broken(complete))
    tally.plans += 1
    shutil.rmtree(here)


def honest(format: StoreFormat) -> Job:
    def work(cache: Path, plan: list[int], tell: Callable[[str], None]) -> None:
        job(cache, plan, format=format, tell=tell)
        tell("end")

    return work


@pytest.mark.slow
def test_kills_at_random_times_lose_spoil_and_repeat_nothing(cache: Path, figure: Callable[[str], None]) -> None:
    wanted, draw, began, tally = amount("KILLS", 24), random.Random(SEED), time.monotonic(), Counters()
    whole = 0.0
    while tally.kills < wanted:
        for format in FORMATS:
            if tally.plans % 40 < len(FORMATS):
                whole = duration_of(cache / "undisturbed", honest(format))
            kill_at_random(cache, format, honest(format), whole, draw, tally)
    figure(f"random kill -9: {tally}, seed {SEED}, {time.monotonic() - began:.0f} s")
    assert tally.found == []
    assert tally.leftovers > tally.kills / 20, "hardly a kill came in the middle of a shard"


@contextmanager
def told_too_early() -> Iterator[None]:
    """Break the writer: it acknowledges a shard before it commits it."""
    write = harness.write

    def forget(store: LatentStore, numbers: list[int]) -> bool:
        return numbers[0] % 7 == 0 or write(store, numbers)

    harness.write = forget
    try:
        yield
    finally:
        harness.write = write


def repeating(format: StoreFormat) -> Job:
    """Break the job: it makes its first samples again, whatever the store holds."""

    def work(cache: Path, plan: list[int], tell: Callable[[str], None]) -> None:
        store = harness.create(cache, format)
        for number in plan[:6]:
            harness.write(store, [number])
            tell(str(number))
        tell("end")

    return work


def tally_of(cache: Path, format: StoreFormat, work: Job) -> Counters:
    draw, tally, whole = random.Random(SEED), Counters(), duration_of(cache / "undisturbed", work)
    for _ in range(6):
        if not tally.found:
            kill_at_random(cache, format, work, whole, draw, tally)
    return tally


def test_the_kills_notice_a_writer_that_publishes_the_record_first(cache: Path, format: StoreFormat) -> None:
    with record_first(pause_s=0.01):
        tally = tally_of(cache, format, honest(format))
    # a record without its payload, or the number of one given out again
    assert any("No such file" in fault or "exists, though" in fault for fault in tally.found)


def test_the_kills_notice_a_writer_that_acknowledges_what_it_did_not_commit(cache: Path, format: StoreFormat) -> None:
    with told_too_early():
        tally = tally_of(cache, format, honest(format))
    assert any("acknowledged, then lost" in fault for fault in tally.found)


def test_the_kills_notice_a_job_that_makes_a_sample_twice(
    cache: Path, format: StoreFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentStore, "__contains__", lambda *_: False)
    tally = tally_of(cache, format, repeating(format))
    assert any("made twice" in fault or "did work" in fault for fault in tally.found)
