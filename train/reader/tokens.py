"""From latents to world tokens: temporal embedding, cutting, projector. All that is trained besides LoRA.

Axes:  B sample   C latent channel   T latent frame   S slot of frames that share tokens   H, W latent row, column
       N world token (time-major, then row, then column)   D numbers of one token   E the language model's width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...pipeline.errors import LatentShapeError
from .layouts import PoolName
from .layouts import TokenLayout as TokenLayout
from .resampler import Resampler

_POSITION_STD = 0.5
"""Standard deviation of fresh temporal, row and column embeddings; that of what they are added to is about 1. With the
usual 0.02, "which bin is below the ball" reached .64 after 400 updates on the worldlet, with 0.5 .96 (one seed)."""
_TINY = 1e-6
_RESAMPLER_WIDTH = 512
"""The largest width of a resampler. Its two layers have 6 M parameters; at the width of Gemma-2 2B they would have
127 M."""


def _widen_gain(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Load a scalar gain, too: older readers saved it as one."""
    if f"{prefix}gain" in weights:
        weights[f"{prefix}gain"] = weights[f"{prefix}gain"].reshape(1)


def cut(layout: TokenLayout, values: Float[Tensor, "B S H W C"], coarse: int = 1) -> Float[Tensor, "B N D"]:
    """Cut frames, or slots already pooled to one frame, into tokens: by slot, then row, then column.

    The numbers of a patch are ordered by row, column, channel; those of a `channel` token by row, column.

    Args:
        coarse: how many of the finest rows, and columns, share a token.
    Raises:
        ConfigError: patches do not tile the frame.
    """
    B, S, H, W, C = values.shape
    if layout.name == "channel":
        return values.permute(0, 1, 4, 2, 3).reshape(B, S * C, H * W)
    rows, columns = layout.grid(H, W)
    cells = values.reshape(B, S, rows, layout.side, columns, layout.side, C).permute(0, 1, 2, 4, 3, 5, 6)
    if layout.name == "pooled":
        cells = _summary(cells.flatten(4, 5), 4, layout.pool)
    elif coarse > 1:
        blocks = cells.reshape(B, S, rows // coarse, coarse, columns // coarse, coarse, layout.side**2, C)
        cells = _summary(blocks.transpose(3, 4).flatten(4, 5), 4, layout.pool)
    return cells.reshape(B, S * rows * columns // coarse**2, C if layout.name == "pooled" else C * layout.side**2)


def _summary(values: Tensor, dim: int, pool: PoolName) -> Tensor:
    """Pool along `dim`. Channels are last; for minmax, the first half holds the least, the second half the greatest."""
    if pool == "mean":
        return values.mean(dim)
    if pool == "max":
        return values.amax(dim)
    if pool == "minmax":
        lowest, greatest = values.chunk(2, -1)
        return torch.cat([lowest.amin(dim), greatest.amax(dim)], -1)
    return values.select(dim, values.shape[dim] // 2)


class Projector(nn.Module):
    """Two linear layers to the language model's width, at the scale of its embeddings.

    It adds row and column embeddings: without them "on which side" falls from .99 to .63 (measured on the
    worldlet). The output is RMS-normalised and multiplied by one learned gain, because a language model expects
    embedding vectors of the size it was trained with: Gemma-2's are 48 times larger than a plain projector's.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        grid: tuple[int, int],
        gain: float,
        hidden: int | None = None,
        times: int = 0,
        queries: int = 0,
    ) -> None:
        """
        Args:
            inputs, outputs: numbers of a token (D) and the language model's width (E).
            grid: token rows and columns of a frame.
            gain: RMS of the language model's embedding vectors.
            hidden: width between the two layers; by default the larger of 4 * inputs and outputs.
            times: latent frames that get a temporal embedding here, too; 0 is none. A token of a single channel carries
                only one number of the reader's temporal embedding, which looks like a brighter or darker frame.
            queries: learned queries of a resampler, whose outputs replace the tokens; 0 is no resampler.
        """
        super().__init__()
        if queries:
            hidden = hidden or min(_RESAMPLER_WIDTH, -(-max(inputs, outputs) // 64) * 64)
        hidden = hidden or max(4 * inputs, outputs)
        self.into = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, outputs)
        self.row_embedding = nn.Embedding(grid[0], hidden)
        self.column_embedding = nn.Embedding(grid[1], hidden)
        self.gain = nn.Parameter(torch.tensor([float(gain)]))  # a vector of one: FSDP splits no scalars
        self.register_load_state_dict_pre_hook(_widen_gain)
        nn.init.normal_(self.row_embedding.weight, std=_POSITION_STD)
        nn.init.normal_(self.column_embedding.weight, std=_POSITION_STD)
        self.time_embedding = nn.Embedding(times, hidden) if times else None
        if self.time_embedding is not None:
            nn.init.normal_(self.time_embedding.weight, std=_POSITION_STD)
        self.resampler = Resampler(queries, hidden) if queries else None

    def forward(
        self, tokens: Float[Tensor, "B N D"], slots: Sequence[tuple[int, Sequence[int]]] | None = None
    ) -> Float[Tensor, "B M E"]:
        """World tokens; M is N, but for a resampler the number of its queries.

        Args:
            slots: for each slot, how many of the finest rows share a token, and the frames whose temporal embedding its
                tokens get if this projector has one. None is whole frames at their finest: N is a multiple of rows *
                columns.
        """
        hidden = self.into(tokens)
        if slots is None:
            places = self._places(1)
            hidden = (hidden.unflatten(1, (-1, len(places))) + places).flatten(1, 2)
        else:
            hidden = hidden + torch.cat([self._places_at(coarse, frames) for coarse, frames in slots])
        hidden = nn.functional.gelu(hidden)
        if self.resampler is not None:
            hidden = self.resampler(hidden)
        projected = self.out(hidden)
        return self.gain * projected * (projected.square().mean(-1, keepdim=True) + _TINY).rsqrt()

    def _places(self, coarse: int) -> Float[Tensor, "P hidden"]:
        """An embedding for each position in a frame, row by row; a coarse position gets the mean of those it covers."""
        rows, columns = self.row_embedding.weight, self.column_embedding.weight
        if coarse > 1:
            rows, columns = (weight.unflatten(0, (-1, coarse)).mean(1) for weight in (rows, columns))
        return (rows[:, None] + columns[None]).flatten(0, 1)

    def _places_at(self, coarse: int, frames: Sequence[int]) -> Float[Tensor, "P hidden"]:
        places = self._places(coarse)
        if self.time_embedding is None:
            return places
        return places + self.time_embedding.weight[list(frames)].mean(0)


class WorldReader(nn.Module):
    """World tokens from latents: adds temporal embeddings, cuts into tokens, projects. All of it is trained."""

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
            frames: the latent frames that become tokens, of those a rollout has; None takes all.
        Raises:
            ConfigError: the layout does not tile H x W.
        """
        super().__init__()
        channels = latent_shape[0]
        self.latent_shape = latent_shape
        self.layout = layout or TokenLayout()
        self.max_world_steps = max_world_steps
        self.frames = None if frames is None else tuple(frames)
        self.temporal_embedding = nn.Embedding(max_world_steps + 1, channels)
        nn.init.normal_(self.temporal_embedding.weight, std=_POSITION_STD)
        self.projector = Projector(
            self.layout.numbers(*latent_shape),
            hidden_size,
            grid=self.layout.places(*latent_shape),
            gain=embedding_rms,
            times=max_world_steps + 1 if self.layout.name == "channel" else 0,
            queries=self.layout.queries if self.layout.name == "resampler" else 0,
        )

    def count(self, latent_frames: int, height: int, width: int) -> int:
        """World tokens of one sample of `latent_frames` frames."""
        return self.layout.count(len(self._frames_read(latent_frames)), height, width, channels=self.latent_shape[0])

    def arrange(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B N D"]:
        """Standardised latents with temporal embedding t added to frame t, cut into tokens.

        Frames that share tokens are pooled first; then the mean of their temporal embeddings is added, so that the
        greatest value is one of the latents, not of the embeddings. stride keeps the last frame and its own embedding.

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
            latents, times = latents[:, :, self._frames_read(T)], times[self._frames_read(T)]
        layout = self.layout
        frames = latents.to(times.dtype).permute(0, 2, 3, 4, 1)
        if layout.statistics > 1:
            frames, times = frames.repeat(1, 1, 1, 1, layout.statistics), times.repeat(1, layout.statistics)
        slots = layout.slots(frames.shape[1])
        if all(slot.stop - slot.start == 1 and slot.coarse == 1 for slot in slots):
            return cut(layout, frames + times[:, None, None, :])
        tokens: list[Tensor] = []
        for slot in slots:
            values, marks = frames[:, slot.start : slot.stop], times[slot.start : slot.stop]
            if layout.pool == "stride":
                value, mark = values[:, -1], marks[-1]
            else:
                value, mark = _summary(values, 1, layout.pool), marks.mean(0)
            tokens.append(cut(layout, (value + mark)[:, None], slot.coarse))
        return torch.cat(tokens, 1)

    def forward(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B N E"]:
        """World tokens of standardised latents, at the scale of the language model's embeddings."""
        tokens = self.arrange(latents)
        frames_read = self._frames_read(latents.shape[2])
        if not frames_read:  # nothing to read: no world tokens
            return tokens.new_zeros(len(tokens), 0, self.projector.out.out_features)
        if self.layout.name not in ("hierarchical", "channel"):
            return self.projector(tokens)
        is_strided = self.layout.pool == "stride"
        slots = [
            (slot.coarse, frames_read[slot.stop - 1 if is_strided else slot.start : slot.stop])
            for slot in self.layout.slots(len(frames_read))
        ]
        return self.projector(tokens, slots)

    def _frames_read(self, latent_frames: int) -> list[int]:
        return [frame for frame in range(latent_frames) if self.frames is None or frame in self.frames]
