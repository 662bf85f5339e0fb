"""From latents to world tokens: temporal embedding, token layout, projector.

Lives here: everything trainable besides LoRA. Elsewhere: where the tokens go (model.py).

Axes:  B sample   C latent channel   T latent frame   H, W latent row, column
       N world token (time-major, then row, then column)   D channels of one token   E the language model's width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..pipeline.errors import ConfigError, LatentShapeError
from .config import LayoutName

_POSITION_STD = 0.5
"""Of fresh temporal, row and column embeddings; what they are added to has a standard deviation of about 1. At the
usual 0.02, "which bin is below the ball" stood at .64 after 400 updates on the worldlet, not at .96 (one seed)."""
_TINY = 1e-6


def _widen_gain(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Readers written before the gain was a vector hold a scalar."""
    if f"{prefix}gain" in weights:
        weights[f"{prefix}gain"] = weights[f"{prefix}gain"].reshape(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLayout:
    """How a grid of latent cells becomes tokens. No layout here loses information."""

    name: LayoutName = "patch"
    """spatial: each cell is a token. patch: `patch` x `patch` cells are one token with as many times the channels."""
    patch: int = 2

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ConfigError(f"patch must be at least 1 cell, got {self.patch}")

    @property
    def side(self) -> int:
        """Cells per token along each spatial axis."""
        return 1 if self.name == "spatial" else self.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a frame of `height` x `width` latent cells.

        Raises:
            ConfigError: patches do not tile the frame.
        """
        side = self.side
        if height % side or width % side:
            raise ConfigError(
                f"latents of {height}x{width} cells do not divide into patches of {side}x{side}. "
                "Choose a patch that divides both, or the layout 'spatial'"
            )
        return height // side, width // side

    def channels(self, latent_channels: int) -> int:
        """Channels of one token."""
        return latent_channels * self.side**2

    def count(self, latent_frames: int, height: int, width: int) -> int:
        """World tokens of one sample."""
        rows, columns = self.grid(height, width)
        return latent_frames * rows * columns

    def arrange(self, frames: Float[Tensor, "B T H W C"]) -> Float[Tensor, "B N D"]:
        """Cut frames into tokens: time-major, then row, then column; within a patch row, column, channel.

        Raises:
            ConfigError: patches do not tile the frame.
        """
        B, T, H, W, C = frames.shape
        rows, columns = self.grid(H, W)
        cells = frames.reshape(B, T, rows, self.side, columns, self.side, C)
        return cells.permute(0, 1, 2, 4, 3, 5, 6).reshape(B, T * rows * columns, self.channels(C))


class Projector(nn.Module):
    """Two linear layers to the language model's width, at the scale of its own embeddings.

    Row and column embeddings are part of it: without them "on which side" falls from .99 to .63 (measured on the
    worldlet). The output is RMS-normalised and multiplied by one learned gain, because a language model expects
    embedding vectors of the size it was trained with: Gemma-2's are 48 times larger than a plain projector's.
    """

    def __init__(
        self, inputs: int, outputs: int, *, grid: tuple[int, int], gain: float, hidden: int | None = None
    ) -> None:
        """
        Args:
            inputs, outputs: channels of a token (D) and the language model's width (E).
            grid: token rows and columns of a frame.
            gain: RMS of the language model's embedding vectors.
            hidden: width between the two layers; by default the larger of 4 * inputs and outputs.
        """
        super().__init__()
        hidden = hidden or max(4 * inputs, outputs)
        self.into = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, outputs)
        self.row_embedding = nn.Embedding(grid[0], hidden)
        self.column_embedding = nn.Embedding(grid[1], hidden)
        self.gain = nn.Parameter(torch.tensor([float(gain)]))  # a vector of one: FSDP splits no scalars
        self.register_load_state_dict_pre_hook(_widen_gain)
        nn.init.normal_(self.row_embedding.weight, std=_POSITION_STD)
        nn.init.normal_(self.column_embedding.weight, std=_POSITION_STD)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """World tokens of whole frames; N is a multiple of rows * columns."""
        positions = self.row_embedding.weight[:, None] + self.column_embedding.weight[None]
        hidden = self.into(tokens).unflatten(1, (-1, positions.shape[0] * positions.shape[1]))
        hidden = nn.functional.gelu(hidden + positions.flatten(0, 1)).flatten(1, 2)
        projected = self.out(hidden)
        return self.gain * projected * (projected.square().mean(-1, keepdim=True) + _TINY).rsqrt()


class WorldReader(nn.Module):
    """Latents in, world tokens out: adds the temporal embedding, arranges, projects. All of it is trained."""

    def __init__(
        self,
        *,
        latent_shape: tuple[int, int, int],
        hidden_size: int,
        embedding_rms: float,
        layout: TokenLayout | None = None,
        max_world_steps: int = 16,
        frames: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            latent_shape: (C, H, W) of one latent frame.
            hidden_size: the language model's width.
            embedding_rms: root mean square over the elements of its embedding vectors.
            max_world_steps: future frames the temporal embedding has room for.
            frames: the latent frames that become tokens, where they are there; None takes all.
        Raises:
            ConfigError: the layout does not tile H x W.
        """
        super().__init__()
        channels, height, width = latent_shape
        self.latent_shape = latent_shape
        self.layout = layout or TokenLayout()
        self.max_world_steps = max_world_steps
        self.frames = None if frames is None else tuple(frames)
        self.temporal_embedding = nn.Embedding(max_world_steps + 1, channels)
        nn.init.normal_(self.temporal_embedding.weight, std=_POSITION_STD)
        self.projector = Projector(
            self.layout.channels(channels), hidden_size, grid=self.layout.grid(height, width), gain=embedding_rms
        )

    def count(self, latent_frames: int, height: int, width: int) -> int:
        """World tokens of one sample of so many latent frames."""
        return self.layout.count(len(self._read(latent_frames)), height, width)

    def arrange(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B N D"]:
        """Standardised latents, frame t marked by temporal embedding t, cut into tokens.

        Raises:
            LatentShapeError: another number of channels, another frame size, or more frames than embeddings.
        """
        _, C, T, H, W = latents.shape
        if self.latent_shape != (C, H, W):
            raise LatentShapeError(
                f"this reader was built for latent frames (C, H, W) of {self.latent_shape}, got {(C, H, W)}. "
                "Use latents of the recipe it was trained on"
            )
        if self.max_world_steps + 1 < T:
            raise LatentShapeError(
                f"{T} latent frames need {T - 1} world steps, but max_world_steps is {self.max_world_steps}"
            )
        times = self.temporal_embedding.weight[:T]
        if self.frames is not None:
            latents, times = latents[:, :, self._read(T)], times[self._read(T)]
        frames = latents.to(times.dtype).permute(0, 2, 3, 4, 1) + times[:, None, None, :]
        return self.layout.arrange(frames)

    def forward(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B N E"]:
        """World tokens of standardised latents, at the scale of the language model's embeddings."""
        return self.projector(self.arrange(latents))

    def _read(self, latent_frames: int) -> list[int]:
        return [frame for frame in range(latent_frames) if self.frames is None or frame in self.frames]
