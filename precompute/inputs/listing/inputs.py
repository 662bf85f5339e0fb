"""The inputs of a place: their names, where their bytes lie, and their content keys.

folder, glob, one file            images or videos by suffix; files that are named also by their content
.jsonl .csv .tsv .json .txt       a list of files, one a row (rows/manifests.py), also compressed with gzip
.parquet                          the same, with types (rows/tables.py)
.parquet, save_to_disk, hf:…      a table that holds the bytes (rows/tables.py)
.tar, x-{000..003}.tar            members by suffix (tars/members.py)
s3:// gs:// az:// hf://           any of these in a bucket, or in a data set on the Hub (remote_places.py)
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Container as ContainerOf
from dataclasses import dataclass, field
from pathlib import Path

from ....pipeline.errors import ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files import limits
from ....pipeline.files.file_facts import facts_from
from ....pipeline.files.hash_cache import HashCache
from ....pipeline.files.hashing import digest_of_bytes
from ....pipeline.files.images.decode import refuse_unread
from ....pipeline.files.places.local import require_local, url_of
from ....pipeline.files.remote import facts_of_remote, is_remote, local_path, without_commit
from ....pipeline.files.tables.batches import Budget, Unpacked
from ....pipeline.latents.keys import key_of_digest
from ....pipeline.latents.kinds import KindName
from ....pipeline.store.ledger import Failure
from ...media.video_times import Window
from ...rollout.kind import Kind
from ...rollout.kinds import KINDS, at_moments
from ..first_bytes import IMAGE
from ..locations import TableCell
from ..rows.fields import Fields
from .digests_ahead import DigestsAhead
from .entries import Entry
from .links import forget_links, refuse_link
from .places import find
from .respelled import Respelled
from .samples import Readable, Sample, Samples

logger = logging.getLogger(__name__)

_HEAD_BYTES = 2**16
"""What is looked at of an image, to call a format that is not read by its name before anything is made."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All inputs of a run: files in the order of their names; rows, members and cells in the order of their file."""

    samples: Samples
    """Every readable input, duplicates included. A long list of them takes little memory while nobody copies it."""
    refused: tuple[Failure, ...]
    """Inputs that cannot be read; without content they have no key."""
    others: dict[str, int]
    """Noun of another kind's input (`image`, `video`) -> number of such files, which are skipped."""
    left_out: Counter[str]
    """Suffix, or what else says it (selection.py) -> number of files and other entries that no kind takes."""
    readable: ContainerOf[str] = field(default=frozenset(), compare=False)
    """Names under which an earlier run may have refused the inputs of `samples`."""
    notes: tuple[str, ...] = ()
    """What was taken otherwise than it is written, or may be meant otherwise, and how often."""

    def unique(self) -> dict[str, Sample]:
        """Key -> the first sample with that content."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.key, sample)
        return first


def list_inputs(
    place: Path,
    kind: Kind | KindName,
    *,
    limit: int | None = None,
    column: str | None = None,
    prompt_field: str | None = None,
    start_field: str | None = None,
    end_field: str | None = None,
    start_s: float | None = None,
    image_root: Path | None = None,
    index: HashCache | None = None,
) -> Listing:
    """The inputs of a place that a kind takes, hashed. The head of this file lists the places.

    In a folder and of a pattern links are followed, to files and to folders; no link leads a row out of its list's
    folder. `source` is the path relative to the folder with forward slashes; `shard.tar:member`; the path as a list's
    row has it; the path beside a table's bytes where no other row has the same, else `file.parquet#row`.

    Args:
        kind: of the recipe that the inputs are for, such as "rollout".
        limit: keep only the first so many inputs.
        column: of a list or table, the one that names or holds the inputs; None tries usual names.
        prompt_field: of a list or table, the one that holds each input's prompt.
        start_field, end_field: of a list or table of videos, the ones that hold where a clip of the input begins and
            where it must end (rows/fields.py); of a kind of images, the picture is the frame at the start.
        start_s: the same moment of every video that has none of its own.
        image_root: of a list or table, the folder that paths are relative to; None is the one that holds it.
        index: digests of unchanged inputs; it is filled, not saved.
    Raises:
        ConfigError: this place is a URL that is not read, there is nothing at it, nothing of this kind in it, the files
            named are another kind's, or a list cannot be read as one.
        StoreError: a bucket or the Hub refuses, or does not answer.
    """
    kind = KINDS[kind] if isinstance(kind, str) else kind
    index = index or HashCache()
    forget_links()
    if url_of(place) is None:
        place = Path(os.path.expanduser(require_local(place)))  # noqa: PTH111 - no shell has expanded a quoted pattern
    fields = Fields(prompt_field, start_field, end_field)
    if fields.times or start_s is not None:
        kind = at_moments(kind)
    selection = find(place, kind, column, fields)
    entries = selection.entries
    entries.common_window = None if start_s is None else Window(start_s)
    if image_root is not None:
        entries.set_root(os.path.expanduser(require_local(image_root)))  # noqa: PTH111
    samples = Samples(entries)
    respelled = Respelled(entries, has_root=image_root is not None)
    refused: list[Failure] = []
    budgets: dict[str, Budget] = {}
    unread: Counter[str] = Counter()
    count = len(entries) if limit is None else min(limit, len(entries))
    unnamed = entries.unnamed if count == len(entries) else Counter[str]()
    ahead = DigestsAhead(entries, count, lambda entry: _digest(entry, kind, index, budgets), kind.max_bytes)
    with ahead.running() as running:
        for at, (entry, digest_of) in enumerate(running):
            if isinstance(entry.location, TableCell) and entry.location.path in unread:
                unread[entry.location.path] += 1
                continue
            try:
                if entry.problem is not None:
                    raise entry.problem
                try:
                    digest = digest_of()
                except ImageError as error:
                    digest = _digest(respelled.find(at, entry, error), kind, index, budgets)
                samples.add(at, key_of_digest(digest, entry.prompt, entry.window and entry.window.start_s))
            except ImageError as error:
                if isinstance(error, _SpentError):
                    unread[error.path] += 1
                    entry.name = entry.container.name
                elif len(refused) >= limits.MAX_BAD_ROWS:
                    unnamed[entry.container.name] += 1
                    continue
                message = str(error) if entry.name in str(error) else f"{entry.name}: {error}"
                refused.append(Failure(source=entry.name, key=None, reason=error.reason, message=message, attempts=1))
    for path, cells in unread.items():
        logger.warning("%s: %s rows are not used", path, f"{cells:,}")
    refused += (_unnamed(name, wrong) for name, wrong in unnamed.items())
    sound = selection.sound - unnamed.keys()
    notes = (*selection.notes, *respelled.notes())
    return Listing(samples, tuple(refused), selection.others, selection.left_out, Readable(sound, samples), notes)


class _SpentError(ImageError):
    """The cells of a table unpack to more than it may; `path` is the table's."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(FailureReason.TABLE, f"{path}: {why}. The rows after that are not used")
        self.path = path


def _digest(entry: Entry, kind: Kind, index: HashCache, budgets: dict[str, Budget]) -> bytes:
    location = entry.location
    if location is None:
        raise ImageError(FailureReason.MISSING, f"{entry.name} cannot be read")
    if entry.root is not None:
        refuse_link(location.path, entry.root, entry.source)
    facts = entry.facts
    if facts is None and is_remote(location.path):
        facts = facts_of_remote(location.path)
    elif facts is None:
        try:
            status = os.stat(location.path)  # noqa: PTH116 - a hundred thousand times
            facts = facts_from(status) if stat.S_ISREG(status.st_mode) else None
        except (OSError, ValueError):
            facts = None  # reading will say why
    known_as = without_commit(location.path)
    is_cacheable = facts is not None and (location.place != "" or 0 < facts.size <= kind.max_bytes)
    if facts is not None and is_cacheable and (digest := index.find(known_as, facts, location.place)) is not None:
        return digest
    content = location.read(kind.max_bytes)
    if kind.takes == IMAGE:
        refuse_unread(content[:_HEAD_BYTES], source=entry.source)
    if isinstance(location, TableCell):
        try:
            budgets.setdefault(location.path, Budget(local_path(location.path))).spend(len(content))
        except (Unpacked, OSError) as error:
            raise _SpentError(location.path, str(error)) from error
    digest = digest_of_bytes(content)
    if facts is not None:
        index.put(known_as, facts, digest, location.place)
    return digest


def _unnamed(name: str, count: int) -> Failure:
    """One failure for all inputs of a place that are wrong beyond the first so many."""
    message = (
        f"{name}: {count:,} more inputs are wrong; only the first {limits.MAX_BAD_ROWS:,} are named one by one. Good "
        "ones between them are used. Look at the first, and write the list anew"
    )
    return Failure(source=name, key=None, reason=FailureReason.ROW, message=message, attempts=1)
