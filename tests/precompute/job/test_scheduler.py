"""What the loop keeps from one task to the next: batches that fitted, failures held back, failures of earlier runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.miniatures.store import TINY, create, key
from theworld.pipeline.errors import WorldModelError
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import LatentStore
from theworld.pipeline.store.ledger import Failure
from theworld.precompute.inputs.listing.inputs import Sample
from theworld.precompute.inputs.locations import File
from theworld.precompute.job.planning.throughput import ANY_DEVICE, ThroughputLog
from theworld.precompute.job.scheduler import FRUITLESS, SINGLE_ATTEMPTS, Scheduler
from theworld.precompute.job.signals import Signals
from theworld.precompute.job.watching.events import Events
from theworld.precompute.job.workers.pool import Task
from theworld.precompute.job.workers.ray_counts import Counted
from theworld.precompute.job.workers.worker import Receipt

Work = Callable[[Task], Receipt]


class Pool:
    """Runs a function for each task, one at a time; remembers the sizes it was told with each."""

    workers = 1
    gpus_a_worker = 0.5

    def __init__(self, work: Work) -> None:
        self.where: list[dict[str, str]] = []
        self.fitted: list[dict[str, int]] = []
        self.work, self.task = work, None

    def worker_s(self) -> float:
        return 7200.0

    def counts(self) -> Counted:
        return {}

    def start(self) -> float:
        return 0.0

    def takes(self, task: Task, *, ahead: bool) -> bool:
        del task, ahead
        return self.task is None

    def submit(self, task: Task, fitted: Mapping[str, int]) -> None:
        self.task: Task | None = task
        self.fitted.append(dict(fitted))

    def grow(self) -> None: ...

    def wait(self) -> list[tuple[Task, Receipt | Exception]]:
        task, self.task = self.task, None
        assert task is not None
        try:
            return [(task, self.work(task))]
        except Exception as error:
            return [(task, error)]

    def stop(self) -> None:
        return


def sample(number: int) -> Sample:
    return Sample(f"{number}.png", File(f"{number}.png"), key(number))


def failure(number: int, attempts: int = 1) -> Failure:
    return Failure(source=f"{number}.png", key=key(number), reason="rollout", message="it broke", attempts=attempts)


def receipt(task: Task, *failures: Failure, device: str = "a card", batch_size: int = 8) -> Receipt:
    written = len(task.samples) - len(failures)
    return Receipt(written=written, failures=failures, seconds={"rollout": 1.0}, batch_size=batch_size, device=device)


def scheduler(store: LatentStore, work: Work, log: ThroughputLog | None = None) -> tuple[Scheduler, Pool]:
    pool = Pool(work)
    log = ThroughputLog.load(store.path.parent) if log is None else log
    loop = Scheduler(
        pool, store, log, Progress.silent(), Events(None), batch_size=8, refused=(), signals=Signals()
    )  # fmt: skip
    return loop, pool


def tasks(*numbers: int) -> list[Task]:
    return [Task((sample(number),)) for number in numbers]


def ledger(store: LatentStore) -> dict[str, int]:
    return {failure.source: failure.attempts for failure in store.failures()}


def test_a_failure_is_held_back_until_something_succeeds(tmp_path: Path) -> None:
    store = create(tmp_path)
    seen: list[dict[str, int]] = []

    def second_works(task: Task) -> Receipt:
        seen.append(ledger(store))
        if task.samples[0].source != "1.png" or len(seen) < 8:
            raise RuntimeError("it broke")
        return receipt(task)

    loop, _ = scheduler(store, second_works)
    work = loop.run(tasks(0, 1, 2))
    assert all(not rows for rows in seen[:8]), "nothing had succeeded yet"
    assert seen[8:] == [{"0.png": SINGLE_ATTEMPTS}], "kept at the first success, not at the end of the run"
    assert ledger(store) == {"0.png": SINGLE_ATTEMPTS, "2.png": SINGLE_ATTEMPTS}
    assert [failure.source for failure in work.failures] == ["0.png", "2.png"]
    assert work.written == 1


def test_failures_held_back_to_the_end_are_kept_once(tmp_path: Path) -> None:
    store = create(tmp_path)

    def breaks(_: Task) -> Receipt:
        raise RuntimeError("it broke")

    loop, _ = scheduler(store, breaks)
    work = loop.run(tasks(0, 1))
    assert [failure.source for failure in work.failures] == ["0.png", "1.png"]
    assert ledger(store) == {"0.png": SINGLE_ATTEMPTS, "1.png": SINGLE_ATTEMPTS}


def test_failures_held_back_are_forgotten_where_the_samples_are_not_to_blame(tmp_path: Path) -> None:
    store = create(tmp_path)

    def breaks(_: Task) -> Receipt:
        raise RuntimeError("it broke")

    loop, _ = scheduler(store, breaks)
    with pytest.raises(WorldModelError, match="tasks in a row failed"):
        loop.run(tasks(*range(FRUITLESS)))
    assert ledger(store) == {}


def test_a_success_between_failures_starts_their_count_anew(tmp_path: Path) -> None:
    def works_when_tried_again(task: Task) -> Receipt:
        if not task.attempts and task.samples[0].source != "0.png":  # as long as nothing worked, retries come last
            raise RuntimeError("the worker died")
        return receipt(task)

    loop, _ = scheduler(create(tmp_path), works_when_tried_again)
    work = loop.run(tasks(*range(1 + 2 * FRUITLESS)))
    assert (work.written, work.retries, work.failures) == (1 + 2 * FRUITLESS, 2 * FRUITLESS, [])


def test_once_something_succeeded_any_number_of_samples_may_fail(tmp_path: Path) -> None:
    def first_works(task: Task) -> Receipt:
        if task.samples[0].source != "0.png":
            raise RuntimeError("it broke")
        return receipt(task)

    loop, _ = scheduler(create(tmp_path), first_works)
    work = loop.run(tasks(*range(1 + FRUITLESS)))
    assert (work.written, len(work.failures)) == (1, FRUITLESS)


def test_a_batch_that_fitted_is_told_with_every_later_task_and_remembered_by_device(tmp_path: Path) -> None:
    sizes = {0: ("a card", 8), 1: ("a card", 4), 2: ("another", 8), 3: ("a card", 4), 4: ("another", 2)}

    def made(task: Task) -> Receipt:
        device, batch_size = sizes[int(task.samples[0].source[0])]
        return receipt(task, device=device, batch_size=batch_size)

    store = create(tmp_path)
    loop, pool = scheduler(store, made)
    loop.run(tasks(*sizes))
    assert pool.fitted == [{}, {}, {"a card": 4}, {"a card": 4}, {"a card": 4}]
    log = ThroughputLog.load(tmp_path)
    assert log.fitted(TINY) == {"a card": 4, "another": 2}
    assert loop.work.batch_size == 2
    later, pool = scheduler(store, lambda task: receipt(task, batch_size=8), log)
    later.run(tasks(5, 6))
    assert pool.fitted == [{"a card": 4, "another": 2}] * 2, "what fitted in an earlier run, and nothing larger"


def test_a_machine_out_of_memory_halves_the_batch_of_every_device_for_this_run_alone(tmp_path: Path) -> None:
    tries: list[Task] = []

    def third_works(task: Task) -> Receipt:
        tries.append(task)
        if len(tries) < 3:
            raise MemoryError
        return receipt(task, batch_size=2)

    loop, pool = scheduler(create(tmp_path), third_works)
    loop.run(tasks(0))
    assert pool.fitted == [{}, {ANY_DEVICE: 4}, {ANY_DEVICE: 2}]
    assert ThroughputLog.load(tmp_path).fitted(TINY) == {"a card": 2}


def test_a_failure_of_an_earlier_run_goes_when_its_input_is_made_and_stays_when_it_fails_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path)
    store.record_failure(failure(0, attempts=2))
    store.record_failure(failure(1, attempts=2))
    cleared: list[str] = []
    clear = store.clear_failures

    def noted(gone: list[Failure]) -> Any:
        cleared.extend(failure.source for failure in gone)
        return clear(gone)

    monkeypatch.setattr(store, "clear_failures", noted)
    loop, _ = scheduler(store, lambda task: receipt(task, failure(1)))
    work = loop.run([Task((sample(0), sample(1)))])
    assert cleared == ["0.png"], "a kill after clearing would lose the other's row"
    assert ledger(store) == {"1.png": 3}, "attempts of all runs together"
    assert [failure.attempts for failure in work.failures] == [3]


def test_a_program_that_follows_the_events_learns_of_every_shard_and_failure(tmp_path: Path) -> None:
    store = create(tmp_path)

    def one_fails(task: Task) -> Receipt:
        return receipt(task, failure(2)) if task.samples[0].source == "2.png" else receipt(task)

    file = tmp_path / "events.jsonl"
    loop = Scheduler(
        Pool(one_fails), store, ThroughputLog.load(tmp_path), Progress.silent(), Events(file), batch_size=8,
        refused=(), signals=Signals(),
    )  # fmt: skip
    loop.run([Task((sample(0), sample(1))), *tasks(2)])
    events = [json.loads(line) for line in file.read_text().splitlines()]
    shards = [event for event in events if event["event"] == "shard"]
    assert [(event["written"], event["failed"], event["done"], event["remaining"]) for event in shards] == [
        (2, 0, 2, 1),
        (0, 1, 3, 0),
    ]
    assert [(event["device"], event["batch_size"], event["seconds"]) for event in shards] == [
        ("a card", 8, {"rollout": 1.0})
    ] * 2
    [told] = [event for event in events if event["event"] == "failure"]
    assert (told["source"], told["reason"], told["message"], told["attempts"]) == ("2.png", "rollout", "it broke", 1)


def test_the_failures_of_a_receipt_are_made_durable_together_before_anybody_hears_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = create(tmp_path), tmp_path / "events.jsonl"
    record, written = store.record_failures, list[int]()

    def noted(failures: list[Failure]) -> None:
        assert '"failure"' not in file.read_text()
        record(failures)
        written.append(len(failures))

    monkeypatch.setattr(store, "record_failures", noted)
    events, log = Events(file), ThroughputLog.load(tmp_path)
    pool = Pool(lambda task: receipt(task, *map(failure, range(1, 4))))
    loop = Scheduler(
        pool, store, log, Progress.silent(), events, batch_size=8, refused=(), signals=Signals()
    )  # fmt: skip
    loop.run([Task(tuple(map(sample, range(4))))])
    assert written == [3], "each file of the ledger costs two syncs of the disk"
    names = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert names == ["started", "failure", "failure", "failure", "shard"]
    assert ledger(store) == {"1.png": 1, "2.png": 1, "3.png": 1}


def test_a_report_has_the_hours_of_every_worker_from_its_own_start(tmp_path: Path) -> None:
    loop, _ = scheduler(create(tmp_path), receipt)  # whose pool has had two hours of workers, with half a GPU each
    work = loop.run(tasks(0, 1))
    assert (work.worker_hours, work.gpu_hours, work.shards) == (2.0, 1.0, 2)
    assert loop.figures().done == 2
