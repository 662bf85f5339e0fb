"""What the numbers of a latent mean, and the arithmetic of frames. Needs no torch.

Axes, everywhere:  B sample   C channel   T latent frame   H, W latent row, column
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LatentShapeError

TOKEN_CELLS = 4
"""Cells per side of the square that becomes one world token, unless `theworld train` is told otherwise."""


def usual_patch(height: int, width: int) -> int:
    """Cells per side of a token that `train` makes by default; where frames do not divide so, the next smaller side."""
    return next(side for side in (TOKEN_CELLS, TOKEN_CELLS // 2, 1) if height % side == width % side == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSpec:
    """What the numbers of a latent mean. Travels with every store; nothing hard-codes 16 channels."""

    channels: int
    spatial_stride: int
    """Pixels per latent row or column."""
    temporal_stride: int
    """Video frames per latent frame after the first, which encodes one frame alone."""
    mean: tuple[float, ...]
    """Per channel, of the raw latents."""
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise LatentShapeError(
                f"a latent space of {self.channels} channels needs as many means and stds, "
                f"got {len(self.mean)} and {len(self.std)}"
            )

    def sample_shape(self, height: int, width: int, rollout_steps: int) -> tuple[int, int, int, int]:
        """(C, T, H, W) of one rollout of a `height` x `width` pixel image."""
        stride = self.spatial_stride
        return (self.channels, latent_frames(rollout_steps), height // stride, width // stride)


def latent_frames(rollout_steps: int) -> int:
    """T of a rollout: the observed frame and one latent frame per rollout step."""
    return 1 + rollout_steps


def video_frames(rollout_steps: int, *, stride: int = 1, temporal_stride: int) -> int:
    """Frames the world model has to generate for `rollout_steps` kept latent frames.

    Source: Wan 2.1's VAE packs `temporal_stride` video frames, four, into each latent frame but the first.
    """
    return 1 + temporal_stride * rollout_steps * stride
