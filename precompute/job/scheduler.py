"""The loop of a job: hand tasks to workers until every input is done or in the ledger.

If a task fails, it is tried once more by itself, and then in halves, until the sample that breaks it is found. That
sample goes into the ledger with its reason; all others are done. If a worker dies, Ray starts it again and its tasks
come back to this loop. If a batch does not fit in memory, it is halved for all workers on such a device.

Tasks are cut to `TASK_S` by what the plan knows, and again once the first of them has been measured. At a signal no new
task begins; those in hand end after their batch, commit what they have, and hand the rest back.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...pipeline.errors import ConfigError, Interrupted, StoreError, WorldModelError
from ...pipeline.failures import FailureReason
from ...pipeline.machine import is_out_of_memory
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.ledger import Failure
from ..rollout.kinds import KINDS
from .planning.plan import samples_per_task
from .planning.throughput import ANY_DEVICE, ThroughputLog
from .signals import Signals, held, signal_behind
from .watching.events import Events
from .watching.watch import Figures, watched
from .workers.pool import Pool, Task, reason_of

if TYPE_CHECKING:  # diffusers takes seconds to import, and a run with nothing to do needs none of it
    from .workers.worker import Receipt

WHOLE_ATTEMPTS = 2
"""Tries of a task as a whole before it is halved to find the sample that breaks it."""
SINGLE_ATTEMPTS = 3
"""Tries of a single sample: one of them may fail because the worker died for another reason."""
FRUITLESS = 16
"""Failed tasks in a row, per worker, after which the samples are not to blame; finding one takes 2 + log2(shard)."""


@dataclass
class Work:
    """Counts and times of a run so far."""

    written: int = 0
    shards: int = 0
    """This run's own, as all that is counted here."""
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
    """Of all workers, each from when it was asked for: loading, waiting and late starts are counted as they were."""
    gpu_hours: float = 0.0
    """Of all GPUs that they held."""
    device: str = ""
    """Of one of the workers, by its model."""
    peak_bytes: int | None = None
    """The most that tensors of a worker took on its GPU; None without one."""
    batch_size: int | None = None
    """The smallest that a worker made; None before the first."""


class Scheduler:
    """The loop of a job, from its first task to its last."""

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
        self._to_record: list[Failure] = []
        self._to_clear: list[Failure] = []
        """Of the tasks that just ended: both go to the ledger at once, which syncs the disk for each file."""
        self._to_tell: list[dict[str, Any]] = []
        """Events of the shards that just ended."""
        self._reasons = Counter[str](failure.reason for failure in refused)
        """Of the failures in the ledger."""
        self._total = self._done = self._batches = 0
        self._in_hand: dict[str, Task] = {}
        """By the key of its first sample."""
        self.work = Work(failures=list(refused))

    def run(self, tasks: Sequence[Task]) -> Work:
        """Do all tasks.

        Raises:
            StoreError, OSError: the store cannot be written. ConfigError, WorldModelError: the workers cannot work.
            Interrupted: a signal, or Ray is gone; what is committed stays.
        """
        self._total = sum(len(task.samples) for task in tasks)
        self._events.figures = lambda: self.figures().to_json()
        try:
            self.work.load_s = self._pool.start()
            self._say_ready()
            started = time.monotonic()
            with held(), watched(self._progress, self._kind, self._total, self.figures):
                try:
                    self._loop(deque(tasks))
                except BaseException:
                    self._in_hand.clear()  # it is not made, and Ray, which would know how far it is, may be gone
                    with suppress(StoreError, OSError):  # what is not on record is tried again
                        self._note_ended_tasks()
                    raise
                finally:
                    self.work.seconds = time.monotonic() - started
        except (Interrupted, SystemError) as error:
            if (stop := signal_behind(error)) is None:
                raise
            cause = str(stop).partition(". ")[0]
            raise Interrupted(
                f"{cause}: {self.work.written} {self._kind.makes} were committed to {self._store.place} and stay; "
                f"{self._total - self._done} remain. Run the same command again to resume"
            ) from stop
        finally:
            figures = self.figures()
            self._events.figures = lambda: figures.to_json()  # the pool is gone soon
            self.work.worker_hours, self.work.gpu_hours = figures.worker_s / 3600, figures.gpu_hours
            self._save_rates()
            self._store.publish()
        return self.work

    def figures(self) -> Figures:
        """How far the run is; may be asked in another thread."""
        in_hand = dict(self._in_hand)
        counted = {key: counts for key, counts in self._pool.counts().items() if key in in_hand} if in_hand else {}
        worker_s = self._pool.worker_s()
        return Figures(
            total=self._total,
            done=self._done,
            in_hand=sum(len(task.samples) for task in in_hand.values()),
            made=sum(min(samples, len(in_hand[key].samples)) for key, (samples, _) in counted.items()),
            batches=self._batches + sum(batches for _, batches in counted.values()),
            failures=self._reasons + Counter(failure.reason for failure in tuple(self._held_failures)),
            workers=self._pool.workers,
            worker_s=worker_s,
            gpus_a_worker=self._pool.gpus_a_worker,
        )

    def _say_ready(self) -> None:
        workers = self._pool.workers
        nodes = len({place.get("host") for place in self._pool.where}) or 1
        ready_s = self._pool.worker_s() / max(1, workers)  # all were asked for at the same time
        self._progress.say(
            f"{workers} worker{'s' * (workers != 1)} on {nodes} node{'s' * (nodes != 1)} ready after {ready_s:.1f} s"
        )
        self._events.write(
            "started",
            store=str(self._store.path.resolve() if self._store.place.is_local else self._store.place),
            workers=workers,
            nodes=nodes,
            load_s=round(self.work.load_s, 3),
            ready_s=round(ready_s, 3),
            where=self._pool.where,
        )

    def _loop(self, queue: deque[Task]) -> None:
        is_stopping = False
        while self._in_hand or (queue and not self._signals.name):
            # near the end of the queue no worker gets a second task while another has none
            while (
                queue and not self._signals.name and self._pool.takes(queue[0], ahead=len(queue) > self._pool.workers)
            ):
                task = self._next_task(queue)
                self._pool.submit(task, self._fitted)
                self._in_hand[task.samples[0].key] = task
            if not self._in_hand and self._signals.name:
                break
            if queue and not is_stopping:
                self._pool.grow()
            ended_tasks = self._pool.wait()
            if self._signals.name and not is_stopping:
                is_stopping = True
                self._pool.stop()
            for task, outcome in ended_tasks:
                self._done += self._ended(task, outcome, queue, is_stopping=is_stopping)
                self._in_hand.pop(task.samples[0].key)
            self._note_ended_tasks()
            self._store.publish_at_times()
        if self._done < self._total:
            self._signals.check()
        self._to_record += self._held_failures
        self._held_failures.clear()
        self._note_ended_tasks()

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

    @property
    def _has_written_nothing(self) -> bool:
        return not self.work.written

    def _succeeded(self, task: Task, receipt: Receipt) -> None:
        if task.attempts:  # the try before may have committed, and its worker died before it could say so
            receipt = replace(receipt, written=receipt.written + receipt.elsewhere, elsewhere=0)
        work = self.work
        work.written += receipt.written
        work.shards += receipt.written > 0
        self._batches += receipt.batches
        work.elsewhere += receipt.elsewhere
        work.bytes_written += receipt.bytes_written
        work.device = receipt.device
        work.peak_bytes = max(filter(None, (work.peak_bytes, receipt.peak_bytes)), default=None)
        work.batch_size = min(receipt.batch_size, work.batch_size or receipt.batch_size)
        work.phases.update(receipt.seconds)
        work.notes.update(receipt.notes)
        made = receipt.written + receipt.elsewhere
        rated_s = sum(receipt.seconds.values()) - receipt.unrated_s
        self._rates[receipt.device].update({"inputs": made, "seconds": rated_s})
        self._lower_batch(receipt.device, receipt.batch_size)
        failed_keys = {failure.key for failure in receipt.failures}
        tried = task.samples[: len(task.samples) - receipt.undone]
        failed_before = (self._failed_before.get(sample.key) for sample in tried if sample.key not in failed_keys)
        self._to_clear += [failure for failure in failed_before if failure is not None]
        self._to_record += receipt.failures
        if made:
            self._failures_in_a_row = 0
            self._to_record += self._held_failures
            self._held_failures.clear()
        with suppress(StoreError):  # the shard is safe; the publish at the end says what is wrong
            self._store.publish_at_times()
        self._to_tell.append(
            {
                "written": receipt.written,
                "elsewhere": receipt.elsewhere,
                "failed": len(receipt.failures),
                "done": self._done + len(tried),
                "remaining": self._total - self._done - len(tried),
                "seconds": {phase: round(seconds, 3) for phase, seconds in receipt.seconds.items()},
                "batch_size": receipt.batch_size,
                "device": receipt.device,
            }
        )

    def _failed(self, task: Task, error: Exception) -> list[Task]:
        """The tasks to try next; none if the task is a single sample that is out of tries."""
        if isinstance(error, (StoreError, WorldModelError, ConfigError, Interrupted, OSError)):
            raise error
        self._failures_in_a_row += 1
        if self._failures_in_a_row > FRUITLESS * max(1, self._pool.workers):
            raise WorldModelError(
                f"{self._failures_in_a_row} tasks in a row failed, the last with {reason_of(error)}. "
                f"{self.work.written or 'Nothing'} has been written. {_advice(error, self._kind.takes)}"
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
            self._to_record.append(failure)
        return []

    def _note_ended_tasks(self) -> None:
        """Write the failures of ended tasks to the ledger; a failure is reported only after that is durable."""
        try:
            self._record_failures()
        finally:
            for fields in self._to_tell:
                self._events.write("shard", **fields)
            self._to_tell = []

    def _record_failures(self) -> None:
        if self._to_clear:
            self._store.clear_failures(self._to_clear)
            self._to_clear = []
        if not self._to_record:
            return
        failures: list[Failure] = []
        for failure in self._to_record:
            before = self._failed_before.get(failure.key) if failure.key is not None else None
            failures.append(
                failure if before is None else replace(failure, attempts=failure.attempts + before.attempts)
            )
        self._store.record_failures(failures)
        self._to_record = []
        self.work.failures += failures
        self._reasons.update(failure.reason for failure in failures)
        for failure in failures:
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

    def _save_rates(self) -> None:
        for device, sums in self._rates.items():
            self._throughput.note_rate(self._store.recipe, device, int(sums["inputs"]), sums["seconds"])
        with suppress(OSError):  # a full disk is reported by the store
            self._throughput.save(self._store.path / "tmp" if self._store.place.is_local else None)


def _advice(error: Exception, takes: str) -> str:
    if is_out_of_memory(error):
        return f"Not even one {takes} fits: choose a smaller --size, fewer --steps, or a device with more memory"
    return "Run with --in-process --limit 1 to see where it breaks"


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
