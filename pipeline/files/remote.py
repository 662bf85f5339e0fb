"""Files that lie elsewhere, by their URLs: objects of a bucket (`s3://`, `gs://`, `az://`), and files of a data set of
the Hugging Face Hub (`hf://datasets/ORG/NAME/…`). They are listed and read, never written.

    s3://bucket/folder/a.png      hf://datasets/ORG/NAME/folder/a.png      hf://datasets/ORG/NAME@REVISION/…

Lists, tables and tars are copied whole to this machine before they are read:

    ~/.cache/theworld/inputs/<32 digits of URL and version>/<name>    can be deleted at any time
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import xxhash
from pydantic import BeforeValidator

from ..credentials import hide_passwords
from ..errors import ConfigError, ImageError, StoreError
from ..failures import FailureReason
from ..machine import own_folder
from ..messages import format_bytes
from .file_facts import FileFacts
from .hub.dataset import HubDataset
from .places.bucket import Bucket
from .places.bucket_clients import endpoint_of
from .places.listed import ListedEntries
from .places.local import file_name, require_local, url_of

_T = TypeVar("_T")

SCHEMES = ("s3://", "gs://", "az://", "hf://")
_COMMIT = re.compile(r"^(hf://datasets/[^/]+/[^/@]+)@[0-9a-f]{40}")
_NO_NAMES = ("", ".")
_NO_PARTS = (*_NO_NAMES, "..")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""What obstore takes in no name. Other blanks it does: macOS writes U+202F into the names of screenshots."""
_FOLDER = "inputs"
_PART_BYTES = 2**23
_PARTS_AT_ONCE = 16
_KEEP_FREE_BYTES = 2**30
_HEAD_BYTES = 4096


class RemoteFile(NamedTuple):
    """A file, as a listing shows it."""

    name: str
    """Below the root of its bucket or data set, with slashes."""
    facts: FileFacts
    """Its size, and its version in the field of the inode."""


class Root(NamedTuple):
    """The bucket or the data set that a URL is in."""

    url: str
    """`s3://bucket` or `hf://datasets/ORG/NAME`: what its files are called by."""
    at: str
    """The same, and of a data set with the commit: what its files are read by."""
    key: str
    """The rest of the URL, without a slash before it."""


def is_remote(place: str) -> bool:
    """Whether it is a URL of a file or a folder that is read here."""
    return place.startswith(SCHEMES)


def without_commit(path: str) -> str:
    """The path, and of a file on the Hub its URL without the commit, which changes where the file does not."""
    return _COMMIT.sub(r"\1", path, count=1) if path.startswith("hf://") else path


def root_of(url: str) -> Root:
    """The bucket or the data set that a URL is in; of a data set, at the commit that its name means now.

    Raises:
        ConfigError: it is no such URL, or has a user, a password or a query in it.
        StoreError: the Hub knows no such data set.
    """
    checked = check_url(url)
    if checked.startswith("hf://"):
        data_set = HubDataset.find(checked)
        return Root(data_set.name, data_set.at, data_set.path_in(checked))
    scheme, _, rest = checked.partition("://")
    bucket, _, key = rest.partition("/")
    return Root(f"{scheme}://{bucket}", f"{scheme}://{bucket}", key)


def check_url(url: str) -> str:
    """The URL, if it has the form of one that is read here.

    Raises:
        ConfigError: it has not, it has a user, a password or a query in it, or a part of it is empty, `.` or `..`, or
            has a control character.
    """
    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0] or re.search(r"[?&][^/=?&]+=", rest):
        raise ConfigError(
            f"{hide_passwords(url).partition('?')[0]}: a URL with a user, a password or a query is not taken, since it "
            "would be kept with what is made of it. Give credentials in the environment: docs/inputs.md"
        )
    bucket, _, key = rest.partition("/")
    if any(part in _NO_PARTS or _CONTROL.search(part) for part in key.rstrip("/").split("/") if key.rstrip("/")):
        raise ConfigError(f"{url}: no part of a URL may be empty (//), `.` or `..`, or have a control character")
    if scheme == "hf":
        HubDataset.parse(url)
    else:
        Bucket(f"{scheme}://{bucket}")  # a key may have any sign in it, also those that end other URLs: a#b.png
    return url


def url_in(folder: str, name: str) -> str:
    """The URL of a file whose name a list states relative to the folder at a URL: `./a.png` is `a.png`, as on disk."""
    return "/".join([folder.rstrip("/"), *(part for part in name.split("/") if part not in _NO_NAMES)])


def remote_files(root: Root, folder: str) -> Iterator[RemoteFile]:
    """All files below a folder of a bucket or data set, in no order, by pages.

    Raises:
        StoreError: it cannot be listed.
    """
    if root.at.startswith("hf://"):
        for name, size, version in HubDataset.of(root.at).files(folder):
            yield RemoteFile(name, _facts(size, xxhash.xxh3_64_intdigest(version.encode())))
        return
    for entry in _bucket(root.at).entries(folder, deep=True):
        if entry.bytes or not entry.name.endswith("/"):  # what consoles make in place of a folder
            yield RemoteFile(entry.name, _facts(entry.bytes, entry.tag))


def facts_of_remote(url: str) -> FileFacts | None:
    """Size and version of one file; None where there is none, or it cannot be seen: reading it says why."""
    with suppress(FileNotFoundError, ImageError, StoreError, ConfigError):
        root = root_of(url)
        if root.at.startswith("hf://"):
            dataset_files = HubDataset.of(root.at).look_at(root.key)
            return (
                None
                if dataset_files is None
                else _facts(dataset_files[0], xxhash.xxh3_64_intdigest(dataset_files[1].encode()))
            )
        entry = _listed(root.at, endpoint_of(url.partition(":")[0])).entry(root.key)
        return None if entry is None else _facts(entry.bytes, entry.tag)
    return None


def read_remote(url: str, max_bytes: int) -> bytes:
    """The bytes of a file. Thread-safe.

    Raises:
        ImageError: missing, empty or too_large: there is none, it may not be read, or it did not arrive whole.
    """
    content = _read(url, lambda: _read_whole(root_of(url), max_bytes))
    if len(content) > max_bytes:
        raise _too_large(url, f"{len(content):,} bytes", max_bytes)
    if not content:
        raise ImageError(FailureReason.EMPTY, f"{url} is empty")
    return content


def read_head(url: str) -> bytes:
    """The first bytes of a file; raises as `read_remote`."""
    root = root_of(url)
    if root.at.startswith("hf://"):
        with local_copy(url).open("rb") as file:
            return file.read(_HEAD_BYTES)
    memory = bytearray(_HEAD_BYTES)
    size = _read(url, lambda: _bucket(root.at).read_into(root.key, 0, memoryview(memory)))
    return bytes(memory[:size])


def local_path(path: str) -> str:
    """The path of a file on this machine, or of the copy of one that lies elsewhere."""
    return str(local_copy(path)) if is_remote(path) else path


def local_copy(url: str) -> Path:
    """A whole copy of a file on this machine's disk: made once, found again while its version is the same.

    Raises:
        ImageError: missing: as of `read_remote`, or the disk has no room.
    """
    scheme = url.partition(":")[0]
    endpoint = "" if scheme == "hf" else endpoint_of(scheme)
    with _copying:
        path = _copy_of(url, endpoint)
        if not path.exists():  # somebody emptied the folder
            _copy_of.cache_clear()
            path = _copy_of(url, endpoint)
    return path


_copying = threading.Lock()


@lru_cache(maxsize=2**16)
def _copy_of(url: str, endpoint: str) -> Path:  # noqa: ARG001 - as of `_opened`
    root = root_of(url)
    if root.at.startswith("hf://"):
        return _read(url, lambda: HubDataset.of(root.at).copy(root.key))
    return _read(url, lambda: _copy_object(_bucket(root.at), root.key, url))


def _copy_object(bucket: Bucket, key: str, url: str) -> Path:
    entry = bucket.entry(key)
    if entry is None:
        raise FileNotFoundError(f"there is no {url}")
    digest = xxhash.xxh3_128_hexdigest(f"{url}\0{entry.tag}\0{entry.bytes}".encode())
    folder = own_folder() / _FOLDER / digest
    path = folder / file_name(key.rpartition("/")[2])  # a listing names no folder here
    if path.is_file() and path.stat().st_size == entry.bytes:
        os.utime(folder)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    _make_room(folder, entry.bytes)
    number, part = tempfile.mkstemp(prefix=".part-", dir=folder)
    try:
        with os.fdopen(number, "wb") as file:
            for at in range(0, entry.bytes, _PARTS_AT_ONCE * _PART_BYTES):
                memory = memoryview(bytearray(min(_PARTS_AT_ONCE * _PART_BYTES, entry.bytes - at)))
                starts = range(0, len(memory), _PART_BYTES)
                ranges = [(key, at + start, memory[start : start + _PART_BYTES]) for start in starts]
                if sum(bucket.read_ranges(ranges)) != len(memory):
                    raise StoreError(f"{url} ends before its {entry.bytes:,} bytes. Was it written anew? Run again")
                file.write(memory)
        if bucket.entry(key) != entry:
            raise StoreError(f"{url} was written anew while it was read. Run again")
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)
    return path


def _make_room(folder: Path, size: int) -> None:
    """Remove the copies that were not used for longest, if the disk has no room for another one.

    Raises:
        StoreError: there is no room without them either.
    """
    others = [each for each in folder.parent.iterdir() if each != folder and each.is_dir() and not each.is_symlink()]
    others.sort(key=lambda each: each.stat().st_mtime, reverse=True)
    while shutil.disk_usage(folder).free < size + _KEEP_FREE_BYTES:
        if not others:
            raise StoreError(
                f"the copy would take {format_bytes(size)} in {folder.parent}, and the disk has "
                f"{format_bytes(shutil.disk_usage(folder).free)} free. Name another disk with XDG_CACHE_HOME"
            )
        shutil.rmtree(others.pop(), ignore_errors=True)


def _read_whole(root: Root, max_bytes: int) -> bytes:
    if root.at.startswith("hf://"):
        return HubDataset.of(root.at).read(root.key, max_bytes)
    return _bucket(root.at).read(root.key, max_bytes)


def _read(url: str, action: Callable[[], _T]) -> _T:
    try:
        return action()
    except FileNotFoundError as error:
        raise ImageError(FailureReason.MISSING, f"there is no {url}") from error
    except (StoreError, ConfigError, OSError) as error:
        why = str(error)
        raise ImageError(FailureReason.MISSING, why if url in why else f"{url} cannot be read: {why}") from error
    except ValueError as error:
        raise ImageError(FailureReason.TOO_LARGE, str(error)) from error


def _too_large(url: str, size: str, max_bytes: int) -> ImageError:
    return ImageError(FailureReason.TOO_LARGE, f"{url} holds {size}; the limit is {max_bytes:,}")


def _facts(size: int, version: int) -> FileFacts:
    return FileFacts(0, version, size, 0, 0)


def _bucket(url: str) -> Bucket:
    return _opened(url, endpoint_of(url.partition(":")[0]))


@lru_cache(maxsize=64)
def _listed(url: str, endpoint: str) -> ListedEntries:  # noqa: ARG001 - as of `_opened`
    return ListedEntries(_bucket(url))


@lru_cache(maxsize=64)
def _opened(url: str, endpoint: str) -> Bucket:  # noqa: ARG001 - another endpoint has other buckets
    return Bucket(url)


def _check(value: object) -> object:
    if isinstance(value, str | Path):
        return require_local(value) if (url := url_of(value)) is None else Path(check_url(url))
    return value


InputPath = Annotated[Path, BeforeValidator(_check)]
"""A pydantic field that takes a path of this machine, or a URL that is read here (`url_of` tells)."""
