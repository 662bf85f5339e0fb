"""Decode the next batches while the world model computes, in the task's order.

samples   | in hand | ahead: two batches, one for each decoder, at most 1 GiB | not yet begun
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ....pipeline.errors import ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files.remote import is_remote
from ....pipeline.latents.recipe import Recipe
from ....pipeline.store.ledger import Failure
from ...inputs.listing.inputs import Sample
from ...rollout.kind import Loaded

MOST_DECODERS = 8
"""Of a worker by default."""
_FETCHERS = 16
"""Requests at once for inputs that lie elsewhere."""
_BATCHES_AHEAD = 2
_BYTES_AHEAD = 2**30
"""Of pixels, beyond one batch: a clip of 93 frames at 480x832 has 446 MB."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One batch: what can be used of its samples, and what cannot."""

    samples: list[Sample] = field(default_factory=list[Sample])
    loaded: list[Loaded] = field(default_factory=list[Loaded])
    """In the order of `samples`."""
    failures: list[Failure] = field(default_factory=list[Failure])


def default_decoders(recipe: Recipe, cores: int) -> int:
    """Decoders of a worker: one beside rollouts, which take longest by far; else one a core, less one for the worker.

    Args:
        cores: of the machine, for this worker.
    """
    predicts = recipe.traits.predicts and recipe.rollout_steps > 0
    return 1 if predicts else max(1, min(MOST_DECODERS, cores - 1))


def decode_ahead(
    samples: Sequence[Sample],
    load: Callable[[Sample], Loaded],
    batch_size: Callable[[], int],
    decoders: int,
    load_fetched: Callable[[Sample, Future[bytes]], Loaded] | None = None,
    read: Callable[[Sample], bytes] | None = None,
) -> Generator[tuple[Decoded, float]]:
    """Batches of decoded samples in their order, and the seconds spent waiting for each.

    Args:
        load: called in `decoders` threads; an ImageError costs its sample.
        batch_size: of the next batch; it may fall while the task goes on.
        load_fetched, read: for samples that lie elsewhere: `read` is called in `_FETCHERS` threads as soon as a sample
            may be decoded, `load_fetched` with what it returns or raises.
    """
    pending, ahead = deque(samples), deque[tuple[Sample, Future[Loaded]]]()
    pool = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
    fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
    sample_bytes = 0

    def fill(room: int) -> None:
        while pending and len(ahead) < room:
            sample = pending.popleft()
            if load_fetched is not None and read is not None and is_remote(sample.location.path):
                fetched = fetchers.submit(read, sample)  # its threads start with the first
                ahead.append((sample, pool.submit(load_fetched, sample, fetched)))
            else:
                ahead.append((sample, pool.submit(load, sample)))

    try:
        while pending or ahead:
            size = batch_size()
            fill(size + _samples_ahead(size, decoders, sample_bytes))
            started = time.monotonic()
            batch = Decoded()
            for _ in range(min(size, len(ahead))):
                sample, loading = ahead.popleft()
                try:
                    batch.loaded.append(loading.result())
                    batch.samples.append(sample)
                except ImageError as error:
                    batch.failures.append(failure_of(sample, error.reason, str(error)))
            if batch.loaded:
                sample_bytes = batch.loaded[0].pixels.nbytes
            yield batch, time.monotonic() - started
    finally:
        fetchers.shutdown(wait=False, cancel_futures=True)
        pool.shutdown(cancel_futures=True)
        fetchers.shutdown()


def failure_of(sample: Sample, reason: FailureReason, message: str) -> Failure:
    """A row for the ledger."""
    return Failure(source=sample.source, key=sample.key, reason=reason, message=message, attempts=1)


def _samples_ahead(batch_size: int, decoders: int, sample_bytes: int) -> int:
    """Decoded or being decoded beyond the batch in hand: one batch at least, and while nothing is known of its size."""
    wanted = max(_BATCHES_AHEAD * batch_size, decoders)
    return max(batch_size, min(wanted, _BYTES_AHEAD // sample_bytes if sample_bytes else 0))
