"""The Zarr group around the shards of a store, for every other program: which row is what, when, and of which recipe.

    zarr.json              attributes: recipe, recipe id; and the metadata of all arrays again ("consolidated")
    latents/zarr.json      shape and codecs; attributes: mean and std of the raw latents, units
    key/  c/<n>            the key of each row, "" where no sample is; a chunk holds many rows      (format 2)
    time_s/  c/0           when each latent frame is, NaN where that is not known                   (format 2)

zarr-python makes the metadata, once a store. From then on the shape follows the commit records, and only what has
changed is written. What a user added, attributes and arrays, stays, and is consolidated with the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedShardError, StoreMismatchError
from ..files.places.place import Place
from ..files.plain import limited_json
from ..latents.keys import KEY_DIGITS
from ..latents.recipe import Recipe
from ..latents.spec import LatentSpec
from ..latents.time_axis import seconds_of_frames
from .formats.zarr import ZarrLayout
from .keys.index import Index
from .records import stated_fps, unreadable
from .zarr_metadata import KEY, KEY_CHUNK_ROWS, LATENTS, TIME, Document, ZarrMetadata, difference

_LIMIT_BYTES = 2**22
_TIMES = f"{TIME}/c/0"
_LENGTH = np.dtype("<u4")
_OWN = {"commits", "failed", "sources", "tmp", "lost+found", "dropped", "retiring", "prompts", "shards"}
"""Folders of the store that hold no arrays."""
_REBUILD = "`theworld cache repair STORE --apply` moves it to lost+found and makes it again from the records"


class ZarrGroup:
    """The group of one store."""

    def __init__(self, store: Place, layout: ZarrLayout, recipe: Recipe, spec: LatentSpec) -> None:
        self._store, self._layout, self._recipe, self._spec = store, layout, recipe, spec
        self._metadata = ZarrMetadata(layout, recipe, spec)
        self._published: dict[int, int] = {}
        """Chunk of `key` -> the hash of the shards that it was written for, by this process."""

    def lay_out(self) -> None:
        """Make what is missing of the metadata, for a store without a sample.

        Raises:
            OSError: a file cannot be written.
        """
        for name in self._metadata.files:
            self._store.create(name, content_of(self._metadata.made[name]))

    def publish(self, index: Index) -> None:
        """Say what is here: the keys first, then the shape, which makes them visible.

        Raises:
            OSError: a file cannot be written.
        """
        self._publish_keys(index)
        self._publish_times(index)
        for name, document in self.documents(index.array_rows).items():
            if _read(self._store, name) != document:
                self._store.replace(name, content_of(document))

    def is_behind(self, rows: int) -> bool:
        """Whether the metadata states another number of rows, or is not there."""
        document = _read(self._store, f"{LATENTS}/zarr.json")
        return document is None or _rows_of(document) != rows

    def stale(self, index: Index) -> list[str]:
        """The names of the files that do not say what is here; nothing is written."""
        documents = self.documents(index.array_rows)
        names = [name for name, document in documents.items() if _read(self._store, name) != document]
        if self._metadata.has_coordinates:
            for chunk, shards, _ in self.key_chunks(index):
                file = self._key_file(chunk)
                if not self._has(file, self.key_chunk(index, chunk, shards)):
                    names.append(file)
        times = self._times(index)
        if times is not None and not self._has(_TIMES, times):
            names.append(_TIMES)
        return names

    def documents(self, rows: int) -> dict[str, Document]:
        """Every zarr.json of ours, in the order of writing, as it should be for so many rows."""
        documents: dict[str, Document] = {}
        for array in self._metadata.arrays:
            name = f"{array}/zarr.json"
            document = _read(self._store, name)
            if document is None or difference(document, self._metadata.expected(array)) is not None:
                document = self._metadata.made[name]
            document = self._with_facts(document, array)
            if array != TIME:
                document["shape"] = [rows, *document["shape"][1:]]
            documents[name] = document
        documents["zarr.json"] = self._group_document(documents)
        return documents

    def check(self) -> None:
        """`latents/zarr.json` must agree with what the recipe implies; how many samples it states does not matter.

        Raises:
            StoreMismatchError: it describes another array, so that other programs read nonsense.
        """
        name, expected = f"{LATENTS}/zarr.json", self._metadata.expected(LATENTS)
        file = self._store.location(name)
        try:
            document: Any = _read_json(self._store, name)
            if not isinstance(document, dict):
                raise ValueError("it is no mapping")
            differing = difference(cast(Document, document), expected)
        except FileNotFoundError:  # only a plain Zarr reader needs it; precompute makes it again
            return
        except ValueError as error:
            raise StoreMismatchError(f"{file} is not Zarr metadata ({error}). {_REBUILD}") from error
        except OSError as error:  # a socket, say
            store_error = unreadable(file, None, error)
            if not isinstance(store_error, DamagedShardError):
                raise store_error from error
            raise StoreMismatchError(f"{file} is not Zarr metadata ({error.strerror}). {_REBUILD}") from error
        if differing is not None:
            found = str(cast(Document, document).get(differing))[:500]
            raise StoreMismatchError(
                f"{file} and theworld.json disagree: {differing} is {found}, not {expected[differing]}. {_REBUILD}"
            )

    def _has(self, name: str, content: bytes) -> bool:
        try:
            return self._store.read(name, len(content)) == content
        except (OSError, ValueError):
            return False

    def _group_document(self, arrays: Mapping[str, Document]) -> Document:
        group = _read(self._store, "zarr.json")
        if group is None or group.get("zarr_format") != 3 or group.get("node_type") != "group":
            group = self._metadata.made["zarr.json"]
        if not self._metadata.has_coordinates:  # a group of format 1 stays what it is
            return group
        group = self._with_facts(group, "")
        consolidated = group.get("consolidated_metadata")
        if not isinstance(consolidated, dict):
            consolidated = self._metadata.made["zarr.json"]["consolidated_metadata"]
        members = {name.removesuffix("/zarr.json"): document for name, document in arrays.items()}
        members |= dict(_foreign_members(self._store, "", frozenset(self._metadata.arrays)))
        metadata = {name: members[name] for name in sorted(members)}
        return {**group, "consolidated_metadata": {**cast(Document, consolidated), "metadata": metadata}}

    def _with_facts(self, document: Document, array: str) -> Document:
        """A zarr.json with what is true of the latents among the attributes, whatever else stands there."""
        users = document.get("attributes")
        kept = cast(Document, users) if isinstance(users, dict) else {}
        return {**document, "attributes": {**kept, **self._metadata.facts(array)}}

    def _publish_keys(self, index: Index) -> None:
        if not self._metadata.has_coordinates:
            return
        strays = {name for name in self._store.names(f"{KEY}/c") if name.isascii() and name.isdigit()}
        for chunk, shards, state in self.key_chunks(index):
            here = str(chunk) in strays
            strays.discard(str(chunk))
            if here and self._published.get(chunk) == state:
                continue
            content = self.key_chunk(index, chunk, shards)
            if not self._has(self._key_file(chunk), content):
                self._store.replace(self._key_file(chunk), content)
            self._published[chunk] = state
        self._store.remove(f"{KEY}/c/{name}" for name in strays)  # of shards that were moved away

    def _publish_times(self, index: Index) -> None:
        content = self._times(index)
        if content is not None and not self._has(_TIMES, content):
            self._store.replace(_TIMES, content)

    def _times(self, index: Index) -> bytes | None:
        """The chunk of `time_s`; None where there is none, or the times are not known."""
        if TIME not in self._metadata.arrays:
            return None
        fps = self._recipe.fps or stated_fps(self._store, index.shards, self._recipe.id)
        seconds = seconds_of_frames(self._recipe, self._spec, fps)
        return None if seconds is None else np.array(seconds, "<f8").tobytes()

    def _key_file(self, chunk: int) -> str:
        return f"{KEY}/c/{chunk}"

    def key_chunks(self, index: Index) -> Iterator[tuple[int, NDArray[np.int64], int]]:
        """Each chunk of `key` that is not empty, the shards whose rows are in it, and a hash of what is there."""
        if not len(index.shards):
            return
        some = index.shards.some(index.shards.numbers, with_keys=False)
        firsts = some.numbers * self._layout.shard_size
        first_chunks, last_chunks = firsts // KEY_CHUNK_ROWS, (firsts + some.rows - 1) // KEY_CHUNK_ROWS
        spans = last_chunks - first_chunks + 1
        if not len(spans):  # numpy would split nothing into one part
            return
        shards = np.repeat(np.arange(len(spans)), spans)
        chunks = np.arange(len(shards)) + np.repeat(first_chunks - (np.cumsum(spans) - spans), spans)
        order = np.argsort(chunks, kind="stable")
        each, starts = np.unique(chunks[order], return_index=True)
        hidden = index.hidden.tobytes()
        for chunk, within in zip(each.tolist(), np.split(shards[order], starts[1:]), strict=True):
            numbers = some.numbers[within]
            state = hash((numbers.tobytes(), some.rows[within].tobytes(), some.seals[within].tobytes(), hidden))
            yield chunk, numbers, state

    def key_chunk(self, index: Index, chunk: int, shards: NDArray[np.int64]) -> bytes:
        """A chunk of `key`: how many strings, then each one's length and bytes; "" where no sample is.

        Args:
            shards: those with rows in it.
        """
        rows, keys = index.rows_and_keys(shards)
        rows -= chunk * KEY_CHUNK_ROWS
        inside = (rows >= 0) & (rows < KEY_CHUNK_ROWS)
        rows = rows[inside]
        items = np.zeros((KEY_CHUNK_ROWS, _LENGTH.itemsize + KEY_DIGITS), np.uint8)
        items[rows, : _LENGTH.itemsize] = np.array([KEY_DIGITS], _LENGTH).view(np.uint8)
        items[rows, _LENGTH.itemsize :] = _digits(keys[inside])
        kept = np.ones(items.shape, bool)
        kept[:, _LENGTH.itemsize :] = False
        kept[rows] = True
        return np.array(KEY_CHUNK_ROWS, _LENGTH).tobytes() + items[kept].tobytes()


def _digits(keys: NDArray[np.bytes_]) -> NDArray[np.uint8]:
    return np.frombuffer(keys.tobytes().hex().encode(), np.uint8).reshape(-1, KEY_DIGITS)


def _read_json(store: Place, name: str) -> Any:
    try:
        return json.loads(limited_json(store.read(name, _LIMIT_BYTES)))
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def _read(store: Place, name: str) -> Document | None:
    """A zarr.json; None where it is none."""
    try:
        document: Any = _read_json(store, name)
    except (OSError, ValueError):
        return None
    return cast(Document, document) if isinstance(document, dict) else None


def content_of(document: Document) -> bytes:
    """A zarr.json as it is written."""
    return json.dumps(document, indent=2).encode()


def _rows_of(document: Document) -> object:
    match document.get("shape"):
        case [rows, *_]:
            return rows
        case _:
            return None


def _foreign_members(store: Place, group: str, ours: frozenset[str]) -> Iterator[tuple[str, Document]]:
    """The arrays and groups that a user put into a group of the store, and theirs: path in the store -> zarr.json."""
    for name in (store.below(group) if group else store).folders():
        path = f"{group}/{name}" if group else name
        if path in ours or path in _OWN or (document := _read(store, f"{path}/zarr.json")) is None:
            continue
        yield path, document
        if document.get("node_type") == "group":
            yield from _foreign_members(store, path, ours)
