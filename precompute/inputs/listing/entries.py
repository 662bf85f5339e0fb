"""The inputs of a place before they are read, in little memory: texts in one piece, numbers in arrays.

A list may name 12.8 million inputs. As objects of Python each took a kilobyte; here it takes its name and 30 bytes.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from ....pipeline.errors import ConfigError, ImageError
from ....pipeline.files import limits
from ....pipeline.files.file_facts import FileFacts
from ....pipeline.files.remote import is_remote, url_in
from ...media.video_times import Window
from ..locations import File, Location, TableCell, TarMember
from ..rows.spellings import spellings
from .texts import Texts

_FILE, _ELSEWHERE, _ROW, _CELL, _NUMBERED, _MEMBER, _BROKEN, _WRONG, _OBJECT = range(9)
"""What an entry is: a file below its container; one with a path of its own; a row that names a file; a cell that is
called by its path, or by its number; a member of a tar; an input that cannot be read; a row that cannot be used; a file
of a bucket or of a data set on the Hub."""
_LAST_PROMPTS = 2**10
_NOWHERE = -1.0
_ELEMENTS = 2**20
"""The number of an entry is that of its row times this, plus one more than its place in the row's list; of a row's only
input, plus 0. So numbers of one list rise."""
_ROW_NAME = re.compile(r"(.*):(\d{1,12})(?:\[(\d{1,6})\])?", re.DOTALL)
"""`list.jsonl:17`, or of the third input in that row `list.jsonl:17[2]`."""


@dataclass(frozen=True, slots=True)
class Container:
    """A folder, list, table or tar that holds or names inputs."""

    name: str
    """In the ledger; of a folder that was named, the folder as it was named."""
    path: str
    folder: str = ""
    """Of a list or table, the folder that its rows are relative to: the one that holds it, or the image root."""
    facts: FileFacts | None = None
    """Of a tar or table."""
    column: str = ""
    """Of a table, the one that holds the bytes."""
    follows_links: bool = False
    """Whether rows may lead out of the folder by links: in the cache of the Hub, and below an image root."""


@dataclass(slots=True)
class Entry:
    """One input before it is read."""

    source: str
    name: str
    """Its name in the ledger; for a row of a list, `list.jsonl:17`, and for the first of several in it, with `[0]`."""
    location: Location | None
    container: Container
    prompt: str | None = None
    window: Window | None = None
    problem: ImageError | None = None
    root: str | None = None
    """The folder that a link must not lead out of; None where links are the user's own."""
    facts: FileFacts | None = None
    """Of the tar or table that holds it; None looks at its own file."""


class Entries:
    """The inputs of one place, in order. Those of one container follow one another."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.containers: list[Container] = []
        self._starts = array("Q")
        """Of each container, its first entry."""
        self._kinds = bytearray()
        self._sources = Texts()
        self._numbers = array("Q")
        """Line of a list and row of a table, with the place in it; place in the lists of members and paths below."""
        self._offsets, self._sizes, self._paths = array("Q"), array("Q"), Texts()
        self._prompts = Texts()
        self._prompt_of = array("I")
        """By entry, one more than the place of its prompt; 0 for none. Empty until there is one."""
        self._windows = array("d")
        """By entry, start and end of its window in seconds, or `_NOWHERE`; empty until there is one."""
        self.common_window: Window | None = None
        """Of the entries that have none of their own."""
        self._last_prompts: dict[str, int] = {}
        self._problems: dict[int, ImageError] = {}
        self._spelled = bytearray()
        """By entry, one more than the place in `spellings` of what its path was found by; empty until there is one."""
        self._place_by_name: dict[str, int] | None = None
        """Container -> its place; made when it is first asked for."""
        self.unnamed: Counter[str] = Counter()
        """Container -> its wrong inputs beyond the first `MAX_BAD_ROWS` of the place, which are counted alone."""

    def __len__(self) -> int:
        return len(self._kinds)

    def open(self, container: Container) -> None:
        """Add entries to this container from here on."""
        self.containers.append(container)
        self._starts.append(len(self))

    def add_file(self, source: str, path: str | None = None) -> None:
        """Add a file of a folder.

        Args:
            path: where it is not the container's path and the source.
        """
        if path is None:
            self._add(_FILE, source, 0)
        else:
            self._paths.append(path)
            self._add(_ELSEWHERE, source, len(self._paths) - 1)

    def add_row(
        self, source: str, number: int, prompt: str | None, element: int | None = None, window: Window | None = None
    ) -> None:
        """Add a row that names a file, or one of several that it names."""
        self._add(_ROW, source, _numbered(number, element), prompt, window)

    def add_cell(
        self, source: str, number: int, prompt: str | None, element: int | None = None, window: Window | None = None
    ) -> None:
        """Add a row that holds bytes, or one of several in it; an empty source calls it by its number."""
        self._add(_CELL if source else _NUMBERED, source, _numbered(number, element), prompt, window)

    def add_member(self, source: str, offset: int, size: int) -> None:
        """Add a member of a tar."""
        self._offsets.append(offset)
        self._sizes.append(size)
        self._add(_MEMBER, source, len(self._sizes) - 1)

    def add_object(self, source: str, facts: FileFacts) -> None:
        """Add a file of a bucket or of a data set on the Hub, by its URL, which begins with its container's name."""
        self._offsets.append(facts.inode)
        self._sizes.append(facts.size)
        self._add(_OBJECT, source, len(self._sizes) - 1)

    def add_broken_row(self, problem: ImageError, number: int, element: int | None = None) -> None:
        """Add a row that cannot be used, or one of several in it."""
        numbered = _numbered(number, element)
        self._add_problem(_WRONG, f"{self.containers[-1].name}:{_place_in_list(numbered)}", problem, numbered)

    def add_broken(self, source: str, problem: ImageError) -> None:
        """Add an input that cannot be read; beyond the first so many, count it."""
        self._add_problem(_BROKEN, source, problem, 0)

    def _add_problem(self, kind: int, source: str, problem: ImageError, number: int) -> None:
        if len(self._problems) >= limits.MAX_BAD_ROWS:
            self.unnamed[self.containers[-1].name] += 1
            return
        self._problems[len(self)] = problem
        self._add(kind, source, number)

    def _add(
        self, kind: int, source: str, number: int, prompt: str | None = None, window: Window | None = None
    ) -> None:
        if len(self._kinds) >= limits.MAX_ROWS:
            raise ConfigError(
                f"{self.place} holds or names more than {limits.MAX_ROWS:,} inputs. Take a part of them at a time: "
                "runs of one recipe into one --cache add up"
            )
        if self._sources.size + self._prompts.size + self._paths.size > limits.MAX_TEXTS_BYTES:
            raise ConfigError(
                f"the names and prompts of {self.place} have more than {limits.MAX_TEXTS_BYTES:,} bytes. Take a part "
                "of them at a time: runs of one recipe into one --cache add up"
            )
        if prompt is not None:
            if not self._prompt_of:
                self._prompt_of = array("I", bytes(4 * len(self)))
            self._prompt_of.append(self._place_of(prompt) + 1)
        elif self._prompt_of:
            self._prompt_of.append(0)
        if window is not None and not self._windows:
            self._windows = array("d", [_NOWHERE]) * (2 * len(self))
        if window is not None:
            self._windows.extend((window.start_s, _NOWHERE if window.end_s is None else window.end_s))
        elif self._windows:
            self._windows.extend((_NOWHERE, _NOWHERE))
        self._kinds.append(kind)
        self._sources.append(source)
        self._numbers.append(number)

    def _place_of(self, prompt: str) -> int:
        """Where a prompt is kept. One that is often repeated, as a file of a few bytes can, is kept once."""
        place = self._last_prompts.get(prompt)
        if place is None:
            if len(self._last_prompts) >= _LAST_PROMPTS:
                self._last_prompts.clear()
            place = self._last_prompts[prompt] = len(self._prompts)
            self._prompts.append(prompt)
        return place

    def cut(self, count: int) -> None:
        """Forget all entries but the first so many, and what was counted of the container that is open."""
        del self._kinds[count:], self._numbers[count:], self._prompt_of[count:], self._windows[2 * count :]
        self._sources.cut(count)
        self._prompts.cut(max(self._prompt_of, default=0))
        self._last_prompts.clear()
        for number in [number for number in self._problems if number >= count]:
            del self._problems[number]
        self.unnamed.pop(self.containers[-1].name, None)

    @property
    def has_prompts(self) -> bool:
        """Whether any entry has a prompt."""
        return bool(self._prompt_of)

    @property
    def has_windows(self) -> bool:
        """Whether any entry has a window."""
        return bool(self._windows) or self.common_window is not None

    def source(self, at: int) -> str:
        """The name of an entry for people."""
        if self._kinds[at] == _NUMBERED:
            return f"{self._container(at).name}#{_place_in_list(self._numbers[at])}"
        return self._sources[at]

    def prompt(self, at: int) -> str | None:
        """The prompt of an entry."""
        place = self._prompt_of[at] if self._prompt_of else 0
        return self._prompts[place - 1] if place else None

    def window(self, at: int) -> Window | None:
        """Where in a video an entry is read."""
        if not self._windows or self._windows[2 * at] == _NOWHERE:
            return self.common_window
        start_s, end_s = self._windows[2 * at : 2 * at + 2]
        return Window(start_s, None if end_s == _NOWHERE else end_s)

    def location(self, at: int) -> Location | None:
        """Where the bytes of an entry lie."""
        kind, number, container = self._kinds[at], self._numbers[at], self._container(at)
        if kind == _ROW:
            path = self._path_in_row(at)
            if is_remote(path):
                return File(path)
            if is_remote(container.folder) and not path.startswith("/"):
                return File(url_in(container.folder, path))
            return File(os.path.join(container.folder, path))  # noqa: PTH118 - millions of times
        if kind == _FILE:
            return File(os.path.join(container.path, self._sources[at]))  # noqa: PTH118
        if kind == _MEMBER:
            return TarMember(container.path, self._offsets[number], self._sizes[number])
        if kind in (_CELL, _NUMBERED):
            row, place = divmod(number, _ELEMENTS)
            return TableCell(container.path, row, container.column, max(0, place - 1))
        if kind == _OBJECT:
            return File(container.path + self._sources[at][len(container.name) :])
        return File(self._paths[number]) if kind == _ELSEWHERE else None

    def entry(self, at: int) -> Entry:
        """One entry."""
        kind, container, source, location = self._kinds[at], self._container(at), self.source(at), self.location(at)
        entry = Entry(source, source, location, container, self.prompt(at), self.window(at), self._problems.get(at))
        if kind in (_ROW, _CELL, _NUMBERED):
            entry.name = f"{container.name}:{_place_in_list(self._numbers[at])}"
        if kind in (_CELL, _NUMBERED, _MEMBER):
            entry.facts = container.facts
        elif kind == _OBJECT:
            number = self._numbers[at]
            entry.facts = FileFacts(0, self._offsets[number], self._sizes[number], 0, 0)
        elif kind == _ROW and location is not None and not (container.follows_links or is_remote(location.path)):
            entry.root = _root_of_row(container.folder, self._path_in_row(at), location.path)
        return entry

    def set_root(self, folder: str) -> None:
        """Take the paths of rows as relative to this folder, which the user named: links in it are followed.

        Raises:
            ConfigError: there is no such folder, or no row names a file.
        """
        if not os.path.isdir(folder):  # noqa: PTH112 - a text
            raise ConfigError(f"--image-root {folder} is no folder (looked from {os.getcwd()})")  # noqa: PTH109
        if not any(container.folder for container in self.containers):
            raise ConfigError(
                f"{self.place} is no list, so no path in it is relative to --image-root {folder}. Leave it out, or "
                "name a list: .jsonl, .csv, .json, .txt or .parquet"
            )
        root = str(Path(folder))
        self.containers = [
            replace(container, folder=root, follows_links=True) if container.folder else container
            for container in self.containers
        ]

    def names_file(self, at: int) -> bool:
        """Whether an entry is a row that names a file."""
        return self._kinds[at] == _ROW

    def respell(self, at: int, spelling: int) -> Entry:
        """Take another of the `spellings` of a row's path from here on; its name stays as it was written."""
        if not self._spelled:
            self._spelled = bytearray(len(self))
        self._spelled[at] = spelling + 1
        return self.entry(at)

    def _path_in_row(self, at: int) -> str:
        source = self._sources[at]
        spelled = self._spelled[at] if self._spelled else 0
        return spellings(source)[spelled - 1].path if spelled else source

    def find_rows(self, name: str) -> range | None:
        """The entries of the row that the ledger calls `list.jsonl:17`, or the one it calls `list.jsonl:17[2]`."""
        match = _ROW_NAME.fullmatch(name)
        if match is None:
            return None
        container_name, number, element = match.groups()
        if self._place_by_name is None:
            self._place_by_name = {container.name: place for place, container in enumerate(self.containers)}
        place = self._place_by_name.get(container_name)
        if place is None:
            return None
        end = self._starts[place + 1] if place + 1 < len(self._starts) else len(self)
        first = _numbered(int(number), None if element is None else int(element))
        last = first if element is not None else first + _ELEMENTS - 1
        start = bisect_left(self._numbers, first, self._starts[place], end)
        same_numbers = range(start, bisect_right(self._numbers, last, start, end))
        return (
            same_numbers
            if same_numbers and all(self._kinds[at] in (_ROW, _CELL, _NUMBERED) for at in same_numbers)
            else None
        )

    def number_repeated(self) -> None:
        """Call each cell by its number, whose name another entry has too.

        Names are compared by 64 bits of a hash: where two that differ agree in it, both are called by their numbers.
        """
        if not self._kinds.count(_CELL):
            return
        hashes = self.hashes(range(len(self)))
        ordered = np.sort(hashes)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        kinds = np.frombuffer(self._kinds, np.uint8)
        places = np.searchsorted(repeated, hashes)
        places[places == len(repeated)] = 0
        is_repeated = repeated[places] == hashes if len(repeated) else np.zeros(len(hashes), np.bool_)
        kinds[(kinds == _CELL) & is_repeated] = _NUMBERED

    def hashes(self, places: range | array[int]) -> NDArray[np.uint64]:
        """64 bits of the name of each of some entries."""
        digest = xxhash.xxh3_64_intdigest
        names = (digest(self.source(at).encode("utf-8", "surrogatepass")) for at in places)
        return np.fromiter(names, np.uint64, len(places))

    def __iter__(self) -> Iterator[Entry]:
        return map(self.entry, range(len(self)))

    def _container(self, at: int) -> Container:
        return self.containers[bisect_right(self._starts, at) - 1]


def _numbered(number: int, element: int | None) -> int:
    return number * _ELEMENTS + (0 if element is None else element + 1)


def _place_in_list(number: int) -> str:
    row, place = divmod(number, _ELEMENTS)
    return f"{row}[{place - 1}]" if place else str(row)


def _root_of_row(base: str, source: str, path: str) -> str:
    """The folder that the file of a row must not leave by a link. What lies elsewhere is the user's own choice."""
    folder = os.path.dirname(os.path.normpath(path))  # noqa: PTH120 - millions of times
    inside = base == "." or folder == base or folder.startswith(base.rstrip("/") + "/")
    return base if inside and not os.path.isabs(source) else os.path.dirname(path)  # noqa: PTH117, PTH120
