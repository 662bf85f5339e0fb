"""`Bucket`: a prefix of an object store (S3 and what speaks like it, GCS, Azure) as a `Place`, by obstore.

A name appears by a PUT under the condition that there is none. Whatever the answer, it is settled by looking: a writer
puts a token of its own beside the object, so it knows its own work again where an answer was lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from ...errors import StoreError, TheWorldError
from ...machine import running_seconds
from ...messages import format_bytes
from .bucket_clients import BucketClients, endpoint_of, head_of, pause_before
from .bucket_conditions import USE_ANOTHER, prove_conditions
from .bucket_errors import refusal, status_of, summary
from .bucket_urls import checked_prefix, parse_url
from .local_copy import LocalStaging
from .place import Entry, Place

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_T = TypeVar("_T")

MAX_OBJECT_BYTES = 5 * 10**9
"""What one PUT takes; obstore has no condition on an upload in parts."""
TRIES, PATIENCE_S = 10, 300.0
_FIRST_PATIENCE_S = 15.0
"""For a bucket that never answered: a wrong endpoint is named soon, while a job's commit waits out a bad minute."""


class Bucket(Place):
    """A prefix of a bucket. Opened at its first use; pickled and shown as its URL, credentials are of the environment.

    Beside what every `Place` raises, each method raises StoreError if the bucket refuses or does not answer, and in a
    process forked after obstore was used.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        """
        Args:
            url: `s3://BUCKET/PREFIX`, `gs://…` or `az://…`.
        Raises:
            ConfigError: it is no such URL, it holds a user or a query, or the extra `bucket` is not installed.
        """
        self.scheme, self.bucket, self._prefix = parse_url(url)
        self._clients = BucketClients(self.scheme, self.bucket)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self._prefix}" if self._prefix else "")

    def __repr__(self) -> str:
        return f"Bucket({str(self)!r})"

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (str(self),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bucket) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def endpoint(self) -> str:
        """Where the bucket is asked for, without anything secret."""
        return endpoint_of(self.scheme)

    def below(self, name: str) -> Bucket:
        """The place that begins at a name of this one; it shares the connections."""
        other = Bucket.__new__(Bucket)
        other.scheme, other.bucket, other._clients = self.scheme, self.bucket, self._clients
        other._prefix = checked_prefix("/".join(part for part in (self._prefix, name) if part), str(self))
        return other

    def create(self, name: str, content: bytes) -> bool:
        """Make an object appear, if its name is free.

        Returns:
            False if the name is taken; nothing changes then.
        """
        return self._settle(name, lambda: content, is_upload=len(content) > 2**22)

    def create_from(self, name: str, staged: Path) -> bool:
        """`create` with the content of a file, in one PUT.

        Raises:
            StoreError: as ever, and for a file above `MAX_OBJECT_BYTES`.
        """
        size = staged.stat().st_size
        if size > MAX_OBJECT_BYTES:
            raise StoreError(
                f"{self}/{name} would have {format_bytes(size)}, and a bucket takes {format_bytes(MAX_OBJECT_BYTES)} "
                "in one step. Make smaller shards (--shard-size)"
            )
        return self._settle(name, lambda: staged, is_upload=True)

    def staging(self) -> AbstractContextManager[Path]:
        """A folder of the local disk, removed at the end."""
        return LocalStaging()

    def replace(self, name: str, content: bytes | memoryview, *, durable: bool = True) -> None:  # noqa: ARG002
        """Write an object over an old one; an answered PUT is durable."""
        self._call(
            "write", name, lambda obs, store, key: obs.put(store, key, content, use_multipart=False), upload=True
        )

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The content of an object of limited size."""

        def get(obs: Any, store: ObjectStore, key: str) -> bytes:
            answer = obs.get(store, key)
            if (size := answer.meta["size"]) > limit_bytes:
                raise ValueError(f"{self}/{name} has {size:,} bytes, more than the {limit_bytes:,} it may have")
            content = bytes(answer.bytes())
            if len(content) != size:
                raise StoreError(f"{self}/{name}: {len(content):,} of {size:,} bytes arrived. Run the command again")
            return content

        return self._call("read", name, get)

    def read_end(self, name: str, size: int) -> bytes:
        """The last bytes of an object, fewer if it is smaller."""
        entry = self.entry(name)
        if entry is None:
            raise FileNotFoundError(f"there is no {self}/{name}")
        memory = bytearray(min(size, entry.bytes))
        return bytes(memory[: self.read_into(name, entry.bytes - len(memory), memoryview(memory))])

    def read_into(self, name: str, offset: int, memory: memoryview) -> int:
        """Fill memory from an object; returns the bytes read, fewer only where it ends."""
        memory = memory.cast("B")
        content = self.read_range(name, offset, len(memory))
        memory[: len(content)] = content
        return len(content)

    def read_range(self, name: str, offset: int, size: int) -> memoryview:
        """Bytes of an object, in the memory that they came to; fewer only where it ends."""
        if not size:
            return memoryview(b"")

        def get(obs: Any, store: ObjectStore, key: str) -> memoryview:
            try:
                content = memoryview(obs.get_range(store, key, start=offset, length=size))
            except obs.exceptions.BaseError as error:
                if status_of(error) == 416:  # it begins at or after the end
                    return memoryview(b"")
                raise
            if len(content) > size:
                raise StoreError(f"{self}/{name}: {len(content):,} bytes came for a range of {size:,}")
            return content

        return self._call("read", name, get)

    def read_ranges(self, ranges: Sequence[tuple[str, int, memoryview]]) -> list[int]:
        """`read_into` for many (name, offset, memory), 64 at once; the bytes read of each, in order."""

        def read_one(wanted: tuple[str, int, memoryview]) -> int:
            return self.read_into(*wanted)

        return self._clients.ask_many(read_one, ranges)

    def entry(self, name: str) -> Entry | None:
        """Name, size and time of one object; None if there is none."""
        try:
            meta = self._call("look at", name, head_of)
        except FileNotFoundError:
            return None
        return self._entry(meta)

    def entries(self, folder: str, *, deep: bool = False) -> Iterator[Entry]:
        """The objects of a folder, in no order; nothing where there is none. Those of all depths come page by page."""
        if deep:
            return self._pages(folder)
        listed: list[Any] = self._call(
            "list", folder, lambda obs, store, key: obs.list_with_delimiter(store, key or None)["objects"]
        )
        return map(self._entry, listed)

    def _pages(self, folder: str) -> Iterator[Entry]:
        pages: Iterator[list[Any]] = self._call(
            "list", folder, lambda obs, store, key: iter(obs.list(store, key or None, chunk_size=1000))
        )
        while (page := self._call("list", folder, lambda obs, store, key: next(pages, None))) is not None:  # noqa: ARG005
            yield from map(self._entry, page)

    def entries_within(self, folder: str, most: int) -> list[Entry] | None:
        """The objects of a folder and of those below it; None where there are more than `most`."""

        def listed(obs: Any, store: ObjectStore, key: str) -> list[Any] | None:
            metas: list[Any] = []
            for batch in obs.list(store, key or None, chunk_size=1000):
                metas += batch
                if len(metas) > most:
                    return None
            return metas

        metas = self._call("list", folder, listed)
        return None if metas is None else list(map(self._entry, metas))

    def folders(self) -> list[str]:
        """The names of the folders directly in this place, in order."""
        names: list[str] = self._call(
            "list", "", lambda obs, store, key: obs.list_with_delimiter(store, key or None)["common_prefixes"]
        )
        return sorted(path.rstrip("/").rpartition("/")[2] for path in names)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already do not matter."""

        def remove_one(name: str) -> None:
            with suppress(FileNotFoundError):
                self._call("remove", name, lambda obs, store, key: obs.delete(store, key))

        self._clients.ask_many(remove_one, list(names))

    def remove_once(self, names: Iterable[str]) -> None:
        """Remove objects whose names others may take at once: each request is sent once, and a doubtful one settled.

        Where an answer was lost, `is_in_doubt` says so of that name from then on.
        """
        self._clients.ask_many(self._remove_once, list(names))

    def is_in_doubt(self, name: str) -> bool:
        """Whether an unanswered DELETE of this process may still come to the object that gets this name."""
        return self._key(name) in self._clients.in_doubt

    def set_aside(self, name: str, to: str) -> None:
        """Copy within the bucket, look at the copy, then remove the old name. A copy that is there already counts.

        Raises:
            FileExistsError: something else has that name.
        """
        source, copy = self.entry(name), self.entry(to)
        if source is None:
            raise FileNotFoundError(f"there is no {self}/{name}")
        if copy is not None and (copy.bytes, copy.tag) != (source.bytes, source.tag):
            raise FileExistsError(f"{self}/{to} exists")
        if copy is None:
            target = self._key(to)
            self._call("copy", name, lambda obs, store, key: obs.copy(store, key, target), upload=True)
            copy = self.entry(to)
        if copy is None or copy.bytes != source.bytes:  # a copy may fail behind an answer of 200
            raise StoreError(f"{self}/{name} could not be copied whole to {self}/{to}. Run the same command again")
        self.remove_once([name])

    def now(self) -> float:
        """The bucket's time, by an object that is made and removed; whole seconds."""
        name = f"tmp/clock-{secrets.token_hex(8)}"
        self.replace(name, b"")
        try:
            entry = self.entry(name)
        finally:
            self.remove([name])
        if entry is None:
            raise StoreError(f"{self} does not show an object that was just written. {USE_ANOTHER}")
        return entry.modified

    def self_test(self, *folders: str) -> None:  # noqa: ARG002
        """Prove that no object is replaced that was to be kept: two objects are tried under one name.

        Raises:
            StoreError: this bucket cannot keep a store that several processes write, and why.
        """
        prove_conditions(self, endpoint=self.endpoint, writer_of=self._token)

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    def _entry(self, meta: Any) -> Entry:
        name = meta["path"][len(self._prefix) + 1 if self._prefix else 0 :]
        e_tag = str(meta["e_tag"]).removeprefix("W/").strip('"')  # Azure's listings leave the quotes out
        tag = xxhash.xxh3_64_intdigest(f'"{e_tag}"'.encode())
        return Entry(name, meta["size"], tag, meta["last_modified"].timestamp())

    def _settle(self, name: str, content: Callable[[], bytes | Path], *, is_upload: bool) -> bool:
        """PUT under the condition that there is none, and look whose object is there if the answer is doubtful."""
        token = secrets.token_hex(16)
        attributes = {self._clients.token_name: token}
        began, last = running_seconds(), None
        for turn in range(TRIES):
            pause_before(turn)
            try:
                self._clients.ask(
                    lambda obs, store: obs.put(
                        store, self._key(name), content(), mode="create", attributes=attributes, use_multipart=False
                    ),
                    upload=is_upload,
                    tries="few",
                )
                return True
            except self._clients.errors as error:
                self._refuse("write", name, error)
                last = error
            try:
                owner = self._token(name)
            except FileNotFoundError:
                owner = None
            except self._clients.errors as error:
                self._refuse("write", name, error)
                last = error
            else:
                return owner == token
            if running_seconds() - began > (PATIENCE_S if self._clients.has_answered else _FIRST_PATIENCE_S):
                break
        assert last is not None
        raise self._no_answer("write", name, last)

    def _remove_once(self, name: str) -> None:
        before = self._identity(name)
        last: Exception | None = None
        for turn in range(TRIES):
            if before is None or (turn and self._identity(name) != before):  # gone, or another's by now
                return
            pause_before(turn)
            try:
                self._clients.ask(lambda obs, store: obs.delete(store, self._key(name)), tries="one")
                return
            except FileNotFoundError:
                return
            except self._clients.errors as error:
                self._refuse("remove", name, error)
                self._clients.in_doubt.add(self._key(name))
                last = error
        assert last is not None
        raise self._no_answer("remove", name, last)

    def _identity(self, name: str) -> tuple[object, ...] | None:
        """What tells an object from one of the same bytes that gets its name later; None where there is none."""
        head = {"head": True}
        try:
            answer = self._call("look at", name, lambda obs, store, key: obs.get(store, key, options=head))
        except FileNotFoundError:
            return None
        token = answer.attributes.get(self._clients.token_name)
        return token, *(answer.meta[field] for field in ("e_tag", "version", "last_modified"))

    def _token(self, name: str) -> str:
        """Whose object it is; empty where it says nothing.

        Raises:
            FileNotFoundError, obstore's errors.
        """
        head = {"head": True}
        answer = self._clients.ask(lambda obs, store: obs.get(store, self._key(name), options=head), tries="few")
        return str(answer.attributes.get(self._clients.token_name, ""))

    def _call(self, verb: str, name: str, action: Callable[[Any, ObjectStore, str], _T], *, upload: bool = False) -> _T:
        """Run one request, or several; obstore repeats what may be repeated."""
        try:
            return self._clients.ask(lambda obs, store: action(obs, store, self._key(name)), upload=upload)
        except FileNotFoundError as error:
            if isinstance(error, TheWorldError):
                raise
            self._refuse(verb, name, error)
            raise FileNotFoundError(f"there is no {self}/{name}") from None
        except self._clients.errors as error:
            self._refuse(verb, name, error)
            raise self._no_answer(verb, name, error) from None

    def _refuse(self, verb: str, name: str, error: Exception) -> None:
        """Raise what the user can do, if the bucket refuses for good."""
        has_answered = self._clients.has_answered
        error_of_bucket = refusal(
            error,
            scheme=self.scheme,
            bucket=self.bucket,
            endpoint=self.endpoint,
            is_known=has_answered,
            to_write=verb in ("write", "remove", "copy"),
        )
        if error_of_bucket is not None:
            raise StoreError(
                f"cannot {verb} {self._location_of(name)}: {error_of_bucket.what}. {error_of_bucket.advice}"
            ) from None

    def _no_answer(self, verb: str, name: str, error: Exception) -> StoreError:
        return StoreError(
            f"cannot {verb} {self._location_of(name)}: {self.endpoint} does not answer as a bucket does "
            f"({summary(error)}). Check the network, the endpoint and the region, then run the same command "
            "again; whatever was committed so far stays"
        )

    def _location_of(self, name: str) -> str:
        return f"{self}/{name}" if name else str(self)
