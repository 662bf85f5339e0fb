"""The entries of a folder, and the names that a glob pattern or a brace pattern stands for.

Links are followed, to files and to folders: who names a folder or a pattern means what lies there. A link back to a
folder on its own way, a loop, is counted and not entered.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....pipeline.errors import ConfigError
from ....pipeline.files.limits import MAX_ROWS

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MAX_EXPANDED = 10**6
_MAX_DEPTH = 200
"""Folders in a pattern: of each folder that is looked at, every part may be tried."""
_MAX_BY_LINKS = 100
"""How often one folder is entered by links: 40 folders, each with two links to the next, would be a million million."""
_TOO_MANY = f"holds more than {MAX_ROWS:,} files. Name a folder inside it, or put the files into tars"


@dataclass(slots=True, eq=False)
class _Folder:
    """A folder that is going to be read."""

    name: str
    """Relative to the root, with a slash at its end; empty for the root."""
    path: str
    above: _Folder | None = None
    by_link: bool = False
    """Whether a link is on the way to it."""
    identity: tuple[int, int] | None = None
    """Device and inode, once asked for."""

    def is_inside(self, identity: tuple[int, int]) -> bool:
        """Whether this is on the way to it, or it itself."""
        folder: _Folder | None = self
        while folder is not None:
            if folder.identity is None:
                folder.identity = _identity(os.stat(folder.path))  # noqa: PTH116
            if folder.identity == identity:
                return True
            folder = folder.above
        return False


class Walk:
    """Looks through a folder and counts what it does not return."""

    def __init__(self, root: Path) -> None:
        self.entered: dict[str, str] = {}
        """Folder, `sub/`, empty for the root -> why it could not be read; empty where it could."""
        self.broken: dict[str, str] = {}
        """Link that leads to nothing -> where it leads."""
        self.hidden = self.loops = self.folders = 0
        """Hidden entries; links to, and folders that are, a folder on their own way; folders that a pattern stands for,
        which are not entered."""
        self.root = root
        self._entries_read = 0
        self._by_links: Counter[tuple[int, int]] = Counter()

    def files(self) -> Iterator[str]:
        """The files below the root, relative to it with forward slashes.

        Pipes, devices and broken links are among them, to be refused by name.

        Raises:
            ConfigError: there are more than `MAX_ROWS` files and folders, or links multiply them.
        """
        waiting = [_Folder("", str(self.root))]
        while waiting:
            folder = waiting.pop()
            for entry in self._read(folder):
                if entry.name.startswith("."):
                    self.hidden += 1
                elif self._leads_to_folder(folder, entry):
                    if (inner := self._inner(folder, entry)) is not None:
                        waiting.append(inner)
                else:
                    yield folder.name + entry.name

    def matches(self, parts: Sequence[str]) -> Iterator[str]:
        """The files below the root whose path is like a pattern, in parts, as `files` returns them.

        Hidden entries match only a part that begins with a dot. Only folders in which something may match are read.

        Raises:
            ConfigError: as of `files`.
        """
        waiting = [(_Folder("", str(self.root)), _closure({0}, parts))]
        tests = [_test_of(part) for part in parts]
        while waiting:
            folder, reached = waiting.pop()
            for entry in self._read(folder):
                next_ = {at + 1 for at in reached if at < len(parts) and parts[at] != "**" and tests[at](entry.name)}
                if not entry.name.startswith("."):
                    next_ |= {at for at in reached if at < len(parts) and parts[at] == "**"}
                next_ = _closure(next_, parts)
                if not next_:
                    continue
                if not self._leads_to_folder(folder, entry):
                    if len(parts) in next_:
                        yield folder.name + entry.name
                elif any(at < len(parts) for at in next_):
                    if (inner := self._inner(folder, entry)) is not None:
                        waiting.append((inner, next_))
                else:
                    self.folders += 1

    def _read(self, folder: _Folder) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    self._entries_read += 1
                    if self._entries_read > MAX_ROWS:
                        raise ConfigError(f"{self.root} {_TOO_MANY}")
                    yield entry
            self.entered[folder.name] = ""
        except FileNotFoundError:  # removed since it was listed
            return
        except OSError as error:
            self.entered[folder.name] = error.strerror or str(error)

    def _leads_to_folder(self, folder: _Folder, entry: os.DirEntry[str]) -> bool:
        try:
            if not entry.is_symlink():
                return entry.is_dir(follow_symlinks=False)
            return stat.S_ISDIR(entry.stat().st_mode)
        except OSError:  # also a link to itself
            try:
                leads_to = os.readlink(entry.path)  # noqa: PTH115
            except OSError:
                return False
            self.broken[folder.name + entry.name] = leads_to
            return False

    def _inner(self, folder: _Folder, entry: os.DirEntry[str]) -> _Folder | None:
        """A folder in a folder; None where it is one on the way to it."""
        by_link = folder.by_link or entry.is_symlink()
        inner = _Folder(f"{folder.name}{entry.name}/", entry.path, folder, by_link)
        if by_link:
            try:
                inner.identity = _identity(os.stat(entry.path))  # noqa: PTH116
                is_loop = folder.is_inside(inner.identity)
            except OSError:  # gone, or not to be seen: reading it will say so
                return inner
            if is_loop:
                self.loops += 1
                return None
            self._by_links[inner.identity] += 1
            if self._by_links[inner.identity] > _MAX_BY_LINKS:
                raise ConfigError(
                    f"{self.root}: links lead to {inner.path} in more than {_MAX_BY_LINKS} ways, and each makes "
                    "inputs of all that it holds. Remove some of the links, or name the folders that they lead to"
                )
        return inner


def has_magic(pattern: str) -> bool:
    """Whether the text is a glob pattern."""
    return glob.has_magic(pattern)


def match_files(pattern: str) -> tuple[list[str], Walk]:
    """The files that a glob pattern matches, broken links among them, and what was counted on the way.

    Raises:
        ConfigError: more files match than one job may have, or no path can be like the pattern.
    """
    if "\0" in pattern or pattern.count("/") > _MAX_DEPTH:
        raise ConfigError(f"the pattern {pattern[:200]!r} can match no file: it has a NUL, or is deeper than any path")
    parts = Path(pattern).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    rest = [part for part, before in itertools.pairwise((*parts[len(fixed) :], "")) if (part, before) != ("**", "**")]
    walk = Walk(Path(*fixed))
    matches = list(walk.matches(rest))
    return sorted(str(Path(*fixed, name)) for name in matches), walk


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


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _test_of(part: str) -> Callable[[str], bool]:
    """Whether a name is like one part of a pattern."""
    if not glob.has_magic(part):
        return part.__eq__
    match = re.compile(fnmatch.translate(part)).match
    takes_hidden = part.startswith(".")
    return lambda name: (takes_hidden or not name.startswith(".")) and match(name) is not None


def _closure(reached: set[int], parts: Sequence[str]) -> set[int]:
    """Parts of a pattern that may come next: `**` may also stand for no folder."""
    for at in sorted(reached):
        while at < len(parts) and parts[at] == "**":
            at += 1
            reached.add(at)
    return reached
