"""SHA-256 of bytes, of a file, of a set of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

_BLOCK_BYTES = 2**22


def digest_of_bytes(content: bytes) -> bytes:
    """Return the SHA-256 of some bytes, 32 bytes; `key_of_digest` makes keys of it."""
    return hashlib.sha256(content).digest()


def digest_of_file(path: Path, *, on_read: Callable[[int], None] | None = None) -> bytes:
    """Return the SHA-256 of a file, 32 bytes. The file is read in blocks.

    Args:
        on_read: is told the bytes of each block.
    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        if on_read is None:
            return hashlib.file_digest(file, "sha256").digest()
        total, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
        while count := file.readinto(block):
            total.update(block[:count])
            on_read(count)
        return total.digest()


def digest_of_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of some lines, end to end and each with its own line break, as 64 hex digits."""
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_files(folder: Path, files: Iterable[Path], digest_of: Callable[[Path], bytes] = digest_of_file) -> str:
    """Return `sha256:<64 hex>` over the contents of files and their names relative to `folder`.

    Args:
        files: inside `folder`, in any order.
        digest_of: the SHA-256 of a file.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest_of(path).hex()}\n".encode())
    return f"sha256:{total.hexdigest()}"
