"""Moved here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from ..errors import ConfigError, TheWorldError
from .hashing import digest_of_file


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
