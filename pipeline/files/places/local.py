"""Paths of this machine, told apart from URLs of buckets, which `Path` would turn into a folder called `s3:`."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from ...credentials import hide_passwords
from ...errors import ConfigError
from .bucket_urls import SCHEMES
from .folder import Folder
from .place import Place

_MAX_NAME_BYTES = 200
"""File systems take names of 255 bytes; a suffix and a digest follow."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
"""`Path("s3://bucket")` keeps one slash; a drive of Windows has one letter."""
_REMOTE = re.compile(r"(s3|gs|az|hf):/+(.*)", re.DOTALL)


def require_local(place: str | os.PathLike[str]) -> Path:
    """The path, if it is one of this machine.

    Raises:
        ConfigError: it is a URL, such as `s3://bucket/latents`.
    """
    text = os.fspath(place)
    if url := _URL.match(text):
        safe_url = hide_passwords(f"{url[1]}://{text[url.end() :]}")
        raise ConfigError(
            f"{safe_url} is a URL, and here goes a path of this machine: copy what is there to a folder, and name "
            "that. Only stores, and the inputs of precompute, may be in a bucket (s3://, gs://, az://); a data set of "
            "the Hugging Face Hub is hf:ORG/NAME"
        )
    return Path(text)


def place_of(where: str | os.PathLike[str] | Place) -> Place:
    """The folder of a path, or the bucket of a URL: `s3://…`, `gs://…`, `az://…`.

    Raises:
        ConfigError: it is another URL, or the extra `bucket` is not installed.
    """
    if isinstance(where, Place):
        return where
    text = os.fspath(where)
    url = _URL.match(text)
    if url is None or url[1] not in SCHEMES:
        return Folder(require_local(where))
    from .bucket import Bucket

    return Bucket(f"{url[1]}://{text[url.end() :]}")


def url_of(place: str | os.PathLike[str]) -> str | None:
    """The URL that was meant, also where a path has taken one of its slashes; None of a path of this machine."""
    match = _REMOTE.fullmatch(os.fspath(place))
    return f"{match[1]}://{match[2]}" if match else None


def file_name(text: str) -> str:
    """A name for a file, made of text from outside, such as the split of a question: it cannot lead to another folder.

    Letters, digits and `. _ - @ +` stay; other characters become `_`, and a digest keeps such names apart.
    """
    name = re.sub(r"[^\w.@+-]", "_", text).lstrip(".").encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    if name == text and text:
        return name
    return f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _check(value: object) -> object:
    return require_local(value) if isinstance(value, str | Path) else value


LocalPath = Annotated[Path, BeforeValidator(_check)]
"""A pydantic field that takes a path of this machine and refuses a URL."""
