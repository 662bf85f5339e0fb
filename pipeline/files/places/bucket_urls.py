"""URLs of buckets: `s3://BUCKET/FOLDER`, `gs://BUCKET/FOLDER`, `az://CONTAINER/FOLDER`, and nothing secret in them."""

from __future__ import annotations

import re

from ...credentials import hide_passwords
from ...errors import ConfigError

SCHEMES = ("s3", "gs", "az")
_URL = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,220})(?:/(.*))?", re.DOTALL)


def parse_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix.

    Raises:
        ConfigError
    """
    safe_url = re.sub(r"([?#]).*", r"\1***", hide_passwords(url), flags=re.DOTALL)
    if "@" in url.partition("://")[2].partition("/")[0] or "?" in url or "#" in url:
        raise ConfigError(
            f"{safe_url} holds a user, a query or a fragment. Name the bucket and the folder alone, such as "
            "s3://bucket/latents: credentials come from the environment"
        )
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError(
            f"{safe_url} is no bucket: it is s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER"
        )
    return match[1], match[2], checked_prefix(match[3] or "", safe_url)


def checked_prefix(text: str, safe_url: str) -> str:
    parts = [part for part in text.split("/") if part]
    if any(part in (".", "..") or not part.isprintable() for part in parts):
        raise ConfigError(
            f"{text!r} in {safe_url}: a folder of a bucket has no parts such as `..`, and only visible characters"
        )
    return "/".join(parts)
