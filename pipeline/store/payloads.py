"""Whether every payload is there with the size that its record states: one look at each, no file is opened."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from ..errors import DamagedShardError, StoreError
from ..messages import command
from .keys.runs import record_tags
from .latent_store import LatentStore
from .payload_sizes import listed_problem, listed_sizes, size_problem
from .records import record_name

_REQUESTS = 16
_NAMED = 3
"""Payloads that a message names; of a store cut in half there are thousands."""


def require_payloads(store: LatentStore) -> None:
    """Find out before the first rollout or update, and not in the middle, which payloads are missing or cut short.

    A store that tolerates damage goes on without their shards: their keys are missing, so that a job makes them again,
    and `damage` says so.

    Raises:
        DamagedShardError: some are, and the store does not tolerate that.
        StoreError: one cannot be looked at.
    """
    problems = payload_problems(store)
    if not problems:
        return
    rows = sum(store.shards[number].rows for number in problems)
    named = [f"{store.payload_location(number)}: {problem}" for number, problem in list(problems.items())[:_NAMED]]
    more = f"\n    … and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    message = (
        f"{store.place}: {len(problems)} of {len(store.shards)} payloads, with {rows} latents, are not what their "
        "records state:\n    " + "\n    ".join(named) + f"{more}\nIf the store was copied, copy it again. Else "
        f"`{command('cache', 'repair', str(store.place), '--apply')}` moves what is left of them to lost+found, and "
        "`theworld precompute` with the same flags makes these rollouts again"
    )
    if not store.tolerates_damage:
        raise DamagedShardError(message)
    store.disregard(problems, message)


def payload_problems(store: LatentStore) -> dict[int, str]:
    """The shards whose payload is not there, no file, or of another size than its record states.

    Raises:
        StoreError: one cannot be looked at, by this user or now.
    """
    problems: dict[int, str] = {}
    place, layout = store.place, store.layout
    listed = None if place.is_local else listed_sizes(place, layout.payload_folder)
    if listed is not None:
        top = len(layout.payload_folder) + 1
        numbers = {layout.number_of(name[top:].partition("/")[0]) for name in listed} - {None, *store.bad_records}
        _require_listed(store, {n for n in numbers.difference(store.shards.numbers.tolist()) if n is not None})
    for number, _, stated_bytes in store.shards.table().tolist():  # an object a shard would take longer than the looks
        name = layout.payload_name(number)
        problem = (
            size_problem(place, name, stated_bytes, number)
            if listed is None
            else listed_problem(listed, name, stated_bytes)
        )
        if problem is not None:
            problems[number] = problem
    return problems


def unrecorded_payloads(store: LatentStore) -> set[int]:
    """The shards that have a payload and no record.

    Raises:
        StoreError: the folder of the payloads cannot be listed.
    """
    recorded = record_tags(store.place).keys()
    try:
        payloads = store.layout.payload_numbers(store.place, but=recorded)
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be listed: {error.strerror}") from error
    unrecorded = payloads - record_tags(store.place).keys()  # listed again: a writer may have committed in between
    _require_listed(store, unrecorded)
    return unrecorded


def _require_listed(store: LatentStore, numbers: Collection[int]) -> None:
    """Look for the records of payloads that seem to have none: a listing that lacks some hides their latents.

    Raises:
        StoreError: a bucket does not list a record that is there.
    """
    if store.place.is_local or not numbers:
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        entries = pool.map(store.place.entry, map(record_name, numbers))
        recorded = {number for number, entry in zip(numbers, entries, strict=True) if entry is not None}
    if hidden := sorted(recorded - record_tags(store.place).keys()):  # a writer may have committed in between
        raise StoreError(
            f"{store.place}: its listing lacks records that are there ({len(hidden)}, such as "
            f"{record_name(hidden[0])}), so their latents would be missed. Run the same command again; if it says so "
            "again, keep stores on a server whose listings are complete (S3, GCS, Azure, R2, MinIO and Ceph)"
        )
