"""SHA-256 of bytes, of a file, of a set of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest_of_bytes(content: bytes) -> bytes:
    """Return the SHA-256 of some bytes, 32 bytes; `key_of_digest` makes keys of it."""
    return hashlib.sha256(content).digest()


def digest_of_file(path: Path) -> bytes:
    """Return the SHA-256 of a file, 32 bytes. The file is read in blocks.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def digest_of_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of some lines, end to end and each with its own line break, as 64 hex digits."""
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """Return `sha256:<64 hex>` over the contents of files and their names relative to `folder`.

    Args:
        files: inside `folder`, in any order.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest_of_file(path).hex()}\n".encode())
    return f"sha256:{total.hexdigest()}"
