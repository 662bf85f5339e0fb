"""What was found at a place, and what was left out: files of other kinds, and files that no kind takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...pipeline.errors import ConfigError
from ..rollout.kinds import KINDS, Kind
from .entries import Entries


@dataclass(slots=True)
class Selection:
    entries: Entries
    others: dict[str, int] = field(default_factory=dict[str, int])
    ignored: int = 0
    sound: set[str] = field(default_factory=set[str])
    """Folders, tars and tables that were read to their end."""


def relative(path: str, root: str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def suffix_of(name: str) -> str:
    name = name[name.rfind("/") + 1 :]  # a hundred thousand times
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def others_among(files: Iterable[str], kind: Kind) -> dict[str, int]:
    """Noun of another kind's input -> how many of the files are such inputs."""
    return others_of(Counter(map(suffix_of, files)), kind)


def others_of(suffixes: Counter[str], kind: Kind) -> dict[str, int]:
    others = {other.takes: other.suffixes for other in KINDS.values() if other.takes != kind.takes}
    counts = {takes: sum(suffixes[suffix] for suffix in wanted) for takes, wanted in others.items()}
    return {takes: count for takes, count in counts.items() if count}


def refuse_columns(named: str, column: str | None, prompt_field: str | None) -> None:
    flags = [flag for flag, value in (("--column", column), ("--prompt-field", prompt_field)) if value is not None]
    if flags:
        raise ConfigError(
            f"{named} has no columns, so {' and '.join(flags)} cannot choose one. "
            "Name a list instead: .jsonl, .csv, .json or .parquet"
        )


def counted(others: dict[str, int]) -> str:
    return " and ".join(f"{count} {takes}{'s' if count > 1 else ''}" for takes, count in others.items())


def advice(others: dict[str, int]) -> str:
    takers = {kind.takes: name for name, kind in reversed(KINDS.items())}
    return " and ".join(f"--kind {takers[takes]} takes {takes}s" for takes in others)
