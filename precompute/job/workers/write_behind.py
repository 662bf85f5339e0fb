"""Write a batch into the shard while the next one is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from torch import Tensor

from ....pipeline.errors import LatentShapeError
from ....pipeline.failures import FailureReason
from ....pipeline.store.ledger import Failure
from ....pipeline.store.writer import ShardWriter
from ...inputs.listing.inputs import Sample
from .decode_ahead import Decoded, failure_of


class WriteBehind:
    """Adds batches to a shard in a thread, in their order; one is written while at most one waits for it.

    What goes wrong there is raised by the next `add`, by `finish`, or at the end of the block, in place of whatever
    ended that: a failed write is never lost, and nothing is committed over it.
    """

    def __init__(self, shard: ShardWriter, note: Callable[[int, int], None]) -> None:
        """
        Args:
            note: told in the thread, after each batch, how many samples and how many batches are done with.
        """
        self._shard, self._note = shard, note
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[None] | None = None
        self.waited_s = 0.0
        self.written = self.batches = 0
        self.failures: list[Failure] = []
        """In the order of the batches. These are complete after `finish`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self.finish()

    def add(self, batch: Decoded, latents: Sequence[Tensor | None]) -> None:
        """Write a batch once the one before is written.

        Args:
            latents: on the CPU, of the batch's samples; None where one did not fit in memory alone.
        Raises:
            StoreError, OSError: the batch before could not be written.
        """
        self.finish()
        # not the batch itself, whose pixels would stay in memory
        self._writing = self._thread.submit(self._write, batch.samples, latents, batch.failures)

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            StoreError, OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        started = time.monotonic()
        if writing is not None:
            writing.result()
        self.waited_s += time.monotonic() - started

    def _write(self, samples: list[Sample], latents: Sequence[Tensor | None], undecoded: list[Failure]) -> None:
        self.failures += undecoded
        for sample, latent in zip(samples, latents, strict=True):
            if latent is None:
                message = f"{sample.source} does not fit in memory, not even alone; others of its size did"
                self.failures.append(failure_of(sample, FailureReason.OOM, message))
                continue
            try:
                self._shard.add(sample.key, latent.numpy())
                self.written += 1
            except LatentShapeError as error:  # NaN, or beyond what the stored dtype holds
                self.failures.append(failure_of(sample, FailureReason.LATENT, f"{sample.source}: {error}"))
        self.batches += bool(samples)
        self._note(self.written + len(self.failures), self.batches)
