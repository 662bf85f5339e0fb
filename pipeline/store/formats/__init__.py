"""The bytes of a shard in each format, Zarr and WebDataset."""

from typing import Literal

StoreFormat = Literal["zarr", "webdataset"]
StoreVersion = Literal[1, 2]
"""Version of everything a store holds. A reader refuses a higher one; a store keeps the one it began with."""
