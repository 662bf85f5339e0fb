"""What lies at a place: a folder of files, files that were named, lists, tables, tars or a data set of the Hub."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from pathlib import Path

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files import arrow_tables as arrow_files
from ...pipeline.files import text_tables as lists
from ..rollout.kinds import Kind
from .containers import TARS, add_containers
from .entries import Container, Entries
from .folders import expand_braces, has_braces, has_magic, match_files, walk
from .selection import (
    Selection,
    advice,
    counted,
    others_among,
    others_of,
    refuse_columns,
    relative,
    suffix_of,
)

_CONTAINERS = lists.SUFFIXES | arrow_files.SUFFIXES | TARS
_LINK = "\0"
"""Marks the name of a link while names are sorted: no name holds it, and it comes before all other characters."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find(place: Path, kind: Kind, column: str | None, prompt_field: str | None) -> Selection:
    """The inputs of a place, and the number of skipped files.

    Raises:
        ConfigError: as of `list_inputs`; or this user may not look there.
    """
    text = str(place)
    if text.startswith(arrow_files.HUB):
        fetched = arrow_files.fetch_hub(text)
        root = str(fetched[0].parent) if fetched else text
        return add_containers(fetched, text, root, kind, column, prompt_field, own=False)
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
            return add_containers(files, text, text, kind, column, prompt_field)
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
    containers = [file for file in files if suffix_of(file) in _CONTAINERS]
    if not containers:
        refuse_columns(text, column, prompt_field)
        entries = Entries(text)
        entries.open(Container(text, root))
        for name, file in sorted((relative(file, root), file) for file in files):
            entries.add_file(name, file, is_link=True)
        return Selection(entries)
    if len(containers) < len(files):
        raise ConfigError(
            f"{text} stands for {len(containers)} lists, tables or tars and {len(files) - len(containers)} other "
            "files. Narrow the pattern to one or the other"
        )
    return add_containers([Path(file) for file in sorted(containers)], text, root, kind, column, prompt_field)


def _folder(place: Path, kind: Kind, column: str | None, prompt_field: str | None) -> Selection:
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
    suffixes = Counter(suffix_of(name.removesuffix(_LINK)) for name in names)
    others = others_of(suffixes, kind)
    taken = sum(suffixes[suffix] for suffix in kind.suffixes)
    if taken:
        refuse_columns(text, column, prompt_field)
        entries = Entries(text)
        entries.open(Container(text, text))
        for name in sorted(name for name in names if suffix_of(name.removesuffix(_LINK)) in kind.suffixes):
            entries.add_file(name.removesuffix(_LINK), is_link=name.endswith(_LINK))
        for name, problem in closed:
            entries.add_broken(name, problem)
        return Selection(entries, others, len(names) - taken - sum(others.values()), {*sound, text})
    for wanted in (TARS, arrow_files.SUFFIXES - {".arrow"}):
        found = (name.removesuffix(_LINK) for name in names)
        if containers := sorted(name for name in found if suffix_of(name) in wanted):
            inside = add_containers([place / name for name in containers], text, text, kind, column, prompt_field)
            inside.ignored += len(names) - len(containers)
            inside.entries.open(Container(text, text))
            for name, problem in closed:
                inside.entries.add_broken(name, problem)
            inside.sound |= sound
            return inside
    if others:
        raise ConfigError(f"{place} holds no {kind.takes}, but {counted(others)}. {advice(others)}")
    if closed:
        raise ConfigError(f"{place} holds no {kind.takes} that can be seen: {closed[0][1]}")
    named = [name for name in (name.removesuffix(_LINK) for name in names) if suffix_of(name) in lists.SUFFIXES]
    raise ConfigError(
        f"{place} holds no {kind.takes}: none of its {len(names)} files ends in "
        f"{', '.join(sorted(kind.suffixes))}. "
        + (
            f"To take the {kind.takes}s that a list names, name the list: {place / named[0]}"
            if named
            else "Name the folder that holds them; folders inside it are searched too"
        )
    )


def _refuse_others(named: str, files: list[str], kind: Kind) -> None:
    """Refuse named files of another kind, rather than skip what the user named."""
    if others := others_among(files, kind):
        narrower = f", or narrow the pattern to {kind.takes}s" if len(files) > 1 else ""
        raise ConfigError(
            f"{named} stands for {counted(others)}, and only {kind.takes}s are wanted. {advice(others)}{narrower}"
        )
