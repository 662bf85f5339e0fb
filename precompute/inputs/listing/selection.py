"""What was found at a place, and what was left out: files of other kinds, and files that no kind takes, by suffix."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ....pipeline.errors import ConfigError
from ...rollout.kind import Kind
from ...rollout.kinds import KINDS
from ..rows.fields import Fields
from ..tars.samples import EACH
from .entries import Entries

NO_SUFFIX, HIDDEN, LOOP, FOLDER, TEXT_ALONE = (
    "without suffix",
    "hidden",
    "in a loop of links",
    "folder",
    "of text alone",
)
"""What is counted where a suffix does not say it. `TEXT_ALONE` is a LLaVA conversation without an image."""
_OTHER = "with other suffixes"
_SUFFIX = re.compile(r"\.[\w+~-]{1,16}")
_MAX_SUFFIXES = 1000
"""Suffixes that are counted one by one; a stranger's tar may have one for each member."""
_NAMED = 12
_RAW = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw", ".x3f"}
)
"""Suffixes of camera raw. The rest of the suffixes say themselves what they are."""


@dataclass(slots=True)
class Selection:
    """The inputs of a place, and the number of all other entries."""

    entries: Entries
    others: dict[str, int] = field(default_factory=dict[str, int])
    """Noun of another kind's input -> number of such files."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Suffix with its dot, or one of the words above -> number of files and other entries that no kind takes."""
    sound: set[str] = field(default_factory=set[str])
    """Folders, tars and tables that were read to their end."""
    notes: list[str] = field(default_factory=list[str])
    """What a user may have meant otherwise, and how often."""

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count entries that are not taken."""
        if count:
            self.left_out[what if what in self.left_out or len(self.left_out) < _MAX_SUFFIXES else _OTHER] += count

    def leave_out_files(self, suffixes: Mapping[str, int], kind: Kind) -> None:
        """Count files that are not taken by their suffix (as of `suffix_of`), those of another kind apart."""
        others = others_of(Counter(suffixes), kind)
        for takes, count in others.items():
            self.others[takes] = self.others.get(takes, 0) + count
        of_others = frozenset().union(*(other.suffixes for other in KINDS.values() if other.takes != kind.takes))
        for suffix, count in suffixes.items():
            if suffix not in of_others:
                self.leave_out(suffix if _SUFFIX.fullmatch(suffix) else NO_SUFFIX, count)


def name_left_out(left_out: Mapping[str, int]) -> str:
    """What was left out in words, the most frequent suffixes first: `2 .heic, 1 without suffix, 3 hidden`."""
    suffixes = sorted((what for what in left_out if what.startswith(".")), key=lambda what: (-left_out[what], what))
    words = [what for what in (NO_SUFFIX, _OTHER, FOLDER, TEXT_ALONE, HIDDEN, LOOP) if what in left_out]
    named = [f"{left_out[what]:,} {what}{' (camera raw)' * (what in _RAW)}" for what in suffixes[:_NAMED]]
    if rest := suffixes[_NAMED:]:
        named.append(f"{sum(left_out[what] for what in rest):,} of {len(rest):,} more suffixes")
    named += [f"{left_out[what]:,} {what}{'s' * (what == FOLDER and left_out[what] != 1)}" for what in words]
    return ", ".join(named)


def relative(path: str, root: str) -> str:
    """A path relative to a folder, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def suffix_of(name: str) -> str:
    """The suffix of a file in small letters, with its dot; empty where it has none."""
    name = name[name.rfind("/") + 1 :]  # a hundred thousand times
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def others_among(files: Iterable[str], kind: Kind) -> dict[str, int]:
    """Noun of another kind's input -> how many of the files are such inputs."""
    return others_of(Counter(map(suffix_of, files)), kind)


def others_of(suffixes: Counter[str], kind: Kind) -> dict[str, int]:
    """As `others_among`, of counted suffixes."""
    others = {other.takes: other.suffixes for other in KINDS.values() if other.takes != kind.takes}
    counts = {takes: sum(suffixes[suffix] for suffix in wanted) for takes, wanted in others.items()}
    return {takes: count for takes, count in counts.items() if count}


def refuse_columns(named: str, column: str | None, fields: Fields) -> None:
    """Raise ConfigError where a column was named of what has none."""
    flags = [*([] if column in (None, EACH) else ["--column"]), *fields.flags()]
    if flags:
        raise ConfigError(
            f"{named} has no columns, so {' and '.join(flags)} cannot choose one. "
            "Name a list instead: .jsonl, .csv, .json or .parquet"
        )


def counted(others: dict[str, int]) -> str:
    """Files of another kind in words: `2 videos`."""
    return " and ".join(f"{count} {takes}{'s' if count > 1 else ''}" for takes, count in others.items())


def advice(others: dict[str, int]) -> str:
    """What takes files of another kind."""
    takers = {kind.takes: name for name, kind in reversed(KINDS.items())}
    return " and ".join(f"--kind {takers[takes]} takes {takes}s" for takes in others)
