"""obstore's clients of one bucket, and what the environment says of its endpoint. Nothing else imports obstore."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from ...credentials import hide_passwords
from ...errors import ConfigError, StoreError
from ...messages import install_extra
from .bucket_errors import ALLOW_HTTP, ENDPOINTS, is_unexplained

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_T = TypeVar("_T")
_U = TypeVar("_U")
Tries = Literal["many", "few", "one"]
RETRIES: dict[Tries, tuple[int, float]] = {"many": (12, 20.0), "few": (2, 6.0), "one": (0, 6.0)}
"""How often obstore sends a request again, and for how many seconds at most."""
READ_TIMEOUT_S = 10.0
"""Without a byte of an answer."""
_IN_FLIGHT = 64
"""Requests at once, where many are wanted."""
_used_by: int | None = None
"""The process that used obstore first: in one forked from it, any use would wait forever."""


class BucketClients:
    """obstore's clients of one bucket, made at the first use, in the process that uses them. Thread-safe."""

    def __init__(self, scheme: str, bucket: str) -> None:
        self._scheme, self._bucket = scheme, bucket
        self._lock = threading.Lock()
        self._stores: dict[tuple[bool, Tries], ObjectStore] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._obs = _obstore()
        self.errors: tuple[type[Exception], ...] = (
            self._obs.exceptions.BaseError,
            FileNotFoundError,
            ConnectionError,
            TimeoutError,
        )
        self.has_answered = False
        self.in_doubt: set[str] = set()
        """Objects that an unanswered request may still remove."""
        self.token_name = "theworldwriter" if scheme == "az" else "theworld-writer"  # Azure's names have no dash

    def ask(self, action: Callable[[Any, ObjectStore], _T], *, upload: bool = False, tries: Tries = "many") -> _T:
        """Run an action with obstore and a client.

        Args:
            upload: wait as long as a payload takes.
            tries: of obstore: few where the caller tries again by itself, one where it must know of each request.
        """
        self.check_process()
        answer = action(self._obs, self._store(upload, tries))
        self.has_answered = True
        return answer

    def ask_many(self, action: Callable[[_T], _U], items: Sequence[_T]) -> list[_U]:
        """`action` of each, many at once, for actions that call `ask`."""
        if len(items) <= 1:
            return [action(item) for item in items]
        self.check_process()
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(_IN_FLIGHT, "bucket")
        return list(self._pool.map(action, items))

    def check_process(self) -> None:
        """
        Raises:
            StoreError: this process was forked from one that used obstore already.
        """
        global _used_by
        if _used_by is None:
            _used_by = os.getpid()
        elif _used_by != os.getpid():
            raise StoreError(
                f"{self._scheme}://{self._bucket} cannot be used in a process forked from one that used a bucket: it "
                "would never answer. Start processes by multiprocessing_context='spawn' or 'forkserver', or use "
                "num_workers=0: the reader has its own threads"
            )

    def _store(self, upload: bool, tries: Tries) -> ObjectStore:
        with self._lock:
            if (upload, tries) not in self._stores:
                self._stores[upload, tries] = self._open(upload, tries)
            return self._stores[upload, tries]

    def _open(self, upload: bool, tries: Tries) -> ObjectStore:
        from obstore.store import AzureStore, GCSStore, S3Store

        client: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(minutes=20),
            "allow_http": _allows_http(self._scheme),
        }
        if not upload:  # it would count while a payload is sent
            client["read_timeout"] = timedelta(seconds=READ_TIMEOUT_S)
        backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=4), "base": 2}
        retries, seconds = RETRIES[tries]
        retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=seconds), "backoff": backoff}
        options: Any = client
        if self._scheme == "s3":
            # one DELETE each: not all servers know how to remove many at once
            return S3Store(self._bucket, client_options=options, retry_config=retry, disable_bulk_delete=True)
        opened = {"gs": GCSStore, "az": AzureStore}[self._scheme]
        return opened(self._bucket, client_options=options, retry_config=retry)


def pause_before(turn: int) -> None:
    """Wait before another try, longer each time; not before the first, whose number is 0."""
    if turn:
        time.sleep(random.uniform(0, min(0.1 * 2**turn, 10.0)))


def head_of(obs: Any, store: ObjectStore, key: str) -> Any:
    """What is known of one object. A refusal raises an error that says why, which an answer to HEAD cannot hold."""
    try:
        return obs.head(store, key)
    except obs.exceptions.BaseError as error:
        if is_unexplained(error):
            with suppress(FileNotFoundError):
                obs.get_range(store, key, start=0, length=1)  # refused as well, and with the reason
        raise


def endpoint_of(scheme: str) -> str:
    """Where buckets of a scheme are, as the environment says, without users and queries."""
    for name in ENDPOINTS[scheme]:
        if text := os.environ.get(name):
            return hide_passwords(text).partition("?")[0].rstrip("/")
    if scheme == "gs":
        return "storage.googleapis.com"
    if scheme == "az":
        return f"Azure account {os.environ.get('AZURE_STORAGE_ACCOUNT_NAME', '(none)')}"
    return f"S3 in {os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION') or 'us-east-1'}"


def _allows_http(scheme: str) -> bool:
    """Whether the endpoint may be asked without encryption.

    Raises:
        StoreError: it would be, and is another machine.
    """
    endpoint, variable = endpoint_of(scheme), ALLOW_HTTP[scheme]
    if not endpoint.lower().startswith("http://"):
        return False
    host = urlsplit(endpoint).hostname or ""
    with suppress(ValueError):
        if ip_address(host).is_loopback:
            return True
    if host == "localhost" or os.environ.get(variable, "").lower() == "true":
        return True
    raise StoreError(
        f"the endpoint {endpoint} is another machine, without encryption. Use https, or set {variable}=true if "
        "nobody else is on the way"
    )


def _obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise ConfigError(f"buckets need obstore: {install_extra('bucket')}") from error
    return obstore
