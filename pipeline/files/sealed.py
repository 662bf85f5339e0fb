"""Files with a checksum inside: sealed JSON, and a seal for safetensors."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

LFS_POINTER = b"version https://git-lfs"
"""Begins what stands in place of a file in a repository that was cloned without Git LFS."""
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


def changed_by_a_tool(content: bytes) -> str | None:
    """What another program has made of a text file of ours, and how to have it back; None where nothing shows it."""
    if content.startswith(LFS_POINTER):
        return "it is a Git LFS pointer in place of the file. `git lfs pull` in its folder fetches it"
    if content[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return (
            "it is a page of HTML in place of the file, such as a login page or the error of a server. Fetch it again, "
            "and look at what lies between here and the server"
        )
    if b"\r\n" in content:
        return (
            "its line ends were changed, as Git does (core.autocrlf) or a copy as text: copy the store again, byte for "
            "byte (in Git, with the line `* -text` in .gitattributes)"
        )
    if content.startswith(codecs.BOM_UTF8):
        return "an editor has put a byte order mark in front: copy the file again, byte for byte"
    return None


def seal_tensors(tensors: Mapping[str, NDArray[Any]], purpose: str) -> NDArray[np.uint8]:
    """Return a 16-byte checksum of tensors, their names, dtypes and shapes, and a purpose. Safetensors has none."""
    digest = xxhash.xxh3_128(purpose.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
