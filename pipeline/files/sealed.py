"""Files with a checksum inside: sealed JSON, and a seal for safetensors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

_SEAL = re.compile(rb',"seal":"([0-9a-f]{64})"\}\n\Z')


def seal(body: Mapping[str, Any]) -> bytes:
    """Return one line of canonical JSON whose last field, `seal`, is the SHA-256 of everything before it.

    Raises:
        ValueError, TypeError: `body` holds a value that JSON cannot express, for example NaN.
    """
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return text[:-1] + b',"seal":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def unseal(sealed: bytes) -> bytes:
    """Check the seal and return the JSON text without it.

    Raises:
        ValueError: the seal is missing, or does not match the text.
    """
    match = _SEAL.search(sealed, max(0, len(sealed) - 100))
    if match is None:
        raise ValueError(f"its {len(sealed)} bytes do not end in a seal")
    text = sealed[: match.start()] + b"}"
    if hashlib.sha256(text).hexdigest().encode() != match[1]:
        raise ValueError("its content does not match its seal")
    return text


def read_file(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a regular file of limited size. A pipe or a device cannot block the reader.

    Raises:
        ValueError: not a regular file, or larger than `limit_bytes`.
        OSError: it cannot be read.
    """
    with open_file(path, limit_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def has_content(path: Path, content: bytes) -> bool:
    """Whether `path` is a regular file with exactly this content."""
    try:
        return read_file(path, len(content)) == content
    except (OSError, ValueError):
        return False


def open_file(path: Path, limit_bytes: int) -> BinaryIO:
    """Open a regular file of limited size for reading. Raises as `read_file`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > limit_bytes:
            raise ValueError(f"it has {status.st_size} bytes, and the limit is {limit_bytes}")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def seal_tensors(tensors: Mapping[str, NDArray[Any]], purpose: str) -> NDArray[np.uint8]:
    """Return a 16-byte checksum of tensors, their names, dtypes and shapes, and a purpose. Safetensors has none."""
    digest = xxhash.xxh3_128(purpose.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
