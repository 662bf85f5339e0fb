"""Tokens and passwords: which variables hold them, and how text that may hold some is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

_WORDS = {"TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
_KEYS = ("API", "ACCESS", "PRIVATE", "SIGNING", "ENCRYPTION", "ACCOUNT", "MASTER", "SAS")
_PAIRS = {(word, "KEY") for word in _KEYS}
_OF_BUCKETS = ("AWS_", "AZURE_", "GOOGLE_")
_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
_USER = re.compile(r"(?<=://)[^/\s\"'<>]+@")
_QUERY = re.compile(r"(?i)([?&][\w-]*(?:token|key|signature|sig|secret|password|credential)=)[^&\s\"'<>]+")


def is_secret(name: str, value: str) -> bool:
    """Whether a variable of the environment holds a token or a password, by its name or as a URL with one in it.

    The path of a file that holds one, such as HF_TOKEN_PATH, is no secret.
    """
    words = name.upper().split("_")
    if words[-1] in ("PATH", "FILE", "DIR"):
        return False
    named = not _WORDS.isdisjoint(words) or "APIKEY" in words or not _PAIRS.isdisjoint(pairwise(words))
    return named or hide_passwords(value) != value


def secret_names(environment: Mapping[str, str]) -> list[str]:
    """The variables that hold a token or a password."""
    return [name for name, value in environment.items() if is_secret(name, value)]


def bucket_names(environment: Mapping[str, str]) -> list[str]:
    """The variables by which a bucket is reached and opened, secret or not: of its provider, and of a proxy."""
    return [name for name in environment if name.upper().startswith(_OF_BUCKETS) or name.upper() in _PROXIES]


def hide_passwords(text: str) -> str:
    """The text with `***` for the user and the password of each URL in it, and for a token in its query."""
    return _QUERY.sub(r"\1***", _USER.sub("***@", text))
