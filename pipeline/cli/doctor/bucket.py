"""`theworld doctor s3://…`: whether this machine can use a bucket, whether that can keep a store, and its speed."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from ...credentials import hide_passwords
from ...errors import ConfigError, TheWorldError
from ...files.places.bucket import Bucket
from ...files.places.bucket_errors import KEYS
from ...files.places.store_paths import is_bucket
from ...messages import format_bytes
from .checks import Row

_PREFIXES = {"s3": ("AWS_",), "gs": ("GOOGLE_",), "az": ("AZURE_",)}
_TIMES, _PAYLOAD_BYTES = 3, 2**20


def examine_bucket(url: str) -> list[Row]:
    """All there is to say of a bucket, seen from this machine. Makes a few objects below tmp/, and removes them.

    Raises:
        ConfigError: it is no URL of a bucket.
    """
    if not is_bucket(url):
        raise ConfigError(f"doctor takes the URL of a bucket, such as s3://bucket/latents; got {hide_passwords(url)!r}")
    bucket = Bucket(url)
    rows = [
        Row("bucket", "ok", f"{bucket} at {bucket.endpoint}, by obstore {version('obstore')}"),
        _credentials(bucket.scheme),
    ]
    looked_into = "reading"
    try:
        seconds = _milliseconds([""], lambda _: bucket.folders())
        rows.append(Row("reading", "ok", f"it lists what is there, in {seconds}: enough to train, evaluate and copy"))
        looked_into = "exactly once"
        bucket.self_test()
        rows.append(Row("exactly once", "ok", "it keeps what it was told to keep, and lists what was written"))
        looked_into = "speed"
        rows.extend(_speeds(bucket))
    except TheWorldError as error:
        what, _, advice = str(error).partition(". ")
        rows.append(Row(looked_into, "problem", what, advice))
    return rows


def _credentials(scheme: str) -> Row:
    """Which variables are set, never what they hold."""
    names = sorted(name for name in os.environ if name.startswith(_PREFIXES[scheme]) and os.environ[name])
    if names:
        return Row("credentials", "ok", f"set, and not shown: {', '.join(names)}")
    return Row(
        "credentials", "note", "no variable is set, so this machine's own role is asked", f"or set {KEYS[scheme]}"
    )


def _speeds(bucket: Bucket) -> Iterator[Row]:
    names = [f"tmp/doctor-{secrets.token_hex(8)}" for _ in range(_TIMES)]
    content = os.urandom(_PAYLOAD_BYTES)
    size = format_bytes(_PAYLOAD_BYTES)
    memory = memoryview(bytearray(_PAYLOAD_BYTES))
    try:
        yield Row("PUT", "ok", f"{size} in {_milliseconds(names, lambda name: bucket.create(name, content))}")
        yield Row("GET", "ok", f"{size} in {_milliseconds(names, lambda name: bucket.read_into(name, 0, memory))}")
        yield Row("LIST", "ok", f"in {_milliseconds(names, lambda _: list(bucket.entries('tmp')))}")
    finally:
        bucket.remove(names)


def _milliseconds(names: list[str], action: Callable[[str], object]) -> str:
    times: list[float] = []
    for name in names:
        began = time.monotonic()
        action(name)
        times.append(1000 * (time.monotonic() - began))
    return f"{statistics.median(times):.0f} ms"
