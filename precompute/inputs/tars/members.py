"""The members of a plain tar, read header by header. Nothing is extracted, no command is run, no link is followed.

Python's `tarfile` only parses single header blocks here: in the versions we support, a hostile archive can make it loop
for ever or recurse (CVE-2025-8194).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ....pipeline.errors import ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files.limits import MAX_TAR_HEADER_BYTES, MAX_TAR_HEADERS

_BLOCK = 512
_MAX_NAME = 4096
_PADDING = 2**20
"""Bytes behind the closing zeros that are looked at: tar pads to 10 KiB, for old tapes to 1 MiB at most."""
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar."""

    name: str
    offset: int
    """Position of its first byte."""
    size: int
    regular: bool
    """Not a link, a device, a folder or a sparse file."""
    is_folder: bool = False


def members(path: str) -> Iterator[Member]:
    """The entries of a tar in order; extended headers are applied to the entry they precede.

    Raises:
        ImageError: it is not a plain tar, or is damaged from here on; members already returned are valid.
    """
    try:
        with Path(path).open("rb", buffering=2**16) as file:
            yield from _members(file, path)
    except OSError as error:
        raise ImageError(FailureReason.MISSING, f"{path} cannot be read: {error.strerror or error}") from error


def _members(file: BinaryIO, path: str) -> Iterator[Member]:
    end = file.seek(0, 2)
    at = 0
    name: str | None = None
    size: int | None = None
    sparse = False
    extended = 0
    while True:
        if extended > MAX_TAR_HEADERS:
            raise ImageError(
                FailureReason.TAR,
                f"{path} has more than {MAX_TAR_HEADERS} extended headers in a row before byte {at}; "
                "the rest of it is not used. Write it anew with tar or Python's tarfile",
            )
        extended += 1
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):  # the closing zeros, or the file's end
            _require_end(file, at, end, path)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            what = "it is compressed or no tar: unpack it (plain .tar)" if at == 0 else "the rest of it is not used"
            raise ImageError(FailureReason.TAR, f"{path} has no header at byte {at} ({error}); {what}") from error
        data = at + _BLOCK
        data_bytes = header.size if size is None or header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME) else size
        if data_bytes < 0 or data + data_bytes > end:
            raise ImageError(
                FailureReason.TRUNCATED, f"{path} ends within the member at byte {data}; the rest of it is not used"
            )
        at = data + -(-data_bytes // _BLOCK) * _BLOCK
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            records = _extended(_read_small(file, data_bytes, path))
            name = records.get("path", name)
            size = _number(records["size"], path) if "size" in records else size
            sparse = sparse or any(record.startswith("GNU.sparse") for record in records)
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            name = _read_small(file, data_bytes, path).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            continue
        else:
            is_regular = header.type in _REGULAR and not sparse
            is_folder = header.type == tarfile.DIRTYPE
            yield Member((name or header.name)[:_MAX_NAME], data, data_bytes, is_regular, is_folder)
            name, size, sparse, extended = None, None, False, 0


def _require_end(file: BinaryIO, at: int, end: int, path: str) -> None:
    """Refuse what stands behind the closing zeros, which every reader would pass over without a word.

    Raises:
        ImageError: other members, as of `cat a.tar b.tar`; or more zeros than any writer pads with, as where a download
            that reserves its place was broken off.
    """
    file.seek(at)
    if file.read(_PADDING).strip(b"\0"):
        raise ImageError(
            FailureReason.TAR,
            f"{path} goes on behind its end at byte {at}, as two tars in one file do; the rest of it is not used. Name "
            "each tar, or join them with tar --concatenate",
        )
    if end - at > _PADDING:
        raise ImageError(
            FailureReason.TRUNCATED,
            f"{path} holds nothing but zeros from byte {at} of {end:,} on: was it copied or downloaded to its end?",
        )


def _read_small(file: BinaryIO, size: int, path: str) -> bytes:
    if size > MAX_TAR_HEADER_BYTES:
        raise ImageError(
            FailureReason.TAR, f"{path} has a header of {size:,} bytes; the limit is {MAX_TAR_HEADER_BYTES:,}"
        )
    return file.read(size)


def _extended(content: bytes) -> dict[str, str]:
    """The `length key=value` records of a PAX header, up to the first malformed one."""
    records: dict[str, str] = {}
    at = 0
    while at < len(content):
        blank = content.find(b" ", at, at + 9)  # no slices of the rest: their cost grows with its square
        length = content[at:blank] if blank > at else b""
        if not (length.isdigit() and len(length) + 2 < int(length) <= len(content) - at):
            return records
        end = at + int(length)
        key, _, value = content[blank + 1 : end - 1].partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at = end
    return records


def _number(text: str, path: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ImageError(FailureReason.TAR, f"{path} states a size of {text[:40]!r} bytes")
    return int(text)
