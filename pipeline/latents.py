"""The latent tensor as both stages see it: its axes, its value space, its frame arithmetic.

Lives here: the shape contract, and the change between raw and standardised values.
Elsewhere: making latents (precompute/cosmos.py), keeping them (pipeline/zarr_store.py).

Axes, everywhere:  B sample   C channel (16)   T latent frame   H, W latent row, column
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .errors import LatentShapeError


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


def video_frames(rollout_steps: int, *, stride: int = 1, temporal_stride: int = 4) -> int:
    """Frames the world model has to generate for `rollout_steps` kept latent frames.

    Source: Wan 2.1's VAE packs `temporal_stride` video frames into each latent frame but the first.
    """
    return 1 + temporal_stride * rollout_steps * stride


def standardise(raw: Float[Tensor, "B C T H W"], spec: LatentSpec) -> Float[Tensor, "B C T H W"]:
    """Shift and scale each channel to about zero mean and unit variance.

    Args:
        raw: latents as the VAE encoder returns them.
        spec: the latent space `raw` lives in.
    Returns:
        A new tensor; same shape, dtype and device. Stores hold this form.
    Raises:
        LatentShapeError: `raw` does not have the space's number of channels.

    Source: `Cosmos2VideoToWorldPipeline.prepare_latents` in diffusers, with sigma_data = 1.
    """
    mean, std = _statistics(raw, spec)
    return (raw - mean) / std


def unstandardise(standardised: Float[Tensor, "B C T H W"], spec: LatentSpec) -> Float[Tensor, "B C T H W"]:
    """The inverse of `standardise`: what the VAE decoder takes."""
    mean, std = _statistics(standardised, spec)
    return standardised * std + mean


def _statistics(latents: Tensor, spec: LatentSpec) -> tuple[Tensor, Tensor]:
    if latents.ndim != 5 or latents.shape[1] != spec.channels:
        raise LatentShapeError(
            f"expected latents of shape (B, {spec.channels}, T, H, W), got {tuple(latents.shape)}"
        )
    shape = (1, spec.channels, 1, 1, 1)
    return latents.new_tensor(spec.mean).view(shape), latents.new_tensor(spec.std).view(shape)
