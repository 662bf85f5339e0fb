"""Copying latents between stores of one recipe: another format, a part of a store, several machines' work in one.

Full and large shards are copied as they are (whole_shards.py); all else goes key by key through the same reads and the
same commit as everywhere. Bits are checked on the way, a key already there is not copied again, and a copy that was cut
goes on where it stopped. So it can be repeated at will.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, DamagedShardError, LatentShapeError, StoreMismatchError
from ...files.places.folder import Folder, path_or_url
from ...files.places.local import place_of, require_local
from ...files.places.place import Place, parent_of
from ...files.plain import read_file
from ...latents.keys import is_key
from ...latents.recipe import difference
from ...progress import Progress
from ..folder import create_store, is_store, label_of, load_store, open_to_write
from ..formats import StoreFormat
from ..keys.packed_keys import is_in, pack_keys
from ..latent_store import LatentStore
from ..prompt_files import copy_prompts
from ..records import origins_of, read_record
from .drop import follow_drops
from .whole_shards import copy_whole, whole_shards

_KEYS_LIMIT_BYTES = 2**31
_ROWS, _ROWS_BYTES = 64, 2**28
"""Asked for at once, where each row of a bucket is a request."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What one store gave to another."""

    source: Path | str
    copied: int
    present: int
    """Keys the target had already."""
    damaged: tuple[str, ...]
    """One message per sample or file that could not be copied; all else was."""
    dropped: int = 0
    """Keys that were dropped from the target on purpose, so they were not copied."""


def export(
    source: LatentStore,
    cache: str | Path | Place,
    *,
    format: StoreFormat | None = None,
    keys: Sequence[str] | None = None,
    shard_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[LatentStore, Copied]:
    """Copy a store, or a part of it, into another cache folder.

    Args:
        format: None keeps the source's.
        keys: copy only these; None copies all.
        shard_size: of a new store; None keeps the source's.
    Returns:
        The store in `cache`, which has the same recipe id, and what was copied.
    Raises:
        MissingLatentError: a key is not in the source.
        StoreMismatchError: the cache folder holds this recipe in another format.
        StoreError: the folder cannot be written.
        ConfigError: `cache` is where the source is.
    """
    top = place_of(cache)
    if _is_same(top, place_of(parent_of(source.place))):
        raise ConfigError(f"{source.place} is in {top} already, and a cache folder holds a recipe once. Name another")
    if keys is not None:
        source.rows_of(keys)
    target = create_store(
        top,
        source.recipe,
        source.spec,
        label=_label(source),
        shard_size=shard_size or source.shard_size,
        format=format or source.format,
    )
    return target, copy(source, target, keys=keys, progress=progress)


def merge(
    target: str | Path | Place, sources: Sequence[LatentStore], *, progress: Progress | None = None
) -> list[Copied]:
    """Bring the work of several machines together: copy into a cache folder, or a store, what it does not have yet.

    Args:
        target: a store of the same recipe, or a cache folder, in which one is made if need be; a path or a URL.
    Raises:
        StoreMismatchError: the stores are of different recipes; nothing was copied then.
        StoreError: the target cannot be written.
    """
    first = sources[0]
    place = place_of(target)
    into_store = is_store(place)
    for other in [*sources[1:], *([load_store(place)] if into_store else [])]:
        _require_same(first, other)
    if into_store:
        store = open_to_write(place)
    else:
        store = create_store(place, first.recipe, first.spec, label=_label(first), shard_size=first.shard_size)
    return [
        Copied(path_or_url(source.place), 0, len(source), ())
        if _is_same(source.place, store.place)
        else copy(source, store, progress=progress)
        for source in sources
    ]


def copy(
    source: LatentStore, target: LatentStore, *, keys: Sequence[str] | None = None, progress: Progress | None = None
) -> Copied:
    """Copy latents that `target` does not have, with what is known of their making, sources and failures.

    Raises:
        StoreMismatchError: another recipe or latent space.
        MissingLatentError: a key is not in the source.
        StoreError: the target cannot be written.
    """
    _require_same(source, target)
    requested = list(source.keys if keys is None else dict.fromkeys(keys))
    if requested:
        source.rows_of(requested)
    follow_drops(source, target)
    dropped = is_in(pack_keys(requested), target.dropped)
    present = target.holds(requested)
    missing = [key for key, is_done in zip(requested, present | dropped, strict=True) if not is_done]
    damaged: list[str] = []
    with (progress or Progress.silent()).bar("copy", total=len(missing), unit="samples") as bar:
        whole = whole_shards(source, target, missing)
        is_left = np.ones(len(missing), bool)
        for number in copy_whole(source, target, list(whole)):
            is_left[whole[number]] = False
            bar.advance(whole[number].stop - whole[number].start)
        rest = [missing[at] for at in np.flatnonzero(is_left).tolist()]
        for start in range(0, len(rest), target.shard_size):
            part = rest[start : start + target.shard_size]
            damaged += copy_shard(source, target, part)[1]
            bar.advance(len(part), failed=len(damaged))
    target.publish()
    copied = int(target.holds(missing).sum()) if missing else 0
    try:
        _copy_log(source, target, set(requested))
    except DamagedShardError as error:  # of use to people; no latent depends on it
        damaged.append(str(error))
    damaged += copy_prompts(source.place, target.place, None if keys is None else _prompts_of(source, requested))
    return Copied(path_or_url(source.place), copied, int(present.sum()), tuple(damaged), int(dropped.sum()))


def named_keys(values: Sequence[str]) -> list[str]:
    """The keys that were typed, each once; a value is a key, or a file of keys, read and refused by `read_keys`."""
    keys = [key for value in values for key in ([value] if is_key(value) else read_keys(require_local(Path(value))))]
    return list(dict.fromkeys(keys))


def read_keys(file: Path) -> list[str]:
    """Keys from a text file, one a line.

    Raises:
        ConfigError: the file cannot be read, or a line is no key.
    """
    try:
        lines = read_file(file, _KEYS_LIMIT_BYTES).decode("utf-8").split()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as a list of keys: {error}") from error
    for number, line in enumerate(lines, 1):
        if not is_key(line):
            raise ConfigError(f"{file}, entry {number}: {line[:80]!r} is not a key (32 hexadecimal digits)")
    return lines


def keys_of_sources(store: LatentStore, pattern: str) -> list[str]:
    """The keys here whose source matches a regular expression somewhere.

    Raises:
        ConfigError: the expression is wrong, or nothing matches.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from error
    matching = {key for source, keys in store.sources().items() if expression.search(source) for key in keys}
    stored = [key for key in store.keys if key in matching]
    if not stored:
        raise ConfigError(f"no source of {store.place} with a latent matches {pattern!r}")
    return stored


def _label(store: LatentStore) -> str:
    """What leads the name of its folder."""
    place = store.place
    name = place.path.resolve().name if isinstance(place, Folder) else str(place).rpartition("/")[2]
    return label_of(name.removesuffix(f"-{store.recipe.id[:12]}"))


def copy_shard(
    source: LatentStore, target: LatentStore, keys: Sequence[str], *, number: int | None = None, again: bool = False
) -> tuple[int | None, list[str]]:
    """Commit one shard of some latents of a store, with the facts of those who made them.

    Args:
        number: wanted for the shard, if it is free.
        again: also where `target` holds every key (`ShardWriter.commit`).
    Returns:
        The number it got, None where nothing was committed; and one message for each latent that could not be copied,
        as its bytes are not those that were committed.
    """
    damaged: list[str] = []
    committed: int | None = None
    origins: dict[int, int] = {}
    with target.new_shard(number) as shard:
        for key, row, latent in _latents(source, keys):
            number = row // source.shard_size
            if isinstance(latent, DamagedShardError):
                damaged.append(str(latent))
                continue
            try:
                shard.add(key, latent)
            except LatentShapeError as error:  # its checksums are right, its numbers were never a latent
                damaged.append(f"{source.payload_location(number)}: {error}")
                continue
            origins[number] = origins.get(number, 0) + 1
        if len(shard):
            facts: dict[str, dict[str, Any]] = {}
            for number, rows in sorted(origins.items()):
                try:
                    record = read_record(source.place, number, source.recipe.id)
                except (DamagedShardError, FileNotFoundError) as error:  # since it was opened; the rows were right
                    damaged.append(str(error))
                    continue
                for origin in origins_of(record):
                    share = origin.rows * rows / record.rows
                    origin_facts = facts.setdefault(origin.sha256, {**asdict(origin), "rows": 0})
                    origin_facts["rows"] += share
            record = shard.commit({"copied_from": list(facts.values())}, again=again)
            committed = None if record is None else record.shard
    return committed, damaged


def _latents(source: LatentStore, keys: Sequence[str]) -> Iterator[tuple[str, int, NDArray[Any] | DamagedShardError]]:
    """Each key, its row, and its latent, valid until the next, or why there is none; many at once from a bucket."""
    rows = source.rows_of(keys)
    at_once = 1 if source.place.is_local else max(1, min(_ROWS, len(keys), _ROWS_BYTES // source.layout.row_bytes))
    buffer = source.buffer(at_once)
    for start in range(0, len(keys), at_once):
        part = rows[start : start + at_once]
        try:
            latents: Sequence[NDArray[Any] | DamagedShardError] = list(source.read_rows(part, buffer))
        except DamagedShardError as error:
            latents = [error] if len(part) == 1 else [_latent(source, row) for row in part]
        yield from zip(keys[start : start + at_once], part.tolist(), latents, strict=True)


def _latent(source: LatentStore, row: np.int64) -> NDArray[Any] | DamagedShardError:
    try:
        return source.read_rows(np.array([row]), source.buffer(1))[0]
    except DamagedShardError as error:
        return error


def _copy_log(source: LatentStore, target: LatentStore, keys: set[str]) -> None:
    rows = ((name, key) for name, source_keys in source.sources().items() for key in source_keys if key in keys)
    target.record_sources(rows, source.prompts(), source.starts())
    logged = {failure.file_name for failure in target.failures()}
    for failure in source.failures():
        if failure.file_name not in logged and (failure.key is None or failure.key not in target):
            target.record_failure(failure)
    for failure in target.failures():
        if failure.key is not None and failure.key in target:
            target.clear_failure(failure)


def _prompts_of(source: LatentStore, keys: Sequence[str]) -> set[str]:
    """The prompts of some samples, as far as the store's sources can be read."""
    try:
        prompts = source.prompts()
    except DamagedShardError:  # which is told of already
        return set()
    return {prompts[key] for key in keys if key in prompts}


def _is_same(place: Place, other: Place) -> bool:
    if isinstance(place, Folder) and isinstance(other, Folder):
        return place.path.resolve() == other.path.resolve()
    return str(place) == str(other)


def _require_same(store: LatentStore, other: LatentStore) -> None:
    if fields := difference(store.recipe, other.recipe):
        differing = ", ".join(f"{name}: {ours} there, {theirs} here" for name, (ours, theirs) in fields.items())
        stores = f"{store.place} and {other.place}"
        raise StoreMismatchError(f"{stores} are of different recipes ({differing}): latents never mix")
    if store.spec != other.spec:
        raise StoreMismatchError(f"{store.place} and {other.place} are of different latent spaces: latents never mix")
