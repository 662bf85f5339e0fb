"""The names of files in a folder, of a glob pattern or of a brace pattern; no link to a folder is followed."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from operator import or_
from pathlib import Path

from ...pipeline.errors import ConfigError
from ...pipeline.files.limits import MAX_ROWS

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MAX_EXPANDED = 10**6
_MAX_DEPTH = 200
"""Folders in a pattern; glob takes a few calls for each, and Python's calls end at 1,000."""
_TOO_MANY = f"holds more than {MAX_ROWS:,} files. Name a folder inside it, or put the files into tars"


def walk(root: Path, entered: dict[str, str] | None = None) -> Iterator[tuple[str, str, bool]]:
    """The files below a folder: name relative to it with forward slashes, path, and whether it is a link.

    Hidden files are left out. A pipe named x.png is listed, so that it is refused by name.

    Args:
        entered: is filled with every folder below the root, `sub/`, and why it could not be read; empty where it could.
    Raises:
        ConfigError: there are more than `MAX_ROWS` files and folders.
    """
    entered = {} if entered is None else entered
    count = 0
    folders = [("", str(root))]
    while folders:
        name, path = folders.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if (count := count + 1) > MAX_ROWS:
                        raise ConfigError(f"{root} {_TOO_MANY}")
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((f"{name}{entry.name}/", entry.path))
                    elif not ((link := entry.is_symlink()) and _leads_to_folder(entry)):
                        yield name + entry.name, entry.path, link
            entered[name] = ""
        except FileNotFoundError:  # removed since it was listed
            continue
        except OSError as error:
            entered[name] = error.strerror or str(error)


def has_magic(pattern: str) -> bool:
    """Whether the text is a glob pattern."""
    return glob.has_magic(pattern)


def match_files(pattern: str) -> list[str]:
    """The files that a glob pattern matches; unlike glob's, its `**` follows no links.

    Raises:
        ConfigError: more files match than one job may have, or no path can be like the pattern.
    """
    if "\0" in pattern or pattern.count("/") > _MAX_DEPTH:
        raise ConfigError(f"the pattern {pattern[:200]!r} can match no file: it has a NUL, or is deeper than any path")
    parts = Path(pattern).parts
    if "**" not in parts:
        found = list(itertools.islice(glob.iglob(pattern), MAX_ROWS + 1))  # noqa: PTH207
        if len(found) > MAX_ROWS:
            raise ConfigError(f"{pattern} {_TOO_MANY}")
        return [path for path in sorted(found) if not os.path.isdir(path)]  # noqa: PTH112
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    rest = [part for part, before in itertools.pairwise((*parts[len(fixed) :], "")) if (part, before) != ("**", "**")]
    return sorted(path for name, path, _ in walk(Path(*fixed)) if _matches(name.split("/"), rest))


def has_braces(pattern: str) -> bool:
    """Whether the text is a brace pattern, such as x-{000..003}.tar or {a,b}.tar."""
    return any("," in inside or _RANGE.fullmatch(inside) for inside in _BRACES.findall(pattern))


def expand_braces(pattern: str) -> list[str]:
    """The names that a brace pattern stands for, in order, as a shell would write them.

    Raises:
        ConfigError: there are too many.
    """
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    count = 1
    for names in choices:
        count *= len(names)
    if count > _MAX_EXPANDED:
        raise ConfigError(f"{pattern} stands for {count:,} names; the limit is {_MAX_EXPANDED:,}")
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    if bounds := _RANGE.fullmatch(inside):
        first, last = bounds.groups()
        width = len(first) if first.startswith("0") else 0
        if int(last) - int(first) >= _MAX_EXPANDED:
            raise ConfigError(f"{{{inside}}} stands for more than {_MAX_EXPANDED:,} names")
        return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a path matches a pattern, both in parts. Every start of the one is tried once with every of the other."""
    reached = [True] + [False] * len(names)  # by the parts so far: how many names they can stand for
    for part in parts:
        if part == "**":
            reached = list(itertools.accumulate(reached, or_))
        else:
            steps = [before and fnmatch.fnmatchcase(name, part) for before, name in zip(reached, names, strict=False)]
            reached = [False, *steps]
    return reached[-1]
