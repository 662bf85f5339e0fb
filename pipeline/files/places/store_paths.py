"""Where a store may be, as settings hold it: a path of this machine, or the URL of a bucket as text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from .bucket_urls import SCHEMES, parse_url
from .local import require_local

_BUCKET = re.compile(rf"({'|'.join(SCHEMES)}):/+")
"""`Path("s3://bucket")` keeps one slash."""


def is_bucket(where: str | Path) -> bool:
    """Whether it is the URL of a bucket, and no path of this machine."""
    return _BUCKET.match(str(where)) is not None


def store_path(where: str | Path) -> Path | str:
    """The path, or the URL of a bucket as text, in one spelling.

    Raises:
        ConfigError: it is another URL, or holds a user or a query.
    """
    if not is_bucket(where):
        return require_local(where)
    scheme, bucket, prefix = parse_url(_BUCKET.sub(r"\1://", str(where), count=1))
    return f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")


def _check(value: object) -> Path | str:
    if not isinstance(value, str | Path):
        raise ValueError("it takes a path, or the URL of a bucket such as s3://bucket/latents")
    return store_path(value)


StorePath = Annotated[Path | str, PlainValidator(_check, json_schema_input_type=str), PlainSerializer(str)]
"""A pydantic field that takes a path of this machine (a Path) or the URL of a bucket (a str)."""
