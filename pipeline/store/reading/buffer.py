"""The memory a batch of latents is read into, laid out so that each sample comes in one read, checksums and all.

Axes:  B sample   C channel   K rollout steps   H, W latent row, column
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LatentShapeError
from ...latents.spec import latent_frames
from ..formats.base import ShardLayout

_PAGE_BYTES = 4096


class BatchBuffer:
    """Memory a batch is read into, to be used again and again.

    Attributes:
        latents: (B, C, 1 + K, H, W) of the store's dtype, a strided view of the memory: checksums lie between.
        rollout_steps: K.
    """

    def __init__(self, layout: ShardLayout, samples: int, rollout_steps: int, memory: NDArray[np.uint8] | None) -> None:
        self.rollout_steps = rollout_steps
        frames = latent_frames(rollout_steps)
        reads = layout.reads(frames)
        if memory is None:
            memory = np.empty(samples * reads.memory_bytes + _PAGE_BYTES, np.uint8)
            memory = memory[-memory.ctypes.data % _PAGE_BYTES :]  # the kernel copies faster to where rows are aligned
        if memory.dtype != np.uint8 or memory.size < samples * reads.memory_bytes or not memory.flags.c_contiguous:
            raise LatentShapeError(
                f"a buffer for {samples} samples of {rollout_steps} steps needs {samples * reads.memory_bytes} "
                f"contiguous bytes, got {memory.size} values of {memory.dtype}"
            )
        self.rows = memory.reshape(-1)[: samples * reads.memory_bytes].reshape(samples, reads.memory_bytes)
        """(B, bytes of a row)"""
        self.latents: NDArray[Any] = layout.values(self.rows, frames)
        self.pieces = [
            (offset, size, [(row.data[at : at + size],) for row in self.rows]) for offset, at, size in reads.segments
        ]
        """By read of a row: where in it, how many bytes, and what to fill of each sample's memory."""

    def __len__(self) -> int:
        return len(self.rows)
