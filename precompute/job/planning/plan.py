"""The plan of a run: which inputs are done, which failed before, and which remain to do.

The store says which are done, and its ledger which failed; all others are to do.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....pipeline.latents.recipe import Recipe
from ....pipeline.messages import format_bytes, name_some
from ....pipeline.store.folder import LatentStore
from ....pipeline.store.formats.base import STORED_DTYPES
from ....pipeline.store.keys.packed_keys import Keys, first_of_each, is_in, split_halves
from ....pipeline.store.ledger import Failure
from ...inputs.listing.inputs import Listing, Sample
from ...inputs.listing.selection import advice, counted, name_left_out
from ...rollout.kinds import KINDS
from ...worlds.source import WorldSource

SHARD_BYTES, LARGEST_SHARD = 64 * 2**20, 256
"""A shard file holds at most this. More samples in one would leave a small store's Zarr array almost empty."""
TASK_S, MOST_TASK_S = 150.0, 180.0
"""A task is cut to take about the first; a worker ends one that goes on for longer than the second, after a batch."""
TASKS_A_WORKER = 2
"""At least so many, as long as they fill a batch: at the end no worker waits long for another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The work of one run: which inputs are done, which failed before, and which remain to do."""

    inputs: int
    """Found, refused ones and duplicates included."""
    duplicates: int
    """Inputs whose content another input has too; they share one latent."""
    others: dict[str, int]
    """What other kinds take -> files passed over because they are that."""
    left_out: dict[str, int]
    """Suffix, or what else says it (inputs/selection.py) -> entries of the place passed over as no kind takes them."""
    done: int
    """Of this job's part, as are all that follow."""
    failed_before: tuple[Failure, ...]
    """Inputs of this run that failed in an earlier one and are not tried again."""
    refused: tuple[Failure, ...]
    """Inputs that cannot even be read."""
    dropped: tuple[str, ...] = ()
    """Inputs whose latents were taken out of the store on purpose: they are not made again."""
    todo: tuple[Sample, ...]
    sample_bytes: int
    of_other_parts: int = 0
    """Distinct inputs that other jobs take, where this one has a part."""
    notes: tuple[str, ...] = ()
    """What was taken otherwise than it is written, and how often."""

    @property
    def distinct(self) -> int:
        """Readable inputs of this job's part, each once: those done, failed or dropped before, and those to do."""
        return self.done + len(self.failed_before) + len(self.dropped) + len(self.todo)

    @property
    def passed_over(self) -> dict[str, int]:
        """`others` and `left_out` as one, for programs."""
        return {**{f"{takes}s": count for takes, count in self.others.items()}, **self.left_out}

    def named_left_out(self) -> str:
        """What was passed over, in words; empty where nothing was."""
        others = f"{counted(self.others)} ({advice(self.others)})" if self.others else ""
        return ", ".join(filter(None, (others, name_left_out(self.left_out))))

    def lines(self, recipe: Recipe, world: WorldSource, store: str, shards: int = 0) -> list[str]:
        """The plan as a person reads it.

        Args:
            shards: that the work will be cut into; 0 where that is not known.
        """
        kind = KINDS[recipe.kind]
        extra = f", {self.duplicates} duplicates" if self.duplicates else ""
        if self.refused:
            reasons = Counter(failure.reason for failure in self.refused)
            extra += f", {len(self.refused)} unreadable ({', '.join(f'{n} {reason}' for reason, n in reasons.items())})"
        # a file of latents and a record; some more, which do not grow with the work
        files = f" in about {2 * shards:,} files" if shards else ""
        failed = f", {len(self.failed_before)} failed before (--retry-failed tries them again)"
        return [
            f"world   {world.name} ({recipe.world[:20]}…), {recipe.height}x{recipe.width}, "
            f"{kind.describe(recipe, world)}",
            f"{kind.takes}s  {self.inputs}{extra}",
            *([f"left out {self.named_left_out()}"] if self.others or self.left_out else []),
            *(f"note: {note}" for note in self.notes),
            *([f"part    {self.of_other_parts} {kind.takes}s are of other parts"] if self.of_other_parts else []),
            f"store   {store}",
            f"to do   {len(self.todo)} {kind.makes}, {format_bytes(len(self.todo) * self.sample_bytes)}"
            f"{files}; {self.done} done{failed if self.failed_before else ''}",
            *([f"dropped {self._named_dropped()}"] if self.dropped else []),
        ]

    def _named_dropped(self) -> str:
        undo = "`theworld cache drop STORE --undo` lets them be made"
        return f"{len(self.dropped)} on purpose, so not made again: {name_some(self.dropped)}. {undo}"


def make_plan(
    listing: Listing,
    store: LatentStore | None,
    sample_bytes: int,
    *,
    retry_failed: bool,
    part: tuple[int, int] = (1, 1),
) -> Plan:
    """Compare the inputs with the store, which may not exist yet.

    Args:
        part: (i, n) plans only the i-th of n parts of the inputs, from 1.
    """
    samples = listing.samples
    packed = samples.packed_keys()
    all_unique = first_of_each(packed)  # by number: a million inputs are not made objects to see that all are done
    unique = all_unique[are_in_part(packed[all_unique], part)]
    is_done = np.zeros(len(unique), bool) if store is None else store.holds(packed[unique])
    failed = {failure.key or failure.source: failure for failure in (store.failures() if store else [])}
    missing = [samples[at] for at in unique[~is_done].tolist()]
    dropped: dict[str, str] = {}
    if store is not None and len(store.dropped):
        is_dropped = is_in(packed[unique], store.dropped)
        dropped = {samples[at].key: samples[at].source for at in unique[is_dropped].tolist()}
    failed_before = [] if retry_failed else [failed[sample.key] for sample in missing if sample.key in failed]
    failed_before = [failure for failure in failed_before if failure.key not in dropped]
    skip = {*dropped, *(failure.key for failure in failed_before)}
    return Plan(
        inputs=len(listing.samples) + len(listing.refused),
        duplicates=len(samples) - len(all_unique),
        others=listing.others,
        left_out=dict(listing.left_out),
        done=int(is_done.sum()),
        failed_before=tuple(failed_before),
        refused=tuple(bad for bad in listing.refused if is_in_part(_key_of_name(bad.source), part)),
        dropped=tuple(dropped.values()),
        of_other_parts=len(all_unique) - len(unique),
        todo=tuple(sample for sample in missing if sample.key not in skip),
        sample_bytes=sample_bytes,
        notes=listing.notes,
    )


def are_in_part(keys: Keys, part: tuple[int, int]) -> NDArray[np.bool_]:
    """`is_in_part` of packed keys."""
    high, low = split_halves(keys)
    number, count = np.uint64(part[0]), np.uint64(part[1])
    above = (high % count) * np.uint64(2**64 % part[1]) % count  # no product here has more than 64 bits
    return (above + low % count) % count == number - np.uint64(1)


def is_in_part(key: str, part: tuple[int, int]) -> bool:
    """Whether a key belongs to the i-th of n parts: by its own digits, so it stays there as inputs come and go."""
    number, count = part
    return int(key, 16) % count == number - 1


def _key_of_name(source: str) -> str:
    """Stands for the key of an input that could not be read: one of the jobs has to list it."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def first_failures(failures: Sequence[Failure], most: int = 5) -> list[Failure]:
    """The first few, of each reason at least one; in their order."""
    first = {failure.reason: at for at, failure in reversed(list(enumerate(failures)))}
    chosen = set(first.values())
    for at in range(len(failures)):
        if len(chosen) >= most:
            break
        chosen.add(at)
    return [failures[at] for at in sorted(chosen)]


def bytes_per_sample(shape: Sequence[int], dtype: str) -> int:
    """Bytes of one stored latent."""
    return int(np.prod(shape)) * STORED_DTYPES[dtype].itemsize


def shard_capacity(sample_bytes: int) -> int:
    """Rows that a shard file of a new store has room for: by bytes alone, so that a trial run decides nothing."""
    return max(1, min(LARGEST_SHARD, SHARD_BYTES // sample_bytes))


def samples_per_task(seconds: float | None, batch_size: int) -> int:
    """Samples in `TASK_S`: whole batches, as a part of one costs as much as all of it.

    Args:
        seconds: that one sample takes a worker; None where nothing is known of it.
    """
    if not seconds:
        return sys.maxsize
    return max(1, int(TASK_S / seconds / batch_size)) * batch_size


def task_size(todo: int, most: int, workers: int, batch_size: int) -> int:
    """Samples of a task: up to `most`, and few enough that every worker gets some.

    Args:
        batch_size: no task is made smaller than a batch for the workers' sake.
    """
    share = math.ceil(todo / (workers * TASKS_A_WORKER)) if workers > 1 else todo
    return max(1, min(most, math.ceil(share / batch_size) * batch_size))


def cut_tasks(samples: Sequence[Sample], most: int, workers: int, batch_size: int) -> list[tuple[Sample, ...]]:
    """Parts of the work in order, each of `task_size`."""
    size = task_size(len(samples), most, workers, batch_size)
    return [tuple(samples[start : start + size]) for start in range(0, len(samples), size)]
