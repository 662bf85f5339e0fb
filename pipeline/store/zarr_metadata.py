"""What each zarr.json of a store says: made by zarr-python, once a store, and told from one of another array.

Source: the Zarr v3 specification; zarr-extensions for `string` and `vlen-utf8`.
"""

from __future__ import annotations

import json
import warnings
from functools import cached_property
from typing import Any, cast

import numpy as np

from ..latents.recipe import Recipe
from ..latents.spec import LatentSpec
from .formats.zarr import ZarrLayout

Document = dict[str, Any]
"""A zarr.json."""

AXES = ("sample", "channel", "time", "y", "x")
LATENTS, KEY, TIME = "latents", "key", "time_s"
"""The arrays."""
KEY_CHUNK_ROWS = 4096
"""Few enough to be written anew with each commit into them, many enough that a million rows are 245 files."""
_WRITTEN: dict[str, dict[str, bytes]] = {}
"""What zarr-python wrote in this process, by what the metadata has to say: it takes longer than the rest of opening a
store to write does, which a job does several times."""
_WRITTEN_MOST = 64
_FACTS = ("recipe_id", "recipe", "theworld_format", "mean", "std")
"""Attributes that are stated again whenever a shape is: with another value, latents would be misread."""


def attributes_of_store(recipe: Recipe) -> Document:
    """What a reader of latents has to know of all of them."""
    return {
        "title": "latents of a world model, by theworld",
        "recipe_id": recipe.id,
        # as text: netCDF, which people save means to, takes no nested attribute
        "recipe": json.dumps(recipe.meaning(), separators=(",", ":")),
    }


def attributes_of(array: str, spec: LatentSpec) -> Document:
    """What the numbers of an array mean."""
    return {
        LATENTS: {
            "long_name": "latents, standardised per channel: (raw - mean) / std",
            "units": "1",
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        KEY: {"long_name": "key of the input; empty where the row holds no sample"},
        TIME: {"long_name": "time of the latent frame, 0 for what is observed last", "units": "s"},
    }[array]


class ZarrMetadata:
    """The metadata of one store.

    Attributes:
        has_coordinates: whether there are `key` and `time_s`; from format 2 on.
        arrays: the names of the arrays.
        files: every zarr.json, from the store's folder, in the order of writing.
    """

    def __init__(self, layout: ZarrLayout, recipe: Recipe, spec: LatentSpec) -> None:
        self._layout, self._recipe, self._spec = layout, recipe, spec
        self.has_coordinates = layout.version > 1
        has_time = self.has_coordinates and recipe.traits.is_clip
        self.arrays = (LATENTS, *[KEY] * self.has_coordinates, *[TIME] * has_time)
        self.files = (*(f"{array}/zarr.json" for array in self.arrays), "zarr.json")

    def facts(self, array: str) -> Document:
        """Those attributes of an array, or of the group itself (""), that no user may change."""
        return {name: value for name, value in self.attributes(array).items() if name in _FACTS}

    def attributes(self, array: str) -> Document:
        """Of a new array, or of the group itself ("")."""
        if not self.has_coordinates:
            return {}
        if array:
            coordinates = {"coordinates": " ".join(name for name in self.arrays if name != LATENTS)}
            return {**attributes_of(array, self._spec), **(coordinates if array == LATENTS else {})}
        return {**attributes_of_store(self._recipe), "theworld_format": self._layout.version}

    def expected(self, array: str) -> Document:
        """Of an array of ours, what decides which bytes are which number: our format, in the words of Zarr v3."""
        layout = self._layout
        if array == LATENTS:
            integers: list[Document] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
            order = layout.inner_order
            transpose = [] if order is None else [{"name": "transpose", "configuration": {"order": list(order)}}]
            sharding = {
                "chunk_shape": list(layout.inner_shape),
                "codecs": [*transpose, *integers],
                "index_codecs": integers,
                "index_location": "end",
            }
            shape, chunk = [None, *layout.sample_shape], [layout.shard_size, *layout.sample_shape]
            dtype, codecs, dimensions = (
                layout.dtype_name,
                [{"name": "sharding_indexed", "configuration": sharding}],
                AXES,
            )
        elif array == KEY:
            shape, chunk, dtype, dimensions = [None], [KEY_CHUNK_ROWS], "string", AXES[:1]
            codecs = [{"name": "vlen-utf8"}]
        else:
            frames = layout.sample_shape[1]
            shape, chunk, dtype, dimensions = [frames], [frames], "float64", AXES[2:3]
            codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": codecs,
            "dimension_names": list(dimensions),
            "fill_value": "" if array == KEY else "NaN",
        }

    @cached_property
    def made(self) -> dict[str, Document]:
        """Every zarr.json of a store without a sample, as zarr-python writes it."""
        arrays = ("", *self.arrays)
        described = [[self.attributes(array), self.expected(array) if array else None] for array in arrays]
        key = json.dumps([self.files, described])
        if key not in _WRITTEN:
            while len(_WRITTEN) >= _WRITTEN_MOST:
                del _WRITTEN[next(iter(_WRITTEN))]
            _WRITTEN[key] = self._write()
        return {name: json.loads(content) for name, content in _WRITTEN[key].items()}

    def _write(self) -> dict[str, bytes]:
        from zarr import consolidate_metadata, create_group  # pyright: ignore[reportUnknownVariableType]
        from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec
        from zarr.storage import MemoryStore

        layout = self._layout
        if layout.dtype_name == "bfloat16":
            from .formats import zarr_bfloat16 as _  # noqa: F401 - registers the type
        files: dict[str, Any] = {}
        memory = MemoryStore(files)
        group = create_group(memory, zarr_format=3, attributes=self.attributes(""))
        little = BytesCodec(endian="little")
        group.create_array(
            LATENTS,
            shape=(0, *layout.sample_shape),
            shards=(layout.shard_size, *layout.sample_shape),
            chunks=layout.inner_shape,
            dtype=layout.dtype,
            filters=None if layout.inner_order is None else [TransposeCodec(order=layout.inner_order)],
            serializer=little,
            compressors=[Crc32cCodec()],
            fill_value=np.nan,
            dimension_names=AXES,
            attributes=self.attributes(LATENTS),
        )
        plain: dict[str, Any] = {"compressors": None, "filters": None}
        if KEY in self.arrays:
            names, about = AXES[:1], self.attributes(KEY)
            group.create_array(
                KEY, shape=(0,), chunks=(KEY_CHUNK_ROWS,), dtype=str, dimension_names=names, attributes=about, **plain
            )
        if TIME in self.arrays:
            shape, names, about = layout.sample_shape[1:2], AXES[2:3], self.attributes(TIME)
            group.create_array(
                TIME,
                shape=shape,
                chunks=shape,
                dtype="float64",
                serializer=little,
                fill_value=np.nan,
                dimension_names=names,
                attributes=about,
                **plain,
            )
        if self.has_coordinates:
            with warnings.catch_warnings():  # that the specification has no word of it yet
                warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
                consolidate_metadata(memory)
        return {name: files[name].to_bytes() for name in self.files}


def difference(document: Document, expected: Document) -> str | None:
    """The first field of a zarr.json that is not as expected. Fields beyond those are a writer's own affair."""
    return next((name for name, value in expected.items() if not _agrees(document.get(name), value)), None)


def _agrees(found: object, expected: object) -> bool:
    match expected:
        case dict():
            fields = cast(dict[str, object], expected)
            if isinstance(found, str):  # Zarr's short form of a codec or type without a configuration
                return fields == {"name": found}
            if not isinstance(found, dict):
                return False
            return all(_agrees(cast(dict[str, object], found).get(name), value) for name, value in fields.items())
        case list():
            items = cast(list[object], expected)
            if not isinstance(found, list) or len(cast(list[object], found)) != len(items):
                return False
            return all(map(_agrees, cast(list[object], found), items))
        case None:  # a number that grows
            return isinstance(found, int) and not isinstance(found, bool)
        case _:
            return type(found) is type(expected) and found == expected
