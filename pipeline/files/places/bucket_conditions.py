"""Prove that a bucket does what a store rests on: it keeps what it was told to keep, and shows what was written."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress

from ...errors import StoreError, TheWorldError
from .place import Place

USE_ANOTHER = (
    "Use a bucket that has conditional writes (S3, GCS, Azure, R2, MinIO and Ceph of 2025 or later), or write to a "
    "folder and copy it up with `theworld cache merge`"
)


def prove_conditions(bucket: Place, *, endpoint: str, writer_of: Callable[[str], str]) -> None:
    """Try two objects under one name, and look at what became of them.

    Args:
        endpoint: where it is asked for, for messages.
        writer_of: the token that the writer of an object put beside it; empty where there is none.
    Raises:
        StoreError: this bucket cannot keep a store that several processes write, and why.
    """
    name = f"tmp/self-test-{secrets.token_hex(8)}"
    first, second = b"the first", b"the second"
    made = bucket.create(name, first)
    try:
        again = bucket.create(name, second)
        content = bucket.read(name, 100)
        if again or content != first:
            raise StoreError(
                f"{endpoint} replaces objects that it was told to keep (If-None-Match is ignored), so two "
                f"writers would destroy each other's shards. {USE_ANOTHER}"
            )
        if not made or not writer_of(name):
            raise StoreError(
                f"{endpoint} does not keep the metadata of objects, so a writer cannot know its own after a "
                f"lost answer. {USE_ANOTHER}"
            )
        bucket.read_into(name, 4, memoryview(bytearray(5)))  # refused by name where ranges are not answered
        if name not in {entry.name for entry in bucket.entries("tmp")}:
            raise StoreError(
                f"{endpoint} does not list an object that was just written, so commits would be missed. {USE_ANOTHER}"
            )
    finally:
        with suppress(TheWorldError):  # what was found counts
            bucket.remove([name])
