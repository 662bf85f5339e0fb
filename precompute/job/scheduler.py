"""The loop of a job: tasks to workers, receipts and failures back, until every input is done or in the ledger.

What follows a failure: a task that failed is tried once more by itself, then in halves, down to the sample behind it,
which goes into the ledger with its reason; the others are done. A worker that dies is started again by Ray, and its
tasks come back here. A batch that does not fit in memory is halved, and all workers hear of it.
Elsewhere: what there is to do (plan.py), who does it (pools.py), one shard's work (worker.py).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...pipeline.errors import ConfigError, Interrupted, StoreError, WorldModelError
from ...pipeline.failures import FailureReason
from ...pipeline.machine import is_out_of_memory
from ...pipeline.progress import Bar, Progress
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.ledger import Failure
from ..rollout.kinds import KINDS
from .events import Events
from .pool import Pool, Task, reason_of
from .signals import Signals, signal_behind
from .throughput import ANY_DEVICE, ThroughputLog

if TYPE_CHECKING:  # diffusers takes seconds to import, and a run with nothing to do needs none of it
    from .worker import Receipt

WHOLE_ATTEMPTS = 2
"""Tries of a task as a whole before it is halved to find the sample that breaks it."""
SINGLE_ATTEMPTS = 3
"""Tries of a sample by itself: one may be the fault of a worker that died of something else."""
FRUITLESS = 16
"""Failures in a row, times workers, after which it is not the samples' fault; finding one takes 2 + log2(shard)."""


@dataclass
class Work:
    """What has been done so far."""

    written: int = 0
    failures: list[Failure] = field(default_factory=list[Failure])
    """New ones, and the inputs that could not even be read."""
    bytes_written: int = 0
    phases: Counter[str] = field(default_factory=Counter[str])
    """Worker seconds."""
    notes: Counter[str] = field(default_factory=Counter[str])
    retries: int = 0
    seconds: float = 0.0
    """Wall time of the work, start-up of the workers left out."""
    load_s: float = 0.0
    worker_hours: float = 0.0
    """Of all workers, loading included: what the machines were held for."""
    device: str = ""
    """Of one of the workers, by its model."""


class Scheduler:
    """One run of the loop."""

    def __init__(
        self,
        pool: Pool,
        store: LatentStore,
        experience: ThroughputLog,
        progress: Progress,
        events: Events,
        *,
        batch_size: int,
        refused: Sequence[Failure],
        signals: Signals,
    ) -> None:
        self._pool, self._store, self._experience = pool, store, experience
        self._progress, self._events, self._signals = progress, events, signals
        self._kind = KINDS[store.recipe.kind]
        self._batch_size = batch_size
        self._fitted: dict[str, int] = dict(experience.fitted(store.recipe))
        self._rates: dict[str, Counter[str]] = defaultdict(Counter)
        self._failed_before = {failure.key: failure for failure in store.failures() if failure.key is not None}
        self._held: list[Failure] = []
        """Found by failing again and again while nothing has succeeded yet: perhaps not the samples' fault."""
        self._in_a_row = 0
        self._total = self._done = 0
        self.work = Work(failures=list(refused))

    def run(self, tasks: Sequence[Task]) -> Work:
        """Do all tasks.

        Raises:
            StoreError, OSError: the store cannot be written. ConfigError, WorldModelError: the workers cannot work.
            Interrupted: a signal, or Ray is gone; what is committed stays.
        """
        self._total = sum(len(task.samples) for task in tasks)
        began = time.monotonic()
        try:
            self.work.load_s = self._pool.start()
            load_s = round(self.work.load_s, 3)
            self._events.tell("started", workers=self._pool.workers, load_s=load_s, where=self._pool.where)
            started = time.monotonic()
            with self._progress.bar(self._kind.doing, total=self._total, unit=f"{self._kind.takes}s") as bar:
                try:
                    self._loop(deque(tasks), bar, began)
                finally:
                    self.work.seconds = time.monotonic() - started
        except (Interrupted, SystemError) as error:
            if (stop := signal_behind(error)) is None:
                raise
            cause = str(stop).partition(". ")[0]
            raise Interrupted(
                f"{cause}: {self.work.written} {self._kind.makes} were committed to {self._store.path} and stay; "
                f"{self._total - self._done} remain. The same command goes on where this one stopped"
            ) from stop
        finally:
            self.work.worker_hours = (time.monotonic() - began) * self._pool.workers / 3600
            self._remember()
            self._store.publish()
        return self.work

    def _loop(self, queue: deque[Task], bar: Bar, began: float) -> None:
        in_flight = 0
        while queue or in_flight:
            # at the end of the queue nobody holds a task in store while others have none
            while queue and self._pool.takes(queue[0], ahead=len(queue) > self._pool.workers):
                self._pool.submit(queue.popleft(), self._fitted)
                in_flight += 1
            ended_tasks = self._pool.wait()
            self._signals.check()
            for task, outcome in ended_tasks:
                in_flight -= 1
                if isinstance(outcome, Exception):
                    retry = self._failed(task, outcome)
                    queue.extend(retry) if self._nothing_yet else queue.extendleft(reversed(retry))
                    ended = 0 if retry else 1
                else:
                    self._succeeded(task, outcome)
                    ended = len(task.samples)
                self._done += ended
                bar.advance(ended, failed=len(self.work.failures) + len(self._held), note=self._note(began))
        for failure in self._held:
            self._keep(failure)
        self._held.clear()

    @property
    def _nothing_yet(self) -> bool:
        return not self.work.written

    def _succeeded(self, task: Task, receipt: Receipt) -> None:
        work = self.work
        work.written += receipt.written
        work.bytes_written += receipt.bytes_written
        work.device = receipt.device
        work.phases.update(receipt.seconds)
        work.notes.update(receipt.notes)
        self._rates[receipt.device].update({"inputs": receipt.written, "seconds": sum(receipt.seconds.values())})
        self._learn(receipt.device, receipt.batch_size)
        bad = {failure.key for failure in receipt.failures}
        for sample in task.samples:
            if sample.key in self._failed_before and sample.key not in bad:
                self._store.clear_failure(self._failed_before[sample.key])
        for failure in receipt.failures:
            self._keep(failure)
        if receipt.written:
            self._in_a_row = 0
            while self._held:
                self._keep(self._held.pop(0))
        self._events.tell(
            "shard",
            written=receipt.written,
            failed=len(receipt.failures),
            done=self._done + len(task.samples),
            remaining=self._total - self._done - len(task.samples),
            seconds={phase: round(seconds, 3) for phase, seconds in receipt.seconds.items()},
            batch_size=receipt.batch_size,
            device=receipt.device,
        )

    def _failed(self, task: Task, error: Exception) -> list[Task]:
        """What to try next; nothing where the one sample of a task is out of tries."""
        if isinstance(error, (StoreError, WorldModelError, ConfigError, Interrupted, OSError)):
            raise error
        self._in_a_row += 1
        if self._in_a_row > FRUITLESS * max(1, self._pool.workers):
            raise WorldModelError(
                f"{self._in_a_row} tasks in a row failed, the last with {reason_of(error)}. "
                f"{self.work.written or 'Nothing'} has been written. Run with --in-process --limit 1 to see where it "
                "breaks" + (", or with a smaller --size or fewer --steps" if is_out_of_memory(error) else "")
            ) from error
        if isinstance(error, MemoryError):  # the machine's memory, not only a device's: Ray killed the worker for it
            self._learn(ANY_DEVICE, max(1, self._fitted.get(ANY_DEVICE, self._batch_size) // 2))
        if (retry := again(task)) is not None:
            self.work.retries += 1
            self._events.tell(
                "retry",
                samples=len(task.samples),
                attempts=task.attempts + 1,
                halves=len(retry) > 1,
                reason=reason_of(error),
            )
            return retry
        [sample] = task.samples
        failure = Failure(
            source=sample.source,
            key=sample.key,
            reason=FailureReason.OOM if is_out_of_memory(error) else FailureReason(self._kind.phase),
            message=f"{self._kind.doing} {sample.source} failed {task.attempts + 1} times: {reason_of(error)}",
            attempts=task.attempts + 1,
        )
        if self._nothing_yet:
            self._held.append(failure)
        else:
            self._in_a_row = 0
            self._keep(failure)
        return []

    def _keep(self, failure: Failure) -> None:
        before = self._failed_before.get(failure.key) if failure.key is not None else None
        if before is not None:
            failure = replace(failure, attempts=failure.attempts + before.attempts)
        self._store.record_failure(failure)
        self.work.failures.append(failure)
        self._events.tell(
            "failure",
            source=failure.source,
            reason=failure.reason,
            message=failure.message,
            attempts=failure.attempts,
        )

    def _learn(self, device: str, batch_size: int) -> None:
        if batch_size >= min(self._batch_size, self._fitted.get(device, self._batch_size)):
            return
        self._fitted[device] = batch_size
        if device != ANY_DEVICE:
            self._experience.note_batch(self._store.recipe, device, batch_size)
        self._progress.warn(f"out of memory: batches of {batch_size} from here on ({device or 'every device'})")
        self._events.tell("backoff", device=device, batch_size=batch_size)

    def _note(self, began: float) -> str:
        reasons = Counter(failure.reason for failure in (*self.work.failures, *self._held))
        hours = (time.monotonic() - began) * self._pool.workers / 3600
        return ", ".join([*(f"{count} {reason}" for reason, count in reasons.items()), f"{hours:.2f} worker-h"])

    def _remember(self) -> None:
        for device, sums in self._rates.items():
            self._experience.note_rate(self._store.recipe, device, int(sums["inputs"]), sums["seconds"])
        with suppress(OSError):  # a full disk says so elsewhere
            self._experience.save(self._store.path / "tmp")


def again(task: Task) -> list[Task] | None:
    """What to try after a task failed: the whole once more, then its halves; None for a single sample out of tries."""
    alone = len(task.samples) == 1
    if task.attempts + 1 < (SINGLE_ATTEMPTS if alone else WHOLE_ATTEMPTS):
        return [Task(task.samples, task.shard, task.attempts + 1)]
    if alone:
        return None
    middle = len(task.samples) // 2
    halves = (task.samples[:middle], task.shard), (task.samples[middle:], None)
    return [Task(samples, shard, WHOLE_ATTEMPTS - 1) for samples, shard in halves]
