"""The bytes of one Zarr shard: samples end to end, frame by frame, then the index.

    payload = row 0, row 1, ...  index        row   = frame 0 .. frame T-1
    frame   = (C, H, W) little-endian, C order, then its crc32c (4 bytes)
    index   = (offset, length) of each of shard_size x T frames, 2**64 - 1 twice where absent, then its crc32c

So a sample is one contiguous read and a prefix of k steps is its first part. zarr-python calls this `sharding_indexed`
with inner chunks (1, C, 1, H, W) and codecs [bytes, crc32c]; it would order the chunks by Morton code, which the format
leaves open.
"""

import json
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import CRC_BYTES, RowReads, ShardLayout, crc32c, extend_crc32c, round_up

_ABSENT = 2**64 - 1
_GROUP_METADATA: dict[str, Any] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


class ZarrLayout(ShardLayout):
    """Zarr v3: `zarr.open(store)["latents"]` is (N, C, T, H, W), NaN where no sample is."""

    @property
    def row_bytes(self) -> int:
        return self.sample_shape[1] * self._chunk_bytes

    @property
    def payload_folder(self) -> str:
        return "latents/c"

    def payload_name(self, shard: int) -> str:
        return f"latents/c/{shard}/0/0/0/0"

    def number_of(self, name: str) -> int | None:
        return int(name) if name.isascii() and name.isdigit() and name == str(int(name)) else None

    def trailer(self, rows: int) -> bytes:
        frames = self.sample_shape[1]
        entries = np.full((self.shard_size * frames, 2), _ABSENT, "<u8")
        entries[: rows * frames, 0] = np.arange(rows * frames, dtype=np.uint64) * np.uint64(self._chunk_bytes)
        entries[: rows * frames, 1] = self._chunk_bytes
        content = entries.tobytes()
        return content + crc32c(content).to_bytes(CRC_BYTES, "little")

    def payload_bytes(self, rows: int) -> int:
        return rows * self.row_bytes + self.shard_size * self.sample_shape[1] * 16 + CRC_BYTES

    def files(self, samples: int) -> dict[str, bytes]:
        contents = {"zarr.json": _GROUP_METADATA, "latents/zarr.json": self.array_metadata(samples)}
        return {name: json.dumps(content, indent=2).encode() for name, content in contents.items()}

    def reads(self, frames: int) -> RowReads:
        read_bytes = frames * self._chunk_bytes
        return RowReads(segments=((0, 0, read_bytes),), memory_bytes=round_up(64, read_bytes))

    def values(self, memory: NDArray[np.uint8], frames: int) -> NDArray[Any]:
        channels, _, height, width = self.sample_shape
        chunks = memory[:, : frames * self._chunk_bytes].reshape(len(memory), frames, self._chunk_bytes)
        numbers = chunks[..., :-CRC_BYTES].view(self.dtype)
        return numbers.reshape(len(memory), frames, channels, height, width).transpose(0, 2, 1, 3, 4)

    def checksums(self, memory: NDArray[np.uint8], frames: int) -> list[int] | None:
        # In one pass: a frame followed by its own CRC leaves the register in one state, whatever the frame holds, and
        # so do several in turn. That state depends on their number and size alone.
        chunks = memory[: frames * self._chunk_bytes]
        if crc32c(chunks) != self._intact_crc32c[frames]:
            return None
        return chunks.reshape(frames, -1)[:, -CRC_BYTES:].copy().view("<u4")[:, 0].tolist()

    def new_row(self) -> NDArray[np.uint8]:
        return np.empty(self.row_bytes, np.uint8)

    def _fill(self, row: NDArray[np.uint8], key: str, latent: NDArray[Any]) -> int:  # noqa: ARG002 - rows have no names
        frames = self.sample_shape[1]
        self.values(row[None], frames)[0] = latent
        chunks = row.reshape(frames, self._chunk_bytes)
        crcs = [crc32c(chunk[:-CRC_BYTES]) for chunk in chunks]
        chunks[:, -CRC_BYTES:] = np.array(crcs, "<u4").view(np.uint8).reshape(-1, CRC_BYTES)
        return crcs[0]

    @property
    def _chunk_bytes(self) -> int:
        return self.frame_bytes + CRC_BYTES

    @cached_property
    def _intact_crc32c(self) -> list[int]:
        """By the number of frames: the CRC of that many intact frames with their checksums."""
        frame = bytes(self.frame_bytes)
        checked = frame + crc32c(frame).to_bytes(CRC_BYTES, "little")
        states = [0]
        for _ in range(self.sample_shape[1]):
            states.append(extend_crc32c(states[-1], checked))
        return states

    def array_metadata(self, samples: int) -> dict[str, Any]:
        """`latents/zarr.json` of an array of this many samples, field by field as zarr-python 3.1.6 writes it."""
        channels, frames, height, width = self.sample_shape
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        return {
            "shape": [samples, *self.sample_shape],
            "data_type": self.dtype_name,
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
