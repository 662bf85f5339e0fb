"""The bytes of one shard, whatever its format: how a row is made, and how its first frames are found and checked.

Every row of a store has the same size, so a sample is found by arithmetic: no index is needed to read one, in a Zarr
shard as in a tar.

Axes:  B sample   C channel   T latent frame   H, W latent row, column
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...errors import LatentShapeError
from ...files.places.folder import Folder
from ...files.places.place import Place
from . import StoreVersion

CRC_BYTES = 4

STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
}
"""By the recipe's name for it; little-endian on disk."""


@dataclass(frozen=True, kw_only=True)
class RowReads:
    """How the first frames of a row come into memory, and what they are there."""

    segments: tuple[tuple[int, int, int], ...]
    """(offset in the row, offset in memory, bytes) of each contiguous read."""
    memory_bytes: int
    """A row in memory; a multiple of 64."""


class ShardLayout(ABC):
    """Sizes and places within the shards of one store; the same for all of them."""

    def __init__(
        self, *, sample_shape: tuple[int, int, int, int], dtype: str, shard_size: int, version: StoreVersion
    ) -> None:
        self.sample_shape = sample_shape
        """(C, T, H, W)"""
        self.dtype_name = dtype
        self.dtype = STORED_DTYPES[dtype]
        self.shard_size = shard_size
        """Samples a full shard holds."""
        self.version: StoreVersion = version
        self.recorded_frames = 1 if version == 1 else sample_shape[1]
        """How many first frames of a row have their CRC-32C in the commit record."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """From the start of one row to the start of the next."""

    @property
    @abstractmethod
    def payload_folder(self) -> str:
        """The folder of a store above all its payloads."""

    @abstractmethod
    def payload_name(self, shard: int) -> str:
        """Where the payload of a shard belongs, from the store's folder."""

    @abstractmethod
    def number_of(self, name: str) -> int | None:
        """The shard an entry of the payload folder belongs to; None where it is none of ours."""

    @abstractmethod
    def trailer(self, rows: int) -> bytes:
        """What follows the rows in a payload."""

    @abstractmethod
    def reads(self, frames: int) -> RowReads:
        """How the first `frames` frames of a row are read."""

    @abstractmethod
    def values(self, memory: NDArray[np.uint8], frames: int) -> NDArray[Any]:
        """The numbers in (B, memory_bytes) of rows read by `reads(frames)`: a view, (B, C, frames, H, W)."""

    @abstractmethod
    def checksums(self, memory: NDArray[np.uint8], frames: int) -> list[int] | None:
        """CRC-32C of each frame in one row of memory; None where a frame does not match what its own bytes state."""

    @abstractmethod
    def new_row(self) -> NDArray[np.uint8]:
        """Memory for a row, for `encode`, which may use it again and again."""

    @abstractmethod
    def _fill(self, row: NDArray[np.uint8], key: str, latent: NDArray[Any]) -> list[int]: ...

    def is_row(self, row: NDArray[np.uint8], key: str, checksums: Sequence[int]) -> bool:  # noqa: ARG002
        """Whether bytes are a row of this layout, of a sample whose numbers are finite.

        Args:
            checksums: of its frames, as its record has them; their bytes are not summed up here.
        """
        frames = self.sample_shape[1]
        [(offset, _, size)] = self.reads(frames).segments
        return _finite(self.values(row[None, offset : offset + size], frames), self.dtype_name)

    @cached_property
    def frame_bytes(self) -> int:
        """The numbers of one frame."""
        channels, _, height, width = self.sample_shape
        return channels * height * width * self.dtype.itemsize

    def payload_numbers(self, store: Place, *, but: Collection[int] = ()) -> set[int]:
        """The shards that have a payload file, with or without a record, from one listing; some are not looked at."""
        if not isinstance(store, Folder):
            listed = {entry.name for entry in store.entries(self.payload_folder, deep=True)}
            start = len(self.payload_folder) + 1
            numbers = {self.number_of(name[start:].partition("/")[0]) for name in listed}.difference(but)
            return {n for n in numbers if n is not None and self.payload_name(n) in listed}
        try:
            names = store.names(self.payload_folder)
        except NotADirectoryError:
            return set()
        numbers = {self.number_of(name) for name in names}.difference(but)
        return {n for n in numbers if n is not None and os.path.lexists(store.path / self.payload_name(n))}

    def payload_bytes(self, rows: int) -> int:
        """Size of the payload of a shard with this many rows."""
        return rows * self.row_bytes + len(self.trailer(rows))

    def is_possible(self, rows: int, size: int, frames: int) -> bool:
        """Whether a shard can have so many rows, bytes, and frames with a checksum in the record."""
        return rows <= self.shard_size and size == self.payload_bytes(rows) and frames == self.recorded_frames

    def encode(self, key: str, latent: NDArray[Any], row: NDArray[np.uint8]) -> list[int]:
        """Make the bytes of one row.

        Args:
            key: of the input.
            latent: (C, T, H, W), float16, bfloat16 or float32, finite.
            row: from `new_row`; filled.
        Returns:
            The CRC-32C of those first frames whose checksums stand in the record.
        Raises:
            LatentShapeError: shape or dtype is wrong, or a value is not finite or too large for the stored dtype.
        """
        if latent.shape != self.sample_shape or latent.dtype not in STORED_DTYPES.values():
            raise LatentShapeError(
                f"the latent of {key} is {latent.dtype} {latent.shape}, "
                f"this store takes float16, bfloat16 or float32 {self.sample_shape}"
            )
        with np.errstate(over="ignore"):
            stored = latent.astype(self.dtype, copy=False)
        if not _finite(stored, self.dtype_name):
            if bad := latent.size - int(np.isfinite(latent).sum()):
                raise LatentShapeError(f"the latent of {key} holds {bad} values that are NaN or infinite")
            raise LatentShapeError(
                f"the latent of {key} reaches {float(np.abs(latent).max()):.6g}, beyond {self.dtype_name}. "
                "Standardised latents stay near 5: is it raw, or was the rollout unstable? float32 would hold it"
            )
        return self._fill(row, key, stored)[: self.recorded_frames]


def _finite(values: NDArray[Any], dtype: str) -> bool:
    """Whether no value is infinite or NaN; by their bits, many times as fast as `np.isfinite` for float16.

    The bits of numbers sort by magnitude, positive ones as signed integers, negative ones above them as unsigned.
    """
    size, infinity = {"float16": (2, 0x7C00), "bfloat16": (2, 0x7F80), "float32": (4, 0x7F800000)}[dtype]
    sign = 1 << (8 * size - 1)
    return bool(values.view(f"i{size}").max() < infinity and values.view(f"u{size}").max() < sign + infinity)


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C, as Zarr's codec of that name."""
    return google_crc32c.value(data)  # pyright: ignore[reportArgumentType, reportUnknownMemberType, reportUnknownVariableType]


def extend_crc32c(crc: int, data: bytes) -> int:
    """The CRC-32C of what `crc` stands for, followed by `data`."""
    return google_crc32c.extend(crc, data)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def round_up(multiple: int, size: int) -> int:
    """`size`, rounded up."""
    return -(-size // multiple) * multiple
