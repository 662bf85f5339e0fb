"""The names of files in a folder, of a glob pattern or of a brace pattern; no link to a folder is followed."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...pipeline.errors import ConfigError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MAX_EXPANDED = 10**6


def walk(root: Path, entered: dict[str, str] | None = None) -> Iterator[tuple[str, str, bool]]:
    """The files below a folder: name relative to it with forward slashes, path, and whether it is a link.

    Hidden files are left out. A pipe named x.png is listed, so that it is refused by name.

    Args:
        entered: is filled with every folder below the root, `sub/`, and why it could not be read; empty where it could.
    """
    entered = {} if entered is None else entered
    folders = [("", str(root))]
    while folders:
        name, path = folders.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
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
    """The files that a glob pattern matches; unlike glob's, its `**` follows no links."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [path for path in sorted(glob.glob(pattern)) if not os.path.isdir(path)]  # noqa: PTH112, PTH207
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
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_matches(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])
