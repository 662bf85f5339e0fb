"""The bytes of one Zarr shard: samples end to end, each one inner chunk with its frames in turn, then the index.

    payload = row 0, row 1, ...  index       row = (T, C, H, W) little-endian, C order, then its crc32c (4 bytes)
    index   = (offset, length) of each of shard_size rows, 2**64 - 1 twice where absent, then its crc32c

So a sample is one contiguous read, a prefix of k steps is its first part, and a generic reader sees one chunk a
sample. zarr-python calls this `sharding_indexed` with inner chunks (1, C, T, H, W) and codecs [transpose, bytes,
crc32c]. Our own reads check frame by frame, against the commit record; the crc32c of the chunk is for everybody else:
it is how they notice a flipped bit.

Source: the Zarr v3 specification, and its codecs `sharding_indexed`, `transpose`, `bytes` and `crc32c`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import CRC_BYTES, RowReads, ShardLayout, crc32c, round_up

_ABSENT = 2**64 - 1
_ENTRY_BYTES = 16


class ZarrLayout(ShardLayout):
    """Zarr v3: `zarr.open(store)["latents"]` is (N, C, T, H, W), NaN where no sample is."""

    inner_order: tuple[int, ...] | None = (0, 2, 1, 3, 4)
    """The axes of an inner chunk as its bytes lie on disk; None where that is the order of the array."""

    @property
    def inner_shape(self) -> tuple[int, int, int, int, int]:
        """Of an inner chunk, in the order of the array's axes."""
        return (1, *self.sample_shape)

    @property
    def chunk_bytes(self) -> int:
        """Of an inner chunk, its checksum included."""
        return self.sample_shape[1] * self.frame_bytes + CRC_BYTES

    @property
    def row_bytes(self) -> int:
        return self.sample_shape[1] // self.inner_shape[2] * self.chunk_bytes

    @property
    def payload_folder(self) -> str:
        return "latents/c"

    def payload_name(self, shard: int) -> str:
        return f"latents/c/{shard}/0/0/0/0"

    def number_of(self, name: str) -> int | None:
        return int(name) if name.isascii() and name.isdigit() and name == str(int(name)) else None

    def trailer(self, rows: int) -> bytes:
        chunks_of_row = self.row_bytes // self.chunk_bytes
        present = rows * chunks_of_row
        entries = np.full((self.shard_size * chunks_of_row, 2), _ABSENT, "<u8")
        entries[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(self.chunk_bytes)
        entries[:present, 1] = self.chunk_bytes
        content = entries.tobytes()
        return content + crc32c(content).to_bytes(CRC_BYTES, "little")

    def payload_bytes(self, rows: int) -> int:
        chunks_of_row = self.row_bytes // self.chunk_bytes
        return rows * self.row_bytes + self.shard_size * chunks_of_row * _ENTRY_BYTES + CRC_BYTES

    def reads(self, frames: int) -> RowReads:
        read_bytes = frames * self.frame_bytes
        return RowReads(segments=((0, 0, read_bytes),), memory_bytes=round_up(64, read_bytes))

    def values(self, memory: NDArray[np.uint8], frames: int) -> NDArray[Any]:
        channels, _, height, width = self.sample_shape
        numbers = memory[:, : frames * self.frame_bytes].view(self.dtype)
        return numbers.reshape(len(memory), frames, channels, height, width).transpose(0, 2, 1, 3, 4)

    def checksums(self, memory: NDArray[np.uint8], frames: int) -> list[int] | None:
        return [crc32c(frame) for frame in memory[: frames * self.frame_bytes].reshape(frames, -1)]

    def new_row(self) -> NDArray[np.uint8]:
        return np.empty(self.row_bytes, np.uint8)

    def _fill(self, row: NDArray[np.uint8], key: str, latent: NDArray[Any]) -> list[int]:  # noqa: ARG002 - no names
        frames = self.sample_shape[1]
        self.values(row[None], frames)[0] = latent
        numbers = row[:-CRC_BYTES]
        row[-CRC_BYTES:] = np.frombuffer(crc32c(numbers).to_bytes(CRC_BYTES, "little"), np.uint8)
        return [crc32c(frame) for frame in numbers.reshape(frames, -1)]
