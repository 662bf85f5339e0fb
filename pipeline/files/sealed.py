"""Sealed files: JSON that carries its own checksum, and safetensors checked the same way."""

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
    """One line of canonical JSON whose last field is the SHA-256 of all before it.

    Raises:
        ValueError, TypeError: `body` holds something JSON has no word for, NaN included.
    """
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return text[:-1] + b',"seal":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def unseal(sealed: bytes) -> bytes:
    """The canonical JSON text without its seal.

    Raises:
        ValueError: there is no seal, or it does not fit the text.
    """
    match = _SEAL.search(sealed, max(0, len(sealed) - 100))
    if match is None:
        raise ValueError(f"its {len(sealed)} bytes do not end in a seal")
    text = sealed[: match.start()] + b"}"
    if hashlib.sha256(text).hexdigest().encode() != match[1]:
        raise ValueError("its content does not match its seal")
    return text


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The content of a regular file of bounded size; neither a pipe nor a device can hold the reader up.

    Raises:
        ValueError: not a regular file, or larger than `limit_bytes`.
        OSError: it cannot be read.
    """
    with open_file(path, limit_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def has_content(path: Path, content: bytes) -> bool:
    """Whether a regular file has exactly this content."""
    try:
        return read_file(path, len(content)) == content
    except (OSError, ValueError):
        return False


def open_file(path: Path, limit_bytes: int) -> BinaryIO:
    """A regular file of bounded size, to read. Raises as `read_file`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > limit_bytes:
            raise ValueError(f"it has {status.st_size} bytes, at most {limit_bytes} make sense")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def seal_tensors(tensors: Mapping[str, NDArray[Any]], what: str) -> NDArray[np.uint8]:
    """Sixteen bytes over tensors, their names, types and shapes, and what they are: safetensors has no checksum."""
    digest = xxhash.xxh3_128(what.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
