"""The bytes of a shard in each format, Zarr and WebDataset."""

from typing import Literal

StoreFormat = Literal["zarr", "webdataset"]
