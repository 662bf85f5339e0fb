"""The plan of a run: which inputs are done, which failed before, and which remain to do.

The store says which are done, and its ledger which failed; all others are to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...pipeline.latents.recipe import Recipe
from ...pipeline.messages import format_bytes, name_some
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.formats.base import STORED_DTYPES
from ...pipeline.store.ledger import Failure
from ...pipeline.store.packed_keys import first_of_each, is_in
from ..inputs.listing import Listing, Sample
from ..inputs.selection import advice, counted, name_left_out
from ..rollout.kinds import KINDS
from ..worlds.source import WorldSource

SMALLEST_SHARD, LARGEST_SHARD = 16, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The work of one run."""

    inputs: int
    """Found, refused ones and duplicates included."""
    duplicates: int
    """Inputs whose content another input has too; they share one latent."""
    others: dict[str, int]
    """What other kinds take -> files passed over because they are that."""
    left_out: dict[str, int]
    """Suffix, or what else says it (inputs/selection.py) -> entries of the place passed over as no kind takes them."""
    done: int
    failed_before: tuple[Failure, ...]
    """Inputs of this run that failed in an earlier one and are not tried again."""
    refused: tuple[Failure, ...]
    """Inputs that cannot even be read."""
    dropped: tuple[str, ...] = ()
    """Inputs whose latents were taken out of the store on purpose: they are not made again."""
    todo: tuple[Sample, ...]
    sample_bytes: int
    notes: tuple[str, ...] = ()
    """What was taken otherwise than it is written, and how often."""

    @property
    def passed_over(self) -> dict[str, int]:
        """`others` and `left_out` as one, for programs."""
        return {**{f"{takes}s": count for takes, count in self.others.items()}, **self.left_out}

    def named_left_out(self) -> str:
        """What was passed over, in words; empty where nothing was."""
        others = f"{counted(self.others)} ({advice(self.others)})" if self.others else ""
        return ", ".join(filter(None, (others, name_left_out(self.left_out))))

    def lines(self, recipe: Recipe, world: WorldSource, store: str) -> list[str]:
        """The plan as a person reads it."""
        kind = KINDS[recipe.kind]
        extra = f", {self.duplicates} duplicates" if self.duplicates else ""
        if self.refused:
            reasons = Counter(failure.reason for failure in self.refused)
            extra += f", {len(self.refused)} unreadable ({', '.join(f'{n} {reason}' for reason, n in reasons.items())})"
        failed = f", {len(self.failed_before)} failed before (--retry-failed tries them again)"
        return [
            f"world   {world.name} ({recipe.world[:20]}…), {recipe.height}x{recipe.width}, "
            f"{kind.describe(recipe, world)}",
            f"{kind.takes}s  {self.inputs}{extra}",
            *([f"left out {self.named_left_out()}"] if self.others or self.left_out else []),
            *(f"note: {note}" for note in self.notes),
            f"store   {store}",
            f"to do   {len(self.todo)} {kind.makes}, {format_bytes(len(self.todo) * self.sample_bytes)}; "
            f"{self.done} done{failed if self.failed_before else ''}",
            *([f"dropped {self._named_dropped()}"] if self.dropped else []),
        ]

    def _named_dropped(self) -> str:
        undo = "`theworld cache drop STORE --undo` lets them be made"
        return f"{len(self.dropped)} on purpose, so not made again: {name_some(self.dropped)}. {undo}"


def make_plan(listing: Listing, store: LatentStore | None, sample_bytes: int, *, retry_failed: bool) -> Plan:
    """Compare the inputs with the store, which may not exist yet."""
    samples = listing.samples
    packed = samples.packed_keys()
    unique = first_of_each(packed)  # by number: a million inputs are not made objects to see that all are done
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
        duplicates=len(samples) - len(unique),
        others=listing.others,
        left_out=dict(listing.left_out),
        done=int(is_done.sum()),
        failed_before=tuple(failed_before),
        refused=listing.refused,
        dropped=tuple(dropped.values()),
        todo=tuple(sample for sample in missing if sample.key not in skip),
        sample_bytes=sample_bytes,
        notes=listing.notes,
    )


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


def choose_shard_size(todo: int, workers: int) -> int:
    """Samples per shard of a new store: as many as 256, and few enough that every worker gets about four shards."""
    size = LARGEST_SHARD
    while size > SMALLEST_SHARD and size * workers * 4 > todo:
        size //= 2
    return size
