"""The inputs of a place: their names, where their bytes lie, and their content keys.

folder, glob, one file            images or videos by suffix
.jsonl .csv .tsv .json .parquet   a list of files, one a row (manifests.py; with types, tables.py)
.parquet, save_to_disk, hf:…      a table that holds the bytes (tables.py)
.tar, x-{000..003}.tar            members by suffix (tars.py)
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Container as ContainerOf
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files import arrow_tables as arrow_files
from ...pipeline.files import limits
from ...pipeline.files import text_tables as lists
from ...pipeline.files.hashing import digest_of_bytes
from ...pipeline.files.local import require_local
from ...pipeline.files.table_process import Budget, Unpacked
from ...pipeline.latents.keys import key_of_digest
from ...pipeline.latents.kinds import KindName
from ...pipeline.store.ledger import Failure
from ..rollout.kinds import KINDS, Kind
from . import manifests, tables, tars
from .entries import Container, Entries, Entry
from .file_facts import facts_from, facts_of
from .folders import expand_braces, has_braces, has_magic, match_files, walk
from .hash_cache import HashCache
from .locations import Location, TableCell
from .samples import Readable, Sample, Samples

logger = logging.getLogger(__name__)

TARS = frozenset({".tar"})
_CONTAINERS = lists.SUFFIXES | arrow_files.SUFFIXES | TARS
_LINK = "\0"
"""Marks the name of a link while names are sorted: no name holds it, and it comes before all other characters."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Listing:
    """All inputs of a run: files in the order of their names; rows, members and cells in the order of their file."""

    samples: Samples
    """Every readable input, duplicates included. A long list of them takes little memory while nobody copies it."""
    refused: tuple[Failure, ...]
    """Inputs that cannot be read; without content they have no key."""
    others: dict[str, int]
    """Noun of another kind's input (`image`, `video`) -> number of such files, which are skipped."""
    ignored: int
    """Number of files skipped because no kind takes them."""
    readable: ContainerOf[str] = field(default=frozenset(), compare=False)
    """Names under which an earlier run may have refused the inputs of `samples`."""

    def unique(self) -> dict[str, Sample]:
        """Key -> the first sample with that content."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.key, sample)
        return first


@dataclass(slots=True)
class _Selection:
    entries: Entries
    others: dict[str, int] = field(default_factory=dict[str, int])
    ignored: int = 0
    sound: set[str] = field(default_factory=set[str])
    """Folders, tars and tables that were read to their end."""


def list_inputs(
    place: Path,
    kind: Kind | KindName,
    *,
    limit: int | None = None,
    column: str | None = None,
    prompt_field: str | None = None,
    index: HashCache | None = None,
) -> Listing:
    """The inputs of a place that a kind takes, hashed. The head of this file lists the places.

    Symlinked folders are not entered; a link to a file counts only where it stays inside the folder (of the list that
    names it). `source` is the path relative to the folder with forward slashes; `shard.tar:member`; the path as a
    list's row has it; the path beside a table's bytes where no other row has the same, else `file.parquet#row`.

    Args:
        kind: of the recipe that the inputs are for, such as "rollout".
        limit: keep only the first so many inputs.
        column: of a list or table, the one that names or holds the inputs; None tries usual names.
        prompt_field: of a list or table, the one that holds each input's prompt.
        index: digests of unchanged inputs; it is filled, not saved.
    Raises:
        ConfigError: this place is a URL, there is nothing at it, nothing of this kind in it, the files named are
            another kind's, or a list cannot be read as one.
    """
    kind = KINDS[kind] if isinstance(kind, str) else kind
    index = index or HashCache()
    _real.cache_clear()
    place = Path(os.path.expanduser(require_local(place)))  # noqa: PTH111 - no shell has expanded a quoted pattern
    selection = _find(place, kind, column, prompt_field)
    entries = selection.entries
    samples = Samples(entries)
    refused: list[Failure] = []
    budgets: dict[str, Budget] = {}
    unread: Counter[str] = Counter()
    count = len(entries) if limit is None else min(limit, len(entries))
    unnamed = entries.unnamed if count == len(entries) else Counter[str]()
    for at in range(count):
        entry = entries.entry(at)
        if isinstance(entry.location, TableCell) and entry.location.path in unread:
            unread[entry.location.path] += 1
            continue
        try:
            if entry.problem is not None or entry.location is None:
                raise entry.problem or ImageError(FailureReason.MISSING, f"{entry.name} cannot be read")
            samples.add(at, key_of_digest(_digest(entry, entry.location, kind, index, budgets), entry.prompt))
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
    return Listing(samples, tuple(refused), selection.others, selection.ignored, Readable(sound, samples))


class _SpentError(ImageError):
    """The cells of a table unpack to more than it may; `path` is the table's."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(FailureReason.TABLE, f"{path}: {why}. The rows after that are not used")
        self.path = path


def _digest(entry: Entry, location: Location, kind: Kind, index: HashCache, budgets: dict[str, Budget]) -> bytes:
    if entry.root is not None:
        _refuse_link(location.path, entry.root, entry.source)
    facts = entry.facts
    if facts is None:
        try:
            status = os.stat(location.path)  # noqa: PTH116 - a hundred thousand times
            facts = facts_from(status) if stat.S_ISREG(status.st_mode) else None
        except (OSError, ValueError):
            facts = None  # reading will say why
    is_cacheable = facts is not None and (location.place != "" or 0 < facts.size <= kind.max_bytes)
    if facts is not None and is_cacheable and (digest := index.find(location.path, facts, location)) is not None:
        return digest
    content = location.read(kind.max_bytes)
    if isinstance(location, TableCell):
        try:
            budgets.setdefault(location.path, Budget(location.path)).spend(len(content))
        except (Unpacked, OSError) as error:
            raise _SpentError(location.path, str(error)) from error
    digest = digest_of_bytes(content)
    if facts is not None:
        index.put(location.path, facts, location, digest)
    return digest


def _refuse_link(path: str, root: str, source: str) -> None:
    """Refuse a file that does not lie inside the root, links resolved."""
    real_root = _real(root)
    folder = _real(os.path.dirname(path))  # noqa: PTH120
    inside = folder == real_root or folder.startswith(real_root.rstrip("/") + "/")
    if inside and os.path.islink(path):  # noqa: PTH114
        inside = os.path.realpath(path).startswith(real_root.rstrip("/") + "/")
    if not inside:
        raise ImageError(FailureReason.NOT_A_FILE, f"{source} is a link that leads out of {root}")


def _refuse_special(file: Path, name: str) -> None:
    """Refuse a list, table or tar that is not a regular file: opening a pipe would wait for ever."""
    with suppress(OSError):  # reading will say why
        if not stat.S_ISREG(file.stat().st_mode):
            raise ImageError(FailureReason.NOT_A_FILE, f"{name} is not a regular file")


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _find(place: Path, kind: Kind, column: str | None, prompt_field: str | None) -> _Selection:
    """The inputs of a place, and the number of skipped files.

    Raises:
        ConfigError: as of `list_inputs`; or this user may not look there.
    """
    text = str(place)
    if text.startswith(arrow_files.HUB):
        fetched = arrow_files.fetch_hub(text)
        root = str(fetched[0].parent) if fetched else text
        return _contained(fetched, text, root, kind, column, prompt_field, own=False)
    try:
        is_folder, is_file = place.is_dir(), place.is_file()
        if is_folder:
            os.scandir(place).close()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a pattern may be of any length
            raise ConfigError(f"{text} cannot be read: {error.strerror} (looked from {Path.cwd()})") from error
        is_folder = is_file = False
    if is_folder:
        if (files := arrow_files.saved_files(place)) is not None:
            return _contained(files, text, text, kind, column, prompt_field)
        return _folder(place, kind, column, prompt_field)
    if is_file:
        files = [text]
    elif has_braces(text):
        files = expand_braces(text)
        if missing := [file for file in files if not os.path.exists(file)]:  # noqa: PTH110 - whatever its length
            raise ConfigError(
                f"{text} names {len(files)} files, and there is no {missing[0]} (looked from {Path.cwd()})"
            )
    elif has_magic(text):
        files = match_files(text)
        if not files:
            raise ConfigError(f"the pattern {text} matches no file here ({Path.cwd()})")
    else:
        hub = f". For a data set of the Hugging Face Hub write hf:{text}" if _HUB_ID.fullmatch(text) else ""
        raise ConfigError(f"there is no folder or {kind.takes} at {text} (looked from {Path.cwd()}){hub}")
    root = os.path.commonpath([os.path.dirname(file) for file in files]) or "."  # noqa: PTH120
    _refuse_others(text, files, kind)
    containers = [file for file in files if _suffix(file) in _CONTAINERS]
    if not containers:
        _refuse_columns(text, column, prompt_field)
        entries = Entries(text)
        entries.open(Container(text, root))
        for name, file in sorted((_relative(file, root), file) for file in files):
            entries.add_file(name, file, is_link=True)
        return _Selection(entries)
    if len(containers) < len(files):
        raise ConfigError(
            f"{text} stands for {len(containers)} lists, tables or tars and {len(files) - len(containers)} other "
            "files. Narrow the pattern to one or the other"
        )
    return _contained([Path(file) for file in sorted(containers)], text, root, kind, column, prompt_field)


def _folder(place: Path, kind: Kind, column: str | None, prompt_field: str | None) -> _Selection:
    entered: dict[str, str] = {}
    text = str(place)
    names = [f"{name}{_LINK}" if link else name for name, _, link in walk(place, entered)]
    closed = [
        (name, ImageError(FailureReason.MISSING, f"the folder {name} cannot be read: {why}"))
        for name, why in sorted(entered.items())
        if why
    ]
    sound = {name for name, why in entered.items() if not why}
    if closed and not closed[0][0]:
        raise ConfigError(f"{place} cannot be read: {entered['']}")
    suffixes = Counter(_suffix(name.removesuffix(_LINK)) for name in names)
    others = _others_of(suffixes, kind)
    taken = sum(suffixes[suffix] for suffix in kind.suffixes)
    if taken:
        _refuse_columns(text, column, prompt_field)
        entries = Entries(text)
        entries.open(Container(text, text))
        for name in sorted(name for name in names if _suffix(name.removesuffix(_LINK)) in kind.suffixes):
            entries.add_file(name.removesuffix(_LINK), is_link=name.endswith(_LINK))
        for name, problem in closed:
            entries.add_broken(name, problem)
        return _Selection(entries, others, len(names) - taken - sum(others.values()), {*sound, text})
    for wanted in (TARS, arrow_files.SUFFIXES - {".arrow"}):
        found = (name.removesuffix(_LINK) for name in names)
        if containers := sorted(name for name in found if _suffix(name) in wanted):
            inside = _contained([place / name for name in containers], text, text, kind, column, prompt_field)
            inside.ignored += len(names) - len(containers)
            inside.entries.open(Container(text, text))
            for name, problem in closed:
                inside.entries.add_broken(name, problem)
            inside.sound |= sound
            return inside
    if others:
        raise ConfigError(f"{place} holds no {kind.takes}, but {_counted(others)}. {_advice(others)}")
    if closed:
        raise ConfigError(f"{place} holds no {kind.takes} that can be seen: {closed[0][1]}")
    named = [name for name in (name.removesuffix(_LINK) for name in names) if _suffix(name) in lists.SUFFIXES]
    raise ConfigError(
        f"{place} holds no {kind.takes}: none of its {len(names)} files ends in "
        f"{', '.join(sorted(kind.suffixes))}. "
        + (
            f"To take the {kind.takes}s that a list names, name the list: {place / named[0]}"
            if named
            else "Name the folder that holds them; folders inside it are searched too"
        )
    )


def _contained(
    files: list[Path],
    place: str,
    root: str,
    kind: Kind,
    column: str | None,
    prompt_field: str | None,
    *,
    own: bool = True,
) -> _Selection:
    """The inputs that lists, tables and tars hold or name.

    Args:
        place, root: what the user named, and the folder that the files' names are relative to.
        own: whether the files are the user's; then links must stay in their folder.
    """
    selection = _Selection(Entries(place))
    entries = selection.entries
    for file in files:
        if file.suffix.lower() in TARS:
            _refuse_columns(str(file), column, prompt_field)
    for file in files:
        name = _relative(str(file), root)
        suffix = file.suffix.lower()
        entries.open(Container(name, str(file)))
        try:
            if own:
                _refuse_link(str(file), root, name)
            _refuse_special(file, name)
            if suffix in TARS:
                _add_tar(selection, file, name, kind)
            elif suffix in arrow_files.SUFFIXES:
                _add_table(entries, file, name, kind, column, prompt_field, own=own)
            else:
                _add_list(selection, file, name, kind, column, prompt_field)
            selection.sound.add(name)
        except ImageError as error:  # of the whole file, or of the rest of it
            entries.add_broken(name, error)
    if not len(entries):
        advice = f", but {_counted(selection.others)}. {_advice(selection.others)}" if selection.others else ""
        raise ConfigError(f"{', '.join(map(str, files[:3])) or root} holds no {kind.takes}{advice}")
    entries.number_repeated()
    return selection


def _add_tar(selection: _Selection, file: Path, name: str, kind: Kind) -> None:
    entries = selection.entries
    entries.open(Container(name, str(file), facts=facts_of(str(file))))
    passed_over: Counter[str] = Counter()  # by suffix
    try:
        for member in tars.members(str(file)):
            source = f"{name}:{member.name}"
            if member.name.rpartition("/")[2].startswith(".") or _suffix(member.name) not in kind.suffixes:
                passed_over[_suffix(member.name)] += member.regular
            elif not member.regular:
                entries.add_broken(source, ImageError(FailureReason.NOT_A_FILE, f"{source} is not a regular member"))
            else:
                entries.add_member(source, member.offset, member.size)
    finally:
        others = _others_of(passed_over, kind)
        selection.ignored += passed_over.total() - sum(others.values())
        for takes, count in others.items():
            selection.others[takes] = selection.others.get(takes, 0) + count


def _add_list(
    selection: _Selection, file: Path, name: str, kind: Kind, column: str | None, prompt_field: str | None
) -> None:
    entries = selection.entries
    entries.open(Container(name, str(file), str(file.parent)))
    start, without = len(entries), 0
    for row in manifests.read_manifest(file, kind.takes, column=column, prompt_field=prompt_field):
        if row is manifests.AGAIN:
            entries.cut(start)
            without = 0
        elif row is manifests.WITHOUT:
            without += 1
        elif row.problem is not None:
            entries.add_broken(f"{name}:{row.number}", row.problem, row.number)
        else:
            entries.add_row(row.path, row.number, row.prompt)
    selection.ignored += without


def _add_table(
    entries: Entries, file: Path, name: str, kind: Kind, column: str | None, prompt_field: str | None, *, own: bool
) -> None:
    facts = facts_of(str(file))
    table = tables.read_table(file, kind.takes, column=column, prompt_field=prompt_field)
    entries.open(Container(name, str(file), str(file.parent), facts, table.column or "", follows_links=not own))
    start = len(entries)
    try:
        for row, has_bytes in table.rows:
            if row.problem is not None:
                entries.add_broken(f"{name}:{row.number}", row.problem, row.number)
            elif has_bytes:
                entries.add_cell(row.path, row.number, row.prompt)
            else:
                entries.add_row(row.path, row.number, row.prompt)
    except ImageError:  # rows of a damaged table are not trusted
        entries.cut(start)
        raise


def _unnamed(name: str, count: int) -> Failure:
    """One failure for all inputs of a place that are wrong beyond the first so many."""
    message = (
        f"{name}: {count:,} more inputs are wrong; only the first {limits.MAX_BAD_ROWS:,} are named one by one. Good "
        "ones between them are used. Look at the first, and write the list anew"
    )
    return Failure(source=name, key=None, reason=FailureReason.ROW, message=message, attempts=1)


def _relative(path: str, root: str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _suffix(name: str) -> str:
    name = name[name.rfind("/") + 1 :]  # a hundred thousand times
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _others(files: Iterable[str], kind: Kind) -> dict[str, int]:
    """Noun of another kind's input -> how many of the files are such inputs."""
    return _others_of(Counter(map(_suffix, files)), kind)


def _others_of(suffixes: Counter[str], kind: Kind) -> dict[str, int]:
    others = {other.takes: other.suffixes for other in KINDS.values() if other.takes != kind.takes}
    counts = {takes: sum(suffixes[suffix] for suffix in wanted) for takes, wanted in others.items()}
    return {takes: count for takes, count in counts.items() if count}


def _refuse_others(named: str, files: list[str], kind: Kind) -> None:
    """Refuse named files of another kind, rather than skip what the user named."""
    if others := _others(files, kind):
        narrower = f", or narrow the pattern to {kind.takes}s" if len(files) > 1 else ""
        raise ConfigError(
            f"{named} stands for {_counted(others)}, and only {kind.takes}s are wanted. {_advice(others)}{narrower}"
        )


def _refuse_columns(named: str, column: str | None, prompt_field: str | None) -> None:
    flags = [flag for flag, value in (("--column", column), ("--prompt-field", prompt_field)) if value is not None]
    if flags:
        raise ConfigError(
            f"{named} has no columns, so {' and '.join(flags)} cannot choose one. "
            "Name a list instead: .jsonl, .csv, .json or .parquet"
        )


def _counted(others: dict[str, int]) -> str:
    return " and ".join(f"{count} {takes}{'s' if count > 1 else ''}" for takes, count in others.items())


def _advice(others: dict[str, int]) -> str:
    takers = {kind.takes: name for name, kind in reversed(KINDS.items())}
    return " and ".join(f"--kind {takers[takes]} takes {takes}s" for takes in others)
