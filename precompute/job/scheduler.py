"""The loop of a job: hand tasks to workers until every input is done or in the ledger.

If a task fails, it is tried once more by itself, and then in halves, until the sample that breaks it is found. That
sample goes into the ledger with its reason; all others are done. If a worker dies, Ray starts it again and its tasks
come back to this loop. If a batch does not fit in memory, it is halved for all workers on such a device.

Tasks are cut to `TASK_S` by what the plan knows, and again once the first of them has been measured. At a signal no new
task begins; those in hand end after their batch, commit what they have, and hand the rest back.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...pipeline.errors import ConfigError, Interrupted, StoreError, WorldModelError
from ...pipeline.failures import FailureReason
from ...pipeline.machine import is_out_of_memory
from ...pipeline.progress import Bar, Progress
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.ledger import Failure
from ..rollout.kinds import KINDS
from .cost import duration
from .events import Events
from .plan import samples_per_task
from .pool import Pool, Task, reason_of
from .signals import Signals, held, signal_behind
from .throughput import ANY_DEVICE, ThroughputLog

if TYPE_CHECKING:  # diffusers takes seconds to import, and a run with nothing to do needs none of it
    from .worker import Receipt

WHOLE_ATTEMPTS = 2
"""Tries of a task as a whole before it is halved to find the sample that breaks it."""
SINGLE_ATTEMPTS = 3
"""Tries of a single sample: one of them may fail because the worker died for another reason."""
FRUITLESS = 16
"""Failed tasks in a row, per worker, after which the samples are not to blame; finding one takes 2 + log2(shard)."""
HEARTBEAT_S = 60.0
"""After so long without the end of a task, a line says that the job lives."""


@dataclass
class Work:
    """Counts and times of a run so far."""

    written: int = 0
    elsewhere: int = 0
    """Made here as well, but another job had committed them before."""
    failures: list[Failure] = field(default_factory=list[Failure])
    """Failures of this run, unreadable inputs included."""
    bytes_written: int = 0
    phases: Counter[str] = field(default_factory=Counter[str])
    """Worker seconds."""
    notes: Counter[str] = field(default_factory=Counter[str])
    retries: int = 0
    seconds: float = 0.0
    """Wall time of the work, start-up of the workers left out."""
    load_s: float = 0.0
    worker_hours: float = 0.0
    """Of all workers, loading included."""
    device: str = ""
    """Of one of the workers, by its model."""


class Scheduler:
    """One run of the loop."""

    def __init__(
        self,
        pool: Pool,
        store: LatentStore,
        throughput: ThroughputLog,
        progress: Progress,
        events: Events,
        *,
        batch_size: int,
        refused: Sequence[Failure],
        signals: Signals,
    ) -> None:
        self._pool, self._store, self._throughput = pool, store, throughput
        self._progress, self._events, self._signals = progress, events, signals
        self._kind = KINDS[store.recipe.kind]
        self._batch_size = batch_size
        self._fitted: dict[str, int] = dict(throughput.fitted(store.recipe))
        self._rates: dict[str, Counter[str]] = defaultdict(Counter)
        self._failed_before = {failure.key: failure for failure in store.failures() if failure.key is not None}
        self._held_failures: list[Failure] = []
        """Not yet in the ledger: as long as nothing succeeds, the samples may not be to blame."""
        self._failures_in_a_row = 0
        self._total = self._done = self._in_hand = 0
        self._ended_at = time.monotonic()
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
            self._events.write("started", workers=self._pool.workers, load_s=load_s, where=self._pool.where)
            started = time.monotonic()
            unit = f"{self._kind.takes}s"
            with held(), self._progress.bar(self._kind.doing, total=self._total, unit=unit) as bar, self._heartbeat():
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
                f"{self._total - self._done} remain. Run the same command again to resume"
            ) from stop
        finally:
            self.work.worker_hours = (time.monotonic() - began) * self._pool.workers / 3600
            self._save_rates()
            self._store.publish()
        return self.work

    def _loop(self, queue: deque[Task], bar: Bar, began: float) -> None:
        in_flight, is_stopping = 0, False
        while in_flight or (queue and not self._signals.name):
            # near the end of the queue no worker gets a second task while another has none
            while (
                queue and not self._signals.name and self._pool.takes(queue[0], ahead=len(queue) > self._pool.workers)
            ):
                task = self._next_task(queue)
                self._pool.submit(task, self._fitted)
                in_flight += 1
                self._in_hand += len(task.samples)
            if not in_flight and self._signals.name:
                break
            if queue and not is_stopping:
                self._pool.grow()
            ended_tasks = self._pool.wait()
            if self._signals.name and not is_stopping:
                is_stopping = True
                self._pool.stop()
            for task, outcome in ended_tasks:
                in_flight -= 1
                self._in_hand -= len(task.samples)
                self._ended_at = time.monotonic()
                ended_samples = self._ended(task, outcome, queue, is_stopping=is_stopping)
                self._done += ended_samples
                failed = len(self.work.failures) + len(self._held_failures)
                bar.advance(ended_samples, failed=failed, note=self._progress_note(began))
            self._store.publish_at_times()
        if self._done < self._total:
            self._signals.check()
        for failure in self._held_failures:
            self._record_failure(failure)
        self._held_failures.clear()

    def _next_task(self, queue: deque[Task]) -> Task:
        """The first of the queue, cut to what the tasks before it say that a worker makes in time."""
        task = queue.popleft()
        made = sum((rates["inputs"] for rates in self._rates.values()), 0)
        seconds = sum(rates["seconds"] for rates in self._rates.values()) / made if made else None
        parts = math.ceil(len(task.samples) / samples_per_task(seconds, self._batch_size))
        if task.attempts or parts <= 1:
            return task
        batches = math.ceil(len(task.samples) / parts / self._batch_size)
        size = batches * self._batch_size
        queue.appendleft(Task(task.samples[size:]))
        return Task(task.samples[:size], task.shard)

    def _ended(self, task: Task, outcome: Receipt | Exception, queue: deque[Task], *, is_stopping: bool) -> int:
        """Note the end of a task; returns how many of its samples are done with."""
        if not isinstance(outcome, Exception):
            self._succeeded(task, outcome)
            if outcome.undone:
                queue.appendleft(Task(task.samples[len(task.samples) - outcome.undone :]))
            return len(task.samples) - outcome.undone
        if is_stopping and not isinstance(outcome, (StoreError, OSError)):
            return 0  # whatever it was, the next run will meet it again
        retry = self._failed(task, outcome)
        if self._has_written_nothing:
            queue.extend(retry)
        else:
            queue.extendleft(reversed(retry))
        return 0 if retry else 1

    @contextmanager
    def _heartbeat(self) -> Generator[None, None, None]:
        """While tasks take long, a line a minute says that they are at work: in a thread, as one may be in this one."""
        ended = threading.Event()
        self._ended_at = time.monotonic()

        def beat() -> None:
            told = 0.0
            while not ended.wait(HEARTBEAT_S / 4):
                now = time.monotonic()
                if min(now - self._ended_at, now - told) >= HEARTBEAT_S:
                    told = now
                    waited = duration(now - self._ended_at)
                    self._progress.say(
                        f"still at work: {self._in_hand} {self._kind.takes}s in hand, {self._done} of {self._total} "
                        f"done; no task has ended for {waited}"
                    )
                    self._events.write(
                        "alive", in_hand=self._in_hand, done=self._done, waited_s=round(now - self._ended_at)
                    )

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @property
    def _has_written_nothing(self) -> bool:
        return not self.work.written

    def _succeeded(self, task: Task, receipt: Receipt) -> None:
        if task.attempts:  # the try before may have committed, and its worker died before it could say so
            receipt = replace(receipt, written=receipt.written + receipt.elsewhere, elsewhere=0)
        work = self.work
        work.written += receipt.written
        work.elsewhere += receipt.elsewhere
        work.bytes_written += receipt.bytes_written
        work.device = receipt.device
        work.phases.update(receipt.seconds)
        work.notes.update(receipt.notes)
        made = receipt.written + receipt.elsewhere
        self._rates[receipt.device].update({"inputs": made, "seconds": sum(receipt.seconds.values())})
        self._lower_batch(receipt.device, receipt.batch_size)
        failed_keys = {failure.key for failure in receipt.failures}
        tried = task.samples[: len(task.samples) - receipt.undone]
        failed_before = (self._failed_before.get(sample.key) for sample in tried if sample.key not in failed_keys)
        self._store.clear_failures([failure for failure in failed_before if failure is not None])
        for failure in receipt.failures:
            self._record_failure(failure)
        if made:
            self._failures_in_a_row = 0
            while self._held_failures:
                self._record_failure(self._held_failures.pop(0))
        with suppress(StoreError):  # the shard is safe; the publish at the end says what is wrong
            self._store.publish_at_times()
        self._events.write(
            "shard",
            written=receipt.written,
            failed=len(receipt.failures),
            done=self._done + len(tried),
            remaining=self._total - self._done - len(tried),
            seconds={phase: round(seconds, 3) for phase, seconds in receipt.seconds.items()},
            batch_size=receipt.batch_size,
            device=receipt.device,
        )

    def _failed(self, task: Task, error: Exception) -> list[Task]:
        """The tasks to try next; none if the task is a single sample that is out of tries."""
        if isinstance(error, (StoreError, WorldModelError, ConfigError, Interrupted, OSError)):
            raise error
        self._failures_in_a_row += 1
        if self._failures_in_a_row > FRUITLESS * max(1, self._pool.workers):
            raise WorldModelError(
                f"{self._failures_in_a_row} tasks in a row failed, the last with {reason_of(error)}. "
                f"{self.work.written or 'Nothing'} has been written. Run with --in-process --limit 1 to see where it "
                "breaks" + (", or with a smaller --size or fewer --steps" if is_out_of_memory(error) else "")
            ) from error
        if isinstance(error, MemoryError):  # main memory, not a device's: Ray killed the worker
            self._lower_batch(ANY_DEVICE, max(1, self._fitted.get(ANY_DEVICE, self._batch_size) // 2))
        if (retry := next_tries(task)) is not None:
            self.work.retries += 1
            self._events.write(
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
        if self._has_written_nothing:
            self._held_failures.append(failure)
        else:
            self._failures_in_a_row = 0
            self._record_failure(failure)
        return []

    def _record_failure(self, failure: Failure) -> None:
        before = self._failed_before.get(failure.key) if failure.key is not None else None
        if before is not None:
            failure = replace(failure, attempts=failure.attempts + before.attempts)
        self._store.record_failure(failure)
        self.work.failures.append(failure)
        self._events.write(
            "failure",
            source=failure.source,
            reason=failure.reason,
            message=failure.message,
            attempts=failure.attempts,
        )

    def _lower_batch(self, device: str, batch_size: int) -> None:
        if batch_size >= min(self._batch_size, self._fitted.get(device, self._batch_size)):
            return
        self._fitted[device] = batch_size
        if device != ANY_DEVICE:
            self._throughput.note_batch(self._store.recipe, device, batch_size)
        self._progress.warn(f"out of memory: batches of {batch_size} from here on ({device or 'every device'})")
        self._events.write("backoff", device=device, batch_size=batch_size)

    def _progress_note(self, began: float) -> str:
        reasons = Counter(failure.reason for failure in (*self.work.failures, *self._held_failures))
        hours = (time.monotonic() - began) * self._pool.workers / 3600
        return ", ".join([*(f"{count} {reason}" for reason, count in reasons.items()), f"{hours:.2f} worker-h"])

    def _save_rates(self) -> None:
        for device, sums in self._rates.items():
            self._throughput.note_rate(self._store.recipe, device, int(sums["inputs"]), sums["seconds"])
        with suppress(OSError):  # a full disk is reported by the store
            self._throughput.save(self._store.path / "tmp")


def next_tries(task: Task) -> list[Task] | None:
    """The tasks to try after a failure: the whole once more, then its halves; None for a sample out of tries."""
    is_single = len(task.samples) == 1
    if task.attempts + 1 < (SINGLE_ATTEMPTS if is_single else WHOLE_ATTEMPTS):
        return [Task(task.samples, task.shard, task.attempts + 1)]
    if is_single:
        return None
    middle = len(task.samples) // 2
    halves = (task.samples[:middle], task.shard), (task.samples[middle:], None)
    return [Task(samples, shard, WHOLE_ATTEMPTS - 1) for samples, shard in halves]
