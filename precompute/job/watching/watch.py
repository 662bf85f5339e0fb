"""Report a job while it runs, to people and programs, from a thread: the job's loop may wait for minutes.

On a terminal a bar; elsewhere a line every ten seconds, as long as batches end; and a heartbeat when none does.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ....pipeline.progress import Bar, Progress
from ...rollout.kind import Kind
from ..planning.cost import duration

LOOK_S = 1.0
"""Between looks at the counts of the workers."""
HEARTBEAT_S = 60.0
"""After so long without the end of a batch, a line says that the job lives."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The progress of a run, in numbers."""

    total: int
    done: int
    """Of tasks that have ended: made and committed, or failed."""
    in_hand: int
    """Given to workers."""
    made: int
    """Of those in hand: in batches that have ended, to be committed with their shard."""
    batches: int
    """That have ended, of all tasks."""
    failures: Counter[str]
    """By reason."""
    workers: int
    worker_s: float
    gpus_a_worker: float

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs that were held, in use or not."""
        return self.worker_s * self.gpus_a_worker / 3600

    def note(self) -> str:
        """The note behind the bar."""
        reasons = [f"{count} {reason}" for reason, count in self.failures.items()]
        hours = f"{self.gpu_hours:.2f} GPU-h" if self.gpus_a_worker else f"{self.worker_s / 3600:.2f} worker-h"
        return ", ".join([*reasons, f"{self.batches} batch{'es' * (self.batches != 1)}", hours])

    def to_json(self) -> dict[str, Any]:
        """As the events have it."""
        return {
            "done": self.done,
            "made": self.made,
            "in_hand": self.in_hand,
            "batches": self.batches,
            "workers": self.workers,
            "worker_hours": round(self.worker_s / 3600, 5),
            "gpu_hours": round(self.gpu_hours, 5),
        }


@contextmanager
def watched(progress: Progress, kind: Kind, total: int, figures: Callable[[], Figures]) -> Generator[None, None, None]:
    """Show the figures while the block runs, and what they are at its end."""
    with progress.bar(kind.doing, total=total, unit=f"{kind.takes}s") as bar:
        watch = _Watch(progress, kind, bar, figures)
        thread = threading.Thread(target=watch.run, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            watch.ended.set()
            thread.join(2 * LOOK_S)  # Ray's table may be gone, and asking it take a minute
            watch.show(figures())


class _Watch:
    def __init__(self, progress: Progress, kind: Kind, bar: Bar, figures: Callable[[], Figures]) -> None:
        self.ended = threading.Event()
        self._progress, self._kind, self._bar, self._figures = progress, kind, bar, figures
        self._reported = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        changed_at = said_at = time.monotonic()
        before = (0, 0)
        while not self.ended.wait(LOOK_S):
            figures = self._figures()
            if self.ended.is_set():
                return
            now = time.monotonic()
            if before != (before := (figures.done, figures.made)):
                changed_at = said_at = now
                self.show(figures)
            elif now - said_at >= HEARTBEAT_S:
                said_at = now
                self._progress.say(
                    f"still at work: {figures.in_hand} {self._kind.takes}s in hand, {figures.done + figures.made} of "
                    f"{figures.total} made; no batch has ended for {duration(now - changed_at)}"
                )

    def show(self, figures: Figures) -> None:
        with self._lock:
            processed = figures.done + figures.made
            count, self._reported = processed - self._reported, processed
            self._bar.advance(count, failed=figures.failures.total(), note=figures.note())
