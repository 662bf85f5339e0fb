"""Find the image that a question names: a file, or a source that precompute recorded, under any spelling of its name.

Other machines write `sub\\a.png` (Windows), decomposed letters (macOS) and `file:///data/a.png`. Folders in front are
too many, or missing, where a list was moved: then a name is found by its end, if only one image ends so. Where a data
set numbers its images, the questions name the number alone: 2354786 is GQA's 2354786.jpg, and 42 is COCO's
COCO_val2014_000000000042.jpg.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote

from ...pipeline.errors import ConfigError
from ...pipeline.files.images.formats import SUFFIXES

How = Literal["", "spelling", "end", "id"]
"""By which name an image was found: its own, another spelling of it, its end, or its name without a suffix or but for
the number at its end."""
_SUFFIXES = (*sorted(SUFFIXES), *(suffix.upper() for suffix in sorted(SUFFIXES)))
_ID = re.compile(r"[\w-]+")
_DIGITS = "0123456789"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """The file that was found for an image."""

    path: Path
    how: How


def image_folders(questions_folder: Path, images: Path | None) -> tuple[Path, ...]:
    """The folders that names of images are relative to, the first to look into first."""
    return (questions_folder,) if images is None else (images, questions_folder)


def require_folder(images: Path | None) -> None:
    """Refuse a folder of images that is none, before it is looked into in vain.

    Raises:
        ConfigError: it is not there, or no folder.
    """
    if images is not None and not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        raise ConfigError(f"--images {images} {what}: name the folder that the questions' image names are relative to")


def find_file(name: str, folders: Sequence[Path], *, by_end: bool = True) -> FoundFile | None:
    """The file of an image; None where there is none.

    Args:
        by_end: whether folders at the beginning of the name may be left out.
    Raises:
        ValueError: the name cannot be one of a file. OSError: a folder cannot be read.
    """
    for spelling in spellings(name):
        for folder in folders:
            if (path := folder / spelling).is_file():
                return FoundFile(path, "" if spelling == name else "spelling")
    if by_end:
        for end in _ends(name):
            for folder in folders:
                if (path := folder / end).is_file():
                    return FoundFile(path, "end")
        if _ID.fullmatch(name):
            for folder in folders:
                # the folder is not listed: a data set has 100,000 images in it, and as many ids
                tried = (folder / f"{name}{suffix}" for suffix in _SUFFIXES)
                of_this_id = {path.stat().st_ino: path for path in tried if path.is_file()}  # .jpg may be .JPG, too
                if of_this_id:
                    return FoundFile(next(iter(of_this_id.values())), "id") if len(of_this_id) == 1 else None
    return None


def spellings(name: str) -> Iterator[str]:
    """The name itself, then what it may be on this machine, each once."""
    plain = name.strip()
    if plain[:7].lower() == "file://":
        plain = unquote(plain[7:].removeprefix("localhost"))
    slashed = plain.replace("\\", "/")
    forms = (name, plain, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD")))
    return iter(dict.fromkeys(form for form in forms if form))


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a name, the same for all its spellings."""
    *_, last = spellings(name) if name.strip() else [name]
    return tuple(part for part in unicodedata.normalize("NFC", last).split("/") if part not in ("", "."))


def _ends(name: str) -> Iterator[str]:
    """What remains of a name without its first folder, its first two, …"""
    for spelling in list(spellings(name))[1:] or [name]:
        parts = [part for part in spelling.split("/") if part not in ("", ".")]
        for start in range(1, len(parts)):
            if ".." not in parts[start:]:
                yield "/".join(parts[start:])


def _plain(digits: str) -> str:
    return digits.lstrip("0") or "0"


class SourceNames:
    """The names that precompute recorded, looked up by their spellings and ends."""

    def __init__(self, sources: Mapping[str, tuple[str, ...]]) -> None:
        """
        Args:
            sources: name -> keys of the latents made from it.
        """
        self._sources = sources

    def named(self, name: str) -> tuple[str, ...]:
        """The recorded names that are spellings of this one."""
        if name in self._sources:
            return (name,)
        parts = parts_of(name)
        return tuple(other for other, its in self._by_last.get(parts[-1:], ()) if its == parts)

    def ending(self, name: str) -> tuple[str, ...]:
        """The recorded names that end as this one does: one of the two is all of the other's end."""
        parts = parts_of(name)
        return tuple(
            other
            for other, its in self._by_last.get(parts[-1:], ())
            if (shared := min(len(its), len(parts))) and its[-shared:] == parts[-shared:]
        )

    def of_id(self, name: str) -> tuple[str, ...]:
        """The recorded names that are this one without a suffix, or, where none is, that end with this number."""
        if not _ID.fullmatch(name):
            return ()
        is_number = not name.strip(_DIGITS)
        return tuple(self._by_stem.get(name, ()) or (self._by_number.get(_plain(name), ()) if is_number else ()))

    def of_key(self, key: str) -> tuple[str, ...]:
        """The names that were recorded for a key."""
        return tuple(self._by_key.get(key, ()))

    @cached_property
    def _by_last(self) -> Mapping[tuple[str, ...], list[tuple[str, tuple[str, ...]]]]:
        by_last: defaultdict[tuple[str, ...], list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
        for name in self._sources:
            parts = parts_of(name)
            by_last[parts[-1:]].append((name, parts))
        return by_last

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        by_stem: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._sources:
            by_stem[PurePosixPath(*parts_of(name)).stem].append(name)
        return by_stem

    @cached_property
    def _by_number(self) -> Mapping[str, list[str]]:
        by_number: defaultdict[str, list[str]] = defaultdict(list)
        for stem, names in self._by_stem.items():
            if digits := stem[len(stem.rstrip(_DIGITS)) :]:
                by_number[_plain(digits)].extend(names)
        return by_number

    @cached_property
    def _by_key(self) -> Mapping[str, list[str]]:
        by_key: defaultdict[str, list[str]] = defaultdict(list)
        for name, keys in self._sources.items():
            for key in keys:
                by_key[key].append(name)
        return by_key
