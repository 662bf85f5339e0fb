"""SHA-256 of bytes, of a file, of a set of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest_of_bytes(content: bytes) -> bytes:
    """What a key is made of, 32 bytes: for who hashes content once and asks for its keys later."""
    return hashlib.sha256(content).digest()


def digest_of_file(path: Path) -> bytes:
    """SHA-256 of a file's bytes, 32 of them, read in blocks.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """`sha256:<64 hex>` over the names and contents of files; where the folder lies does not enter.

    Args:
        files: inside `folder`; their order does not matter.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest_of_file(path).hex()}\n".encode())
    return f"sha256:{total.hexdigest()}"
