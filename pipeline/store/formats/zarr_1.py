"""The bytes of one Zarr shard of format 1, which stores that began with it keep: an inner chunk a frame.

    row = frame 0 .. frame T-1       frame = (C, H, W) little-endian, C order, then its crc32c (4 bytes)

Inner chunks are (1, C, 1, H, W) with codecs [bytes, crc32c], one after another, where zarr-python would order them by
Morton code; the specification leaves that open. All else is as in format 2 (zarr.py), which has replaced it because
dask and xarray make a task of every inner chunk: nine a sample of nine frames.
"""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import CRC_BYTES, RowReads, crc32c, extend_crc32c, round_up
from .zarr import ZarrLayout


class ZarrFramesLayout(ZarrLayout):
    """Zarr v3 with a checksum behind every frame."""

    inner_order = None

    @property
    def inner_shape(self) -> tuple[int, int, int, int, int]:
        channels, _, height, width = self.sample_shape
        return (1, channels, 1, height, width)

    @property
    def chunk_bytes(self) -> int:
        return self.frame_bytes + CRC_BYTES

    def reads(self, frames: int) -> RowReads:
        read_bytes = frames * self.chunk_bytes
        return RowReads(segments=((0, 0, read_bytes),), memory_bytes=round_up(64, read_bytes))

    def values(self, memory: NDArray[np.uint8], frames: int) -> NDArray[Any]:
        channels, _, height, width = self.sample_shape
        chunks = memory[:, : frames * self.chunk_bytes].reshape(len(memory), frames, self.chunk_bytes)
        numbers = chunks[..., :-CRC_BYTES].view(self.dtype)
        return numbers.reshape(len(memory), frames, channels, height, width).transpose(0, 2, 1, 3, 4)

    def checksums(self, memory: NDArray[np.uint8], frames: int) -> list[int] | None:
        # In one pass: a frame followed by its own CRC leaves the register in one state, whatever the frame holds, and
        # so do several in turn. That state depends on their number and size alone.
        chunks = memory[: frames * self.chunk_bytes]
        if crc32c(chunks) != self._intact_crc32c[frames]:
            return None
        return chunks.reshape(frames, -1)[:, -CRC_BYTES:].copy().view("<u4")[:, 0].tolist()

    def _fill(self, row: NDArray[np.uint8], key: str, latent: NDArray[Any]) -> list[int]:  # noqa: ARG002 - no names
        frames = self.sample_shape[1]
        self.values(row[None], frames)[0] = latent
        chunks = row.reshape(frames, self.chunk_bytes)
        crcs = [crc32c(chunk[:-CRC_BYTES]) for chunk in chunks]
        chunks[:, -CRC_BYTES:] = np.array(crcs, "<u4").view(np.uint8).reshape(-1, CRC_BYTES)
        return crcs

    @cached_property
    def _intact_crc32c(self) -> list[int]:
        """By the number of frames: the CRC of that many intact frames with their checksums."""
        frame = bytes(self.frame_bytes)
        checked = frame + crc32c(frame).to_bytes(CRC_BYTES, "little")
        states = [0]
        for _ in range(self.sample_shape[1]):
            states.append(extend_crc32c(states[-1], checked))
        return states
