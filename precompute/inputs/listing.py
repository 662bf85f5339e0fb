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
from collections.abc import Iterable, Sequence
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
from .file_facts import FileFacts, facts_from, facts_of
from .folders import expand_braces, has_braces, has_magic, match_files, walk
from .hash_cache import HashCache
from .locations import File, Location, TableCell, TarMember
from .manifests import Row

logger = logging.getLogger(__name__)

TARS = frozenset({".tar"})
_CONTAINERS = lists.SUFFIXES | arrow_files.SUFFIXES | TARS
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Sample:
    """One input: `source` names it for people, `location` is where its bytes lie, `key` is its content's address."""

    source: str
    location: Location
    key: str
    prompt: str | None = None
    """The sample's own prompt, which is part of the key."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All inputs of a run: files in the order of their names; rows, members and cells in the order of their file."""

    samples: tuple[Sample, ...]
    """Every readable input, duplicates included."""
    refused: tuple[Failure, ...]
    """Inputs that cannot be read; without content they have no key."""
    others: dict[str, int]
    """Noun of another kind's input (`image`, `video`) -> number of such files, which are skipped."""
    ignored: int
    """Number of files skipped because no kind takes them."""
    readable: frozenset[str] = frozenset()
    """Names under which an earlier run may have refused the inputs of `samples`."""

    def unique(self) -> dict[str, Sample]:
        """Key -> the first sample with that content."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.key, sample)
        return first


@dataclass(slots=True)
class _Entry:
    """One input before it is read."""

    source: str
    name: str
    """Its name in the ledger; for a row of a list, `list.jsonl:17`."""
    location: Location | None
    prompt: str | None = None
    problem: ImageError | None = None
    root: str | None = None
    """The folder that a link must not lead out of; None where links were checked."""
    facts: FileFacts | None = None
    """Facts of the tar or table that holds it; None reads them."""


@dataclass(slots=True)
class _Selection:
    entries: list[_Entry]
    others: dict[str, int]
    ignored: int
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
    samples: list[Sample] = []
    refused: list[Failure] = []
    readable = selection.sound
    budgets: dict[str, Budget] = {}
    unread: Counter[str] = Counter()
    for entry in selection.entries[:limit]:
        if isinstance(entry.location, TableCell) and entry.location.path in unread:
            unread[entry.location.path] += 1
            continue
        try:
            if entry.problem is not None or entry.location is None:
                raise entry.problem or ImageError(FailureReason.MISSING, f"{entry.name} cannot be read")
            key = key_of_digest(_digest(entry, entry.location, kind, index, budgets), entry.prompt)
            samples.append(Sample(entry.source, entry.location, key, entry.prompt))
            readable |= {entry.source, entry.name}
        except ImageError as error:
            if isinstance(error, _SpentError):
                unread[error.path] += 1
                entry.name = entry.name.rpartition(":")[0]
            message = str(error) if entry.name in str(error) else f"{entry.name}: {error}"
            refused.append(Failure(source=entry.name, key=None, reason=error.reason, message=message, attempts=1))
    for path, count in unread.items():
        logger.warning("%s: %s rows are not used", path, f"{count:,}")
    return Listing(tuple(samples), tuple(refused), selection.others, selection.ignored, frozenset(readable))


class _SpentError(ImageError):
    """The cells of a table unpack to more than it may; `path` is the table's."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(FailureReason.TABLE, f"{path}: {why}. The rows after that are not used")
        self.path = path


def _digest(entry: _Entry, location: Location, kind: Kind, index: HashCache, budgets: dict[str, Budget]) -> bytes:
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
        selection = _contained(fetched, root, kind, column, prompt_field, own=False)
        for entry in selection.entries:
            entry.root = None  # the Hub's cache is made of links
        return selection
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
            return _contained(files, text, kind, column, prompt_field)
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
        return _Selection(_plain(((_relative(file, root), file, True) for file in files), root), {}, 0)
    if len(containers) < len(files):
        raise ConfigError(
            f"{text} stands for {len(containers)} lists, tables or tars and {len(files) - len(containers)} other "
            "files. Narrow the pattern to one or the other"
        )
    return _contained([Path(file) for file in sorted(containers)], root, kind, column, prompt_field)


def _folder(place: Path, kind: Kind, column: str | None, prompt_field: str | None) -> _Selection:
    entered: dict[str, str] = {}
    files = list(walk(place, entered))
    closed = [
        _Entry(name, name, None, problem=ImageError(FailureReason.MISSING, f"the folder {name} cannot be read: {why}"))
        for name, why in sorted(entered.items())
        if why
    ]
    sound = {name for name, why in entered.items() if not why}
    if closed and not closed[0].name:
        raise ConfigError(f"{place} cannot be read: {entered['']}")
    others = _others([name for name, _, _ in files], kind)
    taken = [file for file in files if _suffix(file[0]) in kind.suffixes]
    if taken:
        _refuse_columns(str(place), column, prompt_field)
        ignored = len(files) - len(taken) - sum(others.values())
        return _Selection(_plain(taken, str(place)) + closed, others, ignored, sound)
    for suffixes in (TARS, arrow_files.SUFFIXES - {".arrow"}):
        if containers := sorted(path for _, path, _ in files if _suffix(path) in suffixes):
            inside = _contained([Path(path) for path in containers], str(place), kind, column, prompt_field)
            inside.ignored += len(files) - len(containers)
            inside.entries += closed
            inside.sound |= sound
            return inside
    if others:
        raise ConfigError(f"{place} holds no {kind.takes}, but {_counted(others)}. {_advice(others)}")
    if closed:
        raise ConfigError(f"{place} holds no {kind.takes} that can be seen: {closed[0].problem}")
    named = [name for name, _, _ in files if _suffix(name) in lists.SUFFIXES]
    raise ConfigError(
        f"{place} holds no {kind.takes}: none of its {len(files)} files ends in "
        f"{', '.join(sorted(kind.suffixes))}. "
        + (
            f"To take the {kind.takes}s that a list names, name the list: {place / named[0]}"
            if named
            else "Name the folder that holds them; folders inside it are searched too"
        )
    )


def _plain(files: Iterable[tuple[str, str, bool]], root: str) -> list[_Entry]:
    """The entries of plain files, from name, path and whether the path may hold a link."""
    return [_Entry(name, name, File(path), root=root if link else None) for name, path, link in sorted(files)]


def _contained(
    files: list[Path], root: str, kind: Kind, column: str | None, prompt_field: str | None, *, own: bool = True
) -> _Selection:
    """The inputs that lists, tables and tars hold or name.

    Args:
        own: whether the files are the user's; then links must stay in their folder.
    """
    selection = _Selection([], {}, 0)
    for file in files:
        if file.suffix.lower() in TARS:
            _refuse_columns(str(file), column, prompt_field)
    for file in files:
        name = _relative(str(file), root)
        suffix = file.suffix.lower()
        try:
            if own:
                _refuse_link(str(file), root, name)
            _refuse_special(file, name)
            if suffix in TARS:
                _add_tar(selection, file, name, kind)
            elif suffix in arrow_files.SUFFIXES:
                _add_table(selection, file, name, kind, column, prompt_field)
            else:
                manifest = manifests.read_manifest(file, kind.takes, column=column, prompt_field=prompt_field)
                selection.ignored += manifest.without
                selection.entries += (_named(row, file, name) for row in manifest.rows if row is not manifests.UNNAMED)
                _add_unnamed(name, manifest.rows)
            selection.sound.add(name)
        except ImageError as error:  # of the whole file, or of the rest of it
            selection.entries.append(_Entry(name, name, None, problem=error))
    if not selection.entries:
        advice = f", but {_counted(selection.others)}. {_advice(selection.others)}" if selection.others else ""
        raise ConfigError(f"{', '.join(map(str, files[:3])) or root} holds no {kind.takes}{advice}")
    twice = {source for source, count in Counter(entry.source for entry in selection.entries).items() if count > 1}
    for entry in selection.entries:
        if isinstance(entry.location, TableCell) and (entry.source in twice or not entry.source):
            entry.source = f"{_relative(entry.location.path, root)}#{entry.location.row}"
    return selection


def _add_tar(selection: _Selection, file: Path, name: str, kind: Kind) -> None:
    facts = facts_of(str(file))
    passed_over: Counter[str] = Counter()  # by suffix
    used = bad = 0
    try:
        for member in tars.members(str(file)):
            source = f"{name}:{member.name}"
            if member.name.rpartition("/")[2].startswith(".") or _suffix(member.name) not in kind.suffixes:
                passed_over[_suffix(member.name)] += member.regular
                continue
            if not (member.regular and member.size) and (bad := bad + 1) > limits.MAX_BAD_ROWS:
                continue
            if (used := used + 1) > limits.MAX_ROWS:
                raise ImageError(
                    FailureReason.TAR,
                    f"{name} has more than {limits.MAX_ROWS:,} {kind.takes}s; the rest of it is not used. Split it",
                )
            if not member.regular:
                problem = ImageError(FailureReason.NOT_A_FILE, f"{source} is not a regular member")
                selection.entries.append(_Entry(source, source, None, problem=problem))
            else:
                location = TarMember(str(file), member.offset, member.size)
                selection.entries.append(_Entry(source, source, location, facts=facts))
    finally:
        others = _others_of(passed_over, kind)
        selection.ignored += passed_over.total() - sum(others.values())
        for takes, count in others.items():
            selection.others[takes] = selection.others.get(takes, 0) + count
    if bad > limits.MAX_BAD_ROWS:
        raise _unnamed(name, bad - limits.MAX_BAD_ROWS, "members")


def _add_table(
    selection: _Selection, file: Path, name: str, kind: Kind, column: str | None, prompt_field: str | None
) -> None:
    facts = facts_of(str(file))
    table = tables.read_table(file, kind.takes, column=column, prompt_field=prompt_field)
    for number, (row, has_bytes) in enumerate(zip(table.rows, table.has_bytes, strict=True)):
        if table.column is not None and has_bytes and row.problem is None:
            location = TableCell(str(file), number, table.column)
            selection.entries.append(_Entry(row.path, f"{name}:{number}", location, row.prompt, facts=facts))
        elif row is not manifests.UNNAMED:
            selection.entries.append(_named(row, file, name))
    _add_unnamed(name, table.rows)


def _add_unnamed(name: str, rows: Sequence[Row]) -> None:
    """One failure for all rows of a list that are wrong after the first so many.

    Raises:
        ImageError: there are such rows.
    """
    if unnamed := sum(row is manifests.UNNAMED for row in rows):
        raise _unnamed(name, unnamed, "rows")


def _unnamed(name: str, count: int, what: str) -> ImageError:
    return ImageError(
        FailureReason.ROW,
        f"{name}: {count:,} more {what} are wrong; only the first {limits.MAX_BAD_ROWS:,} are named one by one. "
        f"Good {what} between them are used. Look at the first, and write the list anew",
    )


def _named(row: Row, file: Path, name: str) -> _Entry:
    """The input that a row names, as seen from the list's folder. What lies elsewhere is the user's own choice.

    Args:
        name: of the list, as the ledger has it.
    """
    in_ledger = name + row.name.removeprefix(file.name)
    if row.problem is not None:
        return _Entry(in_ledger, in_ledger, None, problem=row.problem)
    base = str(file.parent)
    path = os.path.join(base, row.path)  # noqa: PTH118
    folder = os.path.dirname(os.path.normpath(path))  # noqa: PTH120
    inside = base == "." or folder == base or folder.startswith(base.rstrip("/") + "/")
    root = base if inside and not os.path.isabs(row.path) else os.path.dirname(path)  # noqa: PTH117, PTH120
    return _Entry(row.path, in_ledger, File(path), row.prompt, root=root)


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
