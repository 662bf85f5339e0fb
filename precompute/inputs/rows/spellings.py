"""Paths as other systems write them: the spellings that are tried, and the message where no file is found.

A path is first taken as it is written. Only where there is no such file are its spellings tried, in this order:
without the blanks around it, of a `file://` address the path, with / for \\, below the home folder for ~/, and each of
these in both forms of Unicode (macOS stores é as e and an accent). All else is a hint: a guess could be wrong.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from typing import NamedTuple
from urllib.parse import unquote

_FILE_ADDRESS = re.compile(r"file:(?://(?:localhost)?(?=/)|(?=/(?!/)))", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_VARIABLE = re.compile(r"\$\w+|\$\{\w+\}|%\w+%")
_MOST_NAMES = 10_000
"""Names of one folder that are looked at for a hint."""
_MOST_FOLDERS = 200


class Spelling(NamedTuple):
    """Another way to write a path."""

    path: str
    how: str
    """What differs, in words."""


def spellings(path: str) -> list[Spelling]:
    """Other ways to write a path, in the order in which they are tried; the same list for the same path."""
    text, how = path, list[str]()
    if (bare := text.strip()) != text:
        text, how = bare, [*how, "blanks around it"]
    if (address := _FILE_ADDRESS.match(text)) is not None:
        text, how = unquote(text[address.end() :], errors="surrogateescape"), [*how, "file://"]
    elif "\\" in text and not text.startswith("\\\\") and not _DRIVE.match(text):
        text, how = text.replace("\\", "/"), [*how, "backslashes"]
    if text.startswith("~/"):
        text, how = os.path.expanduser(text), [*how, "~"]  # noqa: PTH111 - a text
    spellings = [Spelling(text, " and ".join(how))] if how else []
    for form in ("NFC", "NFD"):
        if (other := unicodedata.normalize(form, text)) != text:
            spellings.append(Spelling(other, " and ".join([*how, f"Unicode's form {form}"])))
    return [spelling for spelling in spellings if spelling.path and "\0" not in spelling.path]


def find_spelling(path: str, folder: str) -> int | None:
    """The place in `spellings` of the first that something is found at; None where none is."""
    return next((at for at, other in enumerate(spellings(path)) if _exists(os.path.join(folder, other.path))), None)  # noqa: PTH118


def hint_of_text(path: str) -> str:
    """What a path that leads nowhere looks like, and what to do; empty where it looks like any other."""
    text = path.strip()
    if text[:5].lower() == "data:":
        return "it holds the picture itself as base64: write pictures to files, or into a table as bytes"
    if (scheme := _SCHEME.match(text)) is not None and not _FILE_ADDRESS.match(text):
        name = scheme[1].lower()
        if name in ("http", "https", "ftp"):
            return (
                "it is an address, and nothing is downloaded: fetch the files first (img2dataset does) and name those"
            )
        if name == "file":
            return "it names a file of another machine: mount its folder, and write the path as it is here"
        how = "with `hf download`" if name == "hf" else "or mount it"
        return f"{name}:// is not read: copy it to a local folder {how}, and write paths of that folder"
    if _DRIVE.match(text) or text.startswith("\\\\"):
        return "it is a path of Windows: write it as it is on this machine, or relative with --image-root"
    if _VARIABLE.search(text):
        return "no variable is replaced in a list: write the path out, or relative with --image-root"
    if text.startswith("~"):
        return "only ~/ stands for a home folder, your own"
    return ""


def hint_of_folder(path: str, folder: str) -> str:
    """What lies on the disk that a path may mean; empty where nothing like it is found. Looks into a few folders."""
    options = [path, *(other.path for other in spellings(path))]
    text = options[min(1, len(options) - 1)]
    try:
        return _beside(text, folder or ".")
    except (OSError, ValueError):
        return ""


def _beside(text: str, folder: str) -> str:
    if text.startswith("/") and _exists(inner := os.path.join(folder, text.lstrip("/"))):  # noqa: PTH118
        return f"there is {inner}: write the path without the slash in front"
    if (decoded := unquote(text)) != text and _exists(inner := os.path.join(folder, decoded)):  # noqa: PTH118
        return f"there is {inner}: write the path without % codes"
    parts = [part for part in text.split("/") if part not in ("", ".")]
    for count in range(1, min(4, len(parts))):
        if _exists(inner := os.path.join(folder, *parts[count:])):  # noqa: PTH118
            names = os.path.abspath(folder).split("/")  # noqa: PTH100
            if names[-count:] == parts[:count]:
                return f"there is {inner}: --image-root {'/'.join(names[:-count]) or '/'}"
            return f"there is {inner}: write the path without {'/'.join(parts[:count])}/"
    if similar := _similar(folder, parts, absolute=text.startswith("/")):
        return similar
    if not text.startswith("/"):
        with os.scandir(folder) as entries:
            inner_folders = [
                entry.path.removeprefix("./") for entry in itertools.islice(entries, _MOST_NAMES) if entry.is_dir()
            ]
        for inner in sorted(inner_folders)[:_MOST_FOLDERS]:
            if _exists(os.path.join(inner, text)):  # noqa: PTH118
                return f"there is {os.path.join(inner, text)}: --image-root {inner}"  # noqa: PTH118
    return ""


def _similar(folder: str, parts: list[str], *, absolute: bool) -> str:
    """A path that differs in the case of its letters, or in its suffix."""
    at = "/" if absolute else folder
    for number, part in enumerate(parts):
        if part == ".." or _exists(os.path.join(at, part)):  # noqa: PTH118
            at = os.path.join(at, part)  # noqa: PTH118
            continue
        with os.scandir(at) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MOST_NAMES)]
        if same := [name for name in names if _folded(name) == _folded(part)]:
            at = os.path.join(at, same[0])  # noqa: PTH118
            continue
        stem = _folded(os.path.splitext(part)[0])  # noqa: PTH122
        others = [name for name in names if _folded(os.path.splitext(name)[0]) in (stem, _folded(part))]  # noqa: PTH122
        if number == len(parts) - 1 and others:
            return f"there is {os.path.join(at, min(others))}: the end of the name differs"  # noqa: PTH118
        return ""
    return f"there is {at}: small and capital letters differ"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _exists(path: str) -> bool:
    """Whether anything is there: a link that leads nowhere is for its own guard to refuse."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False
