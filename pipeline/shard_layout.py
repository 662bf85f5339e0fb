"""The bytes of one Zarr shard: samples end to end, frame by frame, then the index.

    payload = row 0, row 1, ...  index        row   = frame 0 .. frame T-1
    frame   = (C, H, W) little-endian, C order, then its crc32c (4 bytes)
    index   = (offset, length) of each of shard_size x T frames, 2**64 - 1 twice where absent, then its crc32c

So a sample is one contiguous read and a prefix of k steps is its first part. zarr-python calls this `sharding_indexed`
with inner chunks (1, C, 1, H, W) and codecs [bytes, crc32c]; it would order the chunks by Morton code, which the format
leaves open. Elsewhere: which shard and row a key is in (zarr_store.py).

Axes:  N sample   C channel   T latent frame   H, W latent row, column
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from .errors import LatentShapeError

CRC_BYTES = 4
_ABSENT = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """Sizes and places within the shards of one store; the same for all of them."""

    sample_shape: tuple[int, int, int, int]
    """(C, T, H, W)"""
    dtype: np.dtype[Any]
    """Little-endian float16 or float32."""
    shard_size: int
    """Samples a full shard holds."""

    @cached_property
    def frame_bytes(self) -> int:
        """One frame with its checksum."""
        channels, _, height, width = self.sample_shape
        return channels * height * width * self.dtype.itemsize + CRC_BYTES

    @cached_property
    def sample_bytes(self) -> int:
        """One row of the payload."""
        return self.sample_shape[1] * self.frame_bytes

    def payload_bytes(self, rows: int) -> int:
        """Size of the payload of a shard with this many rows."""
        return rows * self.sample_bytes + self.shard_size * self.sample_shape[1] * 16 + CRC_BYTES

    def encode(self, key: str, latent: NDArray[Any]) -> NDArray[np.uint8]:
        """The bytes of one row.

        Args:
            key: named in errors.
            latent: (C, T, H, W), float16 or float32, finite.
        Returns:
            (T, frame_bytes); its last CRC_BYTES columns are the checksums.
        Raises:
            LatentShapeError: shape or dtype is wrong, or a value is not finite or too large for the stored dtype.
        """
        if latent.shape != self.sample_shape or latent.dtype.type not in (np.float16, np.float32):
            raise LatentShapeError(
                f"the latent of {key} is {latent.dtype} {latent.shape}, "
                f"this store takes float16 or float32 {self.sample_shape}"
            )
        if not np.isfinite(latent).all():
            bad = latent.size - int(np.isfinite(latent).sum())
            raise LatentShapeError(f"the latent of {key} holds {bad} values that are NaN or infinite")
        with np.errstate(over="ignore"):
            frames = np.ascontiguousarray(latent.transpose(1, 0, 2, 3), dtype=self.dtype)
        if not np.isfinite(frames).all():
            raise LatentShapeError(
                f"the latent of {key} reaches {float(np.abs(latent).max()):.6g}, beyond {self.dtype}. "
                "Standardised latents stay near 5: is it raw, or was the rollout unstable? float32 would hold it"
            )
        count = len(frames)
        row = np.empty((count, self.frame_bytes), np.uint8)
        row[:, :-CRC_BYTES] = frames.reshape(count, -1).view(np.uint8)
        row[:, -CRC_BYTES:] = _little_endian([crc32c(frame[:-CRC_BYTES]) for frame in row])
        return row

    def values(self, row: NDArray[np.uint8]) -> NDArray[Any]:
        """The numbers in checked bytes: a (C, frames, H, W) view of (frames, frame_bytes)."""
        channels, _, height, width = self.sample_shape
        frames = row[:, :-CRC_BYTES].view(self.dtype).reshape(len(row), channels, height, width)
        return frames.transpose(1, 0, 2, 3)

    def intact(self, row: NDArray[np.uint8]) -> bool:
        """Whether every frame of (frames, frame_bytes) matches its checksum, in one pass.

        A frame followed by its own CRC leaves the register in one state, whatever the frame holds; so do several in
        turn. That state depends on their number and size alone.
        """
        return crc32c(row.reshape(-1)) == self._intact_crc32c[len(row)]

    @cached_property
    def _intact_crc32c(self) -> list[int]:
        """By the number of frames: the CRC of that many intact frames with their checksums."""
        frame = bytes(self.frame_bytes - CRC_BYTES)
        checked = frame + crc32c(frame).to_bytes(CRC_BYTES, "little")
        states = [0]
        for _ in range(self.sample_shape[1]):
            states.append(google_crc32c.extend(states[-1], checked))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        return states

    def index(self, rows: int) -> bytes:
        """What follows the rows in a payload."""
        frames = self.sample_shape[1]
        entries = np.full((self.shard_size * frames, 2), _ABSENT, "<u8")
        entries[: rows * frames, 0] = np.arange(rows * frames, dtype=np.uint64) * np.uint64(self.frame_bytes)
        entries[: rows * frames, 1] = self.frame_bytes
        content = entries.tobytes()
        return content + crc32c(content).to_bytes(CRC_BYTES, "little")

    def array_metadata(self, samples: int) -> dict[str, Any]:
        """`latents/zarr.json` of an array of this many samples, field by field as zarr-python 3.1.6 writes it."""
        channels, frames, height, width = self.sample_shape
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        return {
            "shape": [samples, *self.sample_shape],
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.shard_size, channels, frames, height, width]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [1, channels, 1, height, width],
                        "codecs": [little_endian, {"name": "crc32c"}],
                        "index_codecs": [little_endian, {"name": "crc32c"}],
                        "index_location": "end",
                    },
                }
            ],
            "attributes": {},
            "dimension_names": ["sample", "channel", "time", "y", "x"],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


GROUP_METADATA: dict[str, Any] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""`zarr.json` of the store itself."""


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C, as Zarr's codec of that name."""
    return google_crc32c.value(data)  # pyright: ignore[reportArgumentType, reportUnknownMemberType, reportUnknownVariableType]


def stored_crc32c(row: NDArray[np.uint8]) -> list[int]:
    """The checksums that stand in the bytes of a row, frame by frame."""
    return row[:, -CRC_BYTES:].copy().view("<u4")[:, 0].tolist()


def _little_endian(numbers: list[int]) -> NDArray[np.uint8]:
    return np.array(numbers, "<u4").view(np.uint8).reshape(-1, CRC_BYTES)
