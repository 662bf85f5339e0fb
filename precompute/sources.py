"""Where images come from: a folder, a single file or a glob pattern. Names and content addresses, no pixels.

Elsewhere: decoding (images.py), what is still to do (plan.py).
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.errors import ConfigError, ImageError
from ..pipeline.keys import key_of_bytes
from ..pipeline.ledger import Failure
from .images import SUFFIXES, read_image_file


@dataclass(frozen=True, slots=True)
class Sample:
    """One input to roll out: `source` names it for people, `path` opens it, `key` is its content's address."""

    source: str
    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All inputs of a run, in the order of their names."""

    samples: tuple[Sample, ...]
    """Every readable image, duplicates included."""
    refused: tuple[Failure, ...]
    """Inputs that cannot even be read; they have no content, so no key."""
    ignored: int
    """Files whose suffix is not an image's."""

    def unique(self) -> dict[str, Sample]:
        """Key -> the first sample with that content."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.key, sample)
        return first


def list_images(images: Path, *, limit: int | None = None) -> Listing:
    """Find and hash the images of a folder (recursively), of a glob pattern, or one file.

    Symlinked folders are not entered; a link to a file counts only where it stays inside the folder. `source` is the
    path relative to the folder, with forward slashes.

    Args:
        limit: keep only the first so many images, in the order of their names.
    Raises:
        ConfigError: there is nothing at this place, or no image in it.
    """
    root, found, ignored = _find(images)
    samples: list[Sample] = []
    refused: list[Failure] = []
    for path in sorted(found, key=lambda p: p.relative_to(root).as_posix())[:limit]:
        source = path.relative_to(root).as_posix()
        try:
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise ImageError("not_a_file", f"{source} is a link that leads out of {root}")
            samples.append(Sample(source, path, key_of_bytes(read_image_file(path))))
        except ImageError as error:
            refused.append(
                Failure(source=source, key=None, reason=error.reason, message=str(error), attempts=1)
            )
    return Listing(tuple(samples), tuple(refused), ignored)


def _find(images: Path) -> tuple[Path, list[Path], int]:
    if images.is_file():
        return images.parent, [images], 0
    if images.is_dir():
        files = list(_walk(images))
        found = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not found:
            raise ConfigError(
                f"{images} holds no image: none of its {len(files)} files ends in {', '.join(sorted(SUFFIXES))}. "
                "Name the folder that holds them; folders inside it are searched too"
            )
        return images, found, len(files) - len(found)
    pattern = str(images)
    if glob.has_magic(pattern):
        names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = [path for name in names if not (path := Path(name)).is_dir()]
        if not found:
            raise ConfigError(f"the pattern {pattern} matches no file here ({Path.cwd()})")
        return Path(os.path.commonpath([path.parent for path in found])), found, 0
    raise ConfigError(f"there is no folder or image at {images} (looked from {Path.cwd()})")


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder) / name
            # a pipe named x.png is listed, to be refused by name; a hidden file is nobody's input
            if not name.startswith(".") and not stat.S_ISDIR(path.lstat().st_mode):
                yield path
