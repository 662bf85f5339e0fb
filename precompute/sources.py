"""Where inputs come from: a folder, a single file or a glob pattern. Names and content addresses, no pixels.

Elsewhere: which files a kind of recipe takes (kinds.py), decoding (images.py, video.py), what is to do (plan.py).
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.errors import ConfigError, ImageError
from ..pipeline.keys import key_of_bytes
from ..pipeline.ledger import Failure
from .images import read_input_file
from .kinds import KINDS, Kind


@dataclass(frozen=True, slots=True)
class Sample:
    """One input: `source` names it for people, `path` opens it, `key` is its content's address."""

    source: str
    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All inputs of a run, in the order of their names."""

    samples: tuple[Sample, ...]
    """Every readable input, duplicates included."""
    refused: tuple[Failure, ...]
    """Inputs that cannot even be read; they have no content, so no key."""
    others: dict[str, int]
    """What other kinds take ("image", "video") -> files passed over because they are that."""
    ignored: int
    """Files passed over because no kind takes them."""

    def unique(self) -> dict[str, Sample]:
        """Key -> the first sample with that content."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.key, sample)
        return first


def list_inputs(place: Path, kind: Kind, *, limit: int | None = None) -> Listing:
    """Find and hash a kind's inputs in a folder (recursively), by a glob pattern, or one file.

    Symlinked folders are not entered; a link to a file counts only where it stays inside the folder. `source` is the
    path relative to the folder, with forward slashes.

    Args:
        limit: keep only the first so many inputs, in the order of their names.
    Raises:
        ConfigError: there is nothing at this place, nothing of this kind in it, or the files named are another kind's.
    """
    root, found, others, ignored = _find(place, kind)
    samples: list[Sample] = []
    refused: list[Failure] = []
    for path in sorted(found, key=lambda p: p.relative_to(root).as_posix())[:limit]:
        source = path.relative_to(root).as_posix()
        try:
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise ImageError("not_a_file", f"{source} is a link that leads out of {root}")
            content = read_input_file(path, max_bytes=kind.max_bytes)
            samples.append(Sample(source, path, key_of_bytes(content)))
        except ImageError as error:
            refused.append(Failure(source=source, key=None, reason=error.reason, message=str(error), attempts=1))
    return Listing(tuple(samples), tuple(refused), others, ignored)


def _find(place: Path, kind: Kind) -> tuple[Path, list[Path], dict[str, int], int]:
    """The folder that names are relative to, the inputs, and what was passed over."""
    if place.is_file():
        _refuse_others(str(place), [place], kind)
        return place.parent, [place], {}, 0
    if place.is_dir():
        files = list(_walk(place))
        found = [path for path in files if path.suffix.lower() in kind.suffixes]
        others = _others(files, kind)
        if not found and others:
            raise ConfigError(f"{place} holds no {kind.takes}, but {_counted(others)}. {_advice(others)}")
        if not found:
            raise ConfigError(
                f"{place} holds no {kind.takes}: none of its {len(files)} files ends in "
                f"{', '.join(sorted(kind.suffixes))}. "
                "Name the folder that holds them; folders inside it are searched too"
            )
        return place, found, others, len(files) - len(found) - sum(others.values())
    pattern = str(place)
    if glob.has_magic(pattern):
        names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = [path for name in names if not (path := Path(name)).is_dir()]
        if not found:
            raise ConfigError(f"the pattern {pattern} matches no file here ({Path.cwd()})")
        _refuse_others(pattern, found, kind)
        return Path(os.path.commonpath([path.parent for path in found])), found, {}, 0
    raise ConfigError(f"there is no folder or {kind.takes} at {place} (looked from {Path.cwd()})")


def _others(files: list[Path], kind: Kind) -> dict[str, int]:
    """What other kinds take -> how many of the files are that."""
    suffixes = Counter(path.suffix.lower() for path in files)
    others = {other.takes: other.suffixes for other in KINDS.values() if other.takes != kind.takes}
    counts = {takes: sum(suffixes[suffix] for suffix in wanted) for takes, wanted in others.items()}
    return {takes: count for takes, count in counts.items() if count}


def _refuse_others(named: str, files: list[Path], kind: Kind) -> None:
    """What was named by file must all be of this kind: to leave some out would not be what was asked."""
    if others := _others(files, kind):
        narrower = f", or narrow the pattern to {kind.takes}s" if len(files) > 1 else ""
        raise ConfigError(
            f"{named} stands for {_counted(others)}, and only {kind.takes}s are wanted. {_advice(others)}{narrower}"
        )


def _counted(others: dict[str, int]) -> str:
    return " and ".join(f"{count} {takes}{'s' if count > 1 else ''}" for takes, count in others.items())


def _advice(others: dict[str, int]) -> str:
    takers = {kind.takes: name for name, kind in reversed(KINDS.items())}
    return " and ".join(f"--kind {takers[takes]} takes {takes}s" for takes in others)


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder) / name
            # a pipe named x.png is listed, to be refused by name; a hidden file is nobody's input
            if not name.startswith(".") and not stat.S_ISDIR(path.lstat().st_mode):
                yield path
