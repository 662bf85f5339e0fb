"""Files with a checksum inside: sealed JSON, and a seal for safetensors."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from .changed import changed_by_a_tool

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
        raise ValueError(changed_by_a_tool(sealed) or f"its {len(sealed)} bytes do not end in a seal")
    text = sealed[: match.start()] + b"}"
    if hashlib.sha256(text).hexdigest().encode() != match[1]:
        raise ValueError(changed_by_a_tool(sealed) or "its content does not match its seal")
    return text


def seal_tensors(tensors: Mapping[str, NDArray[Any]], purpose: str) -> NDArray[np.uint8]:
    """Return a 16-byte checksum of tensors, their names, dtypes and shapes, and a purpose. Safetensors has none."""
    digest = xxhash.xxh3_128(purpose.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
