"""What lies at a URL: a folder of a bucket or of a data set on the Hub, files that are named, or a pattern of them."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ....pipeline.errors import ConfigError
from ....pipeline.files.file_facts import FileFacts
from ....pipeline.files.limits import MAX_ROWS
from ....pipeline.files.remote import Root, check_url, facts_of_remote, read_head, remote_files, root_of
from ....pipeline.files.tables import arrow as arrow_files
from ....pipeline.files.tables import text as lists
from ...rollout.kind import Kind
from ...rollout.kinds import KINDS
from ..first_bytes import LIST, TABLE, TAR, content_of
from ..rows.fields import Fields
from .containers import TARS, add_remote_containers
from .entries import Container, Entries
from .folders import expand_braces, has_braces, has_magic
from .selection import HIDDEN, Selection, advice, counted, name_left_out, refuse_columns, suffix_of


def find_remote(url: str, kind: Kind, column: str | None, fields: Fields) -> Selection:
    """The inputs at a URL, and the number of what was left out. One listing, no look at each file.

    A name that is written out is a file or a folder. In a folder inputs are found by suffix; where it has none, its
    tars are read, else its tables. Hidden names, those that begin with a dot, are counted.

    Raises:
        ConfigError: there is nothing at it, nothing of this kind in it, or the files named are another kind's.
        StoreError: the bucket or the Hub refuses, or does not answer.
    """
    root = root_of(check_url(url))
    if (facts := facts_of_remote(url) if root.key else None) is not None:
        return _named({root.key: facts}, url, root, kind, column, fields)
    if has_braces(root.key):
        return _braces(url, root, kind, column, fields)
    if has_magic(root.key):
        parts = root.key.split("/")
        fixed = next(at for at, part in enumerate(parts) if has_magic(part))
        facts_by_name = _listed(root, "/".join(parts[:fixed]), url)
        facts_by_name = {name: facts for name, facts in facts_by_name.items() if _is_like(name.split("/"), parts)}
        if not facts_by_name:
            raise ConfigError(f"the pattern {url} matches no file. To search folders, end it in /**/*")
        return _named(facts_by_name, url, root, kind, column, fields, is_pattern=True)
    return _folder(url, root, kind, column, fields)


def _braces(url: str, root: Root, kind: Kind, column: str | None, fields: Fields) -> Selection:
    named = expand_braces(root.key)
    folder = root.key[: root.key.index("{")].rpartition("/")[0]
    listed = _listed(root, folder, url)
    if missing := [name for name in named if name not in listed]:
        raise ConfigError(f"{url} names {len(named)} files, and there is no {root.url}/{missing[0]}")
    return _named({name: listed[name] for name in named}, url, root, kind, column, fields)


def _listed(root: Root, folder: str, url: str) -> dict[str, FileFacts]:
    facts_by_name: dict[str, FileFacts] = {}
    for count, file in enumerate(remote_files(root, folder), 1):  # names that come again count, too: it must end
        facts_by_name[file.name] = file.facts
        if count > MAX_ROWS:
            raise ConfigError(
                f"{url} holds more than {MAX_ROWS:,} files. Name a folder inside it, or put them into tars"
            )
    return facts_by_name


def _named(
    files: Mapping[str, FileFacts],
    url: str,
    root: Root,
    kind: Kind,
    column: str | None,
    fields: Fields,
    *,
    is_pattern: bool = False,
) -> Selection:
    """The inputs of files that were named; of a pattern, what it matches beside inputs is left out."""
    forms = {name: _form_by_suffix(name, kind) for name in files}
    if len(files) == 1 and not is_pattern:
        [name] = files
        forms[name] = forms[name] or content_of(read_head(f"{root.at}/{name}"), suffix_of(name)).form
    taken = {name: files[name] for name, form in forms.items() if form == kind.takes}
    containers = {name: files[name] for name, form in forms.items() if form in (LIST, TABLE, TAR)}
    texts = [name for name in containers if suffix_of(name) == lists.PATHS]
    if taken or len(texts) < len(containers):  # captions and notes beside them
        containers = {name: facts for name, facts in containers.items() if name not in set(texts)}
    if taken and containers:
        raise ConfigError(
            f"{url} stands for {len(containers)} lists, tables or tars and {len(taken)} {kind.takes}s. Narrow it to "
            "one or the other"
        )
    rest = Counter(suffix_of(name) for name in files if name not in taken and name not in containers)
    others = Selection(Entries(url))
    others.leave_out_files(rest, kind)
    if others.others or (rest and not is_pattern) or not (taken or containers):
        left_out = counted(others.others) if others.others else name_left_out(others.left_out)
        raise ConfigError(
            f"{url} stands for {left_out}, and only {kind.takes}s, lists, tables and tars are wanted. "
            f"{advice(others.others)}".rstrip(". ")
        )
    if containers:
        selection = add_remote_containers(containers, root, url, kind, column, fields)
    else:
        selection = _files(taken, url, root, column, fields)
    selection.leave_out_files(rest, kind)
    return selection


def _folder(url: str, root: Root, kind: Kind, column: str | None, fields: Fields) -> Selection:
    facts_by_name = _listed(root, root.key.rstrip("/"), url)
    if not facts_by_name:
        raise ConfigError(
            f"there is nothing at {url}: no file of this name, and no folder. Check the name, and its capitals"
        )
    start = len(root.key.rstrip("/")) + 1 if root.key else 0
    visible = {name: facts for name, facts in facts_by_name.items() if not _is_hidden(name[start:])}
    suffixes = Counter(map(suffix_of, visible))
    for wanted in (kind.suffixes, TARS, arrow_files.SUFFIXES):
        taken = {name: facts for name, facts in visible.items() if suffix_of(name) in wanted}
        if not taken:
            continue
        if wanted == kind.suffixes:
            selection = _files(taken, url, root, column, fields)
        else:
            selection = add_remote_containers(taken, root, url, kind, column, fields)
        selection.leave_out_files({suffix: suffixes[suffix] for suffix in suffixes.keys() - wanted}, kind)
        selection.leave_out(HIDDEN, len(facts_by_name) - len(visible))
        return selection
    selection = Selection(Entries(url))
    selection.leave_out_files(suffixes, kind)
    selection.leave_out(HIDDEN, len(facts_by_name) - len(visible))
    if selection.others:
        raise ConfigError(f"{url} holds no {kind.takes}, but {counted(selection.others)}. {advice(selection.others)}")
    named = next((name for name in sorted(visible) if suffix_of(name) in lists.SUFFIXES), None)
    more = f". To take the {kind.takes}s that a list names, name the list: {root.url}/{named}" if named else ""
    raise ConfigError(
        f"{url} holds no {kind.takes}: none of its {len(facts_by_name)} files ends in "
        f"{', '.join(sorted(kind.suffixes))}. It holds {name_left_out(selection.left_out)}{more}"
    )


def _files(files: Mapping[str, FileFacts], url: str, root: Root, column: str | None, fields: Fields) -> Selection:
    refuse_columns(url, column, fields)
    selection = Selection(Entries(url), sound={url, root.url})
    selection.entries.open(Container(root.url, root.at))
    for name in sorted(files):
        selection.entries.add_object(f"{root.url}/{name}", files[name])
    return selection


def _form_by_suffix(name: str, kind: Kind) -> str:
    """What a file is by its suffix; empty where that does not say it."""
    suffix = suffix_of(name)
    if suffix in kind.suffixes:
        return kind.takes
    if suffix in TARS:
        return TAR
    if suffix in arrow_files.SUFFIXES:
        return TABLE
    if suffix in lists.SUFFIXES or suffix == lists.PATHS or lists.form_of_name(Path(name).name) in lists.SUFFIXES:
        return LIST
    return next((other.takes for other in KINDS.values() if suffix in other.suffixes), "")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _is_like(name: list[str], pattern: list[str]) -> bool:
    """Whether a name is like a pattern, both in parts; `**` stands for any number of folders."""
    reached = _closure({0}, pattern)
    for part in name:
        after = {at + 1 for at in reached if at < len(pattern) and pattern[at] != "**" and _matches(part, pattern[at])}
        if not part.startswith("."):
            after |= {at for at in reached if at < len(pattern) and pattern[at] == "**"}
        reached = _closure(after, pattern)
    return len(pattern) in reached


def _matches(part: str, pattern: str) -> bool:
    return (pattern.startswith(".") or not part.startswith(".")) and fnmatch.fnmatchcase(part, pattern)


def _closure(reached: Iterable[int], pattern: list[str]) -> set[int]:
    closed = set(reached)
    for at in sorted(closed):
        while at < len(pattern) and pattern[at] == "**":
            at += 1
            closed.add(at)
    return closed
