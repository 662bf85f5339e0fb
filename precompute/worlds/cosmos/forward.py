"""The forward of a Cosmos-Predict2 or 2.5 transformer, without the fifth of its operations that change nothing.

Three things are left out. Modulation (shift, scale and gate of each block) depends on a frame's noise level alone: the
network computes it for every token, here it is computed once for each latent frame. Cross-attention to no text
adds exact zeros. And to a text of one row, which is no text for Predict2.5, each token attends alike. NVIDIA's own code
does the first as well. The weights stay where the loaded modules have them.

Values equal those of `CosmosTransformer3DModel.forward`: in bfloat16 to the bit; in float32 to the bit on the CPUs
tried, and to a few units in the last place wherever a matrix product rounds by its number of rows.

Axes:  B sample   T latent frame   S token of one frame   N token, T * S   D width   R row of the modulation
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from ....pipeline.errors import WorldModelError

LEAST_ROWS = 64
"""Rows that a float32 product of the modulation has at least, by repetition. For fewer than about 16 rows, MKL sums in
another order than for the thousands of rows of the network's own forward, so the last bits would differ."""

Rope = tuple[Tensor, Tensor]


class LeanTransformer(nn.Module):
    """A loaded `CosmosTransformer3DModel`, whose modules and weights it uses, with the forward of this file."""

    def __init__(self, stock: CosmosTransformer3DModel, *, projects_text: bool = False) -> None:
        """
        Args:
            projects_text: it is Cosmos-Predict2.5's, whose projection of text is left out here: `text` is projected.
        Raises:
            WorldModelError: it has parts that the network of this family does not have.
        """
        super().__init__()
        config = stock.config
        if bool(config["use_crossattn_projection"]) != projects_text:
            this, other = ("2", "2.5") if projects_text else ("2.5", "2")
            raise WorldModelError(
                f"this is a Cosmos-Predict{this} transformer, by its text ({'not ' * projects_text}projected first); "
                f"the engine of Cosmos-Predict{other} does not run it"
            )
        if config["img_context_dim_in"]:
            raise WorldModelError(
                "this is a Cosmos-Transfer transformer (it attends to an image beside the text); only Cosmos-Predict "
                "models, which begin with an image and a text, are supported"
            )
        depth, self._tall, self._wide = config["patch_size"]
        if depth != 1:
            raise WorldModelError(
                f"this transformer packs {depth} latent frames into one token, and its noise level is one frame's; "
                "only Cosmos-Predict2 and 2.5 are supported"
            )
        self.dtype: torch.dtype = stock.dtype
        self.rope, self.patch_embed, self.time_embed = stock.rope, stock.patch_embed, stock.time_embed
        self.positions = stock.learnable_pos_embed
        self.blocks = nn.ModuleList(LeanBlock(block) for block in stock.transformer_blocks)
        self.norm_out, self.proj_out = stock.norm_out, stock.proj_out

    def forward(
        self,
        hidden: Float[Tensor, "B C T H W"],
        timestep: Float[Tensor, "B 1 T 1 1"],
        text: Float[Tensor, "B L D"] | None,
        *,
        mask: Float[Tensor, "B M T H W"],
        fps: float | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """The predicted flow.

        Args:
            timestep: of each frame, the same for all samples. text: None is no text, where the stock network is given
                an embedding of zeros. mask: channels beside the latents: observed frames, and padding where it has one.
        """
        hidden = torch.cat([hidden, mask], dim=1)
        frames, height, width = hidden.shape[2:]
        rope: Rope = self.rope(hidden, fps=fps)
        positions = self.positions(hidden) if self.positions is not None else None
        tokens: Tensor = self.patch_embed(hidden).flatten(1, 3)
        # by frame and sample as the stock forward has it: few rows, whose last bits depend on their number
        lora, embedded = (rows[:frames] for rows in self.time_embed(tokens, timestep.flatten()))
        activated = nn.functional.silu(embedded)
        if self.dtype == torch.float32:
            repeats = math.ceil(LEAST_ROWS / frames)
            lora, activated = lora.repeat(repeats, 1), activated.repeat(repeats, 1)
        for block in self.blocks:
            tokens = block(tokens, activated, lora, rope, text, positions, frames)
        shift, scale = modulation(self.norm_out, activated, lora[:, : 2 * tokens.shape[-1]], frames, parts=2)
        tokens = self.proj_out(_modulated(self.norm_out, tokens, shift, scale))
        # out of the patches, in the stock forward's order of axes
        patches = tokens.unflatten(2, (self._tall, self._wide, 1, -1))
        patches = patches.unflatten(1, (frames, height // self._tall, width // self._wide))
        return patches.permute(0, 7, 1, 6, 2, 4, 3, 5).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def compile_blocks(self) -> None:
        """Have the blocks compiled at the first forward; all share one piece of code."""
        for block in self.blocks:
            block.compile(dynamic=False)


class LeanBlock(nn.Module):
    """A `CosmosTransformerBlock`: self-attention, cross-attention where there is text, and feed-forward."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.norm1, self.attn1 = stock.norm1, stock.attn1
        self.norm2, self.attn2 = stock.norm2, stock.attn2
        self.norm3, self.ff = stock.norm3, stock.ff

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        activated: Float[Tensor, "R D"],
        lora: Float[Tensor, "R D_by_3"],
        rope: Rope,
        text: Float[Tensor, "B L width"] | None,
        positions: Float[Tensor, "B N D"] | None,
        frames: int,
    ) -> Float[Tensor, "B N D"]:
        """
        Args:
            activated, lora: what the modulation is made of, a row for each frame; rows beyond `frames` repeat them.
        """
        if positions is not None:
            tokens = tokens + positions
        shift, scale, gate = modulation(self.norm1, activated, lora, frames, parts=3)
        change = self.attn1(_modulated(self.norm1, tokens, shift, scale), image_rotary_emb=rope)
        tokens = tokens + _gated(gate, change)
        if text is not None:
            shift, scale, gate = modulation(self.norm2, activated, lora, frames, parts=3)
            if text.shape[1] == 1:  # attention to a single row is that row's value, whoever asks
                change = self.attn2.to_out[0](self.attn2.to_v(text)).expand(-1, tokens.shape[1], -1)
            else:
                change = self.attn2(_modulated(self.norm2, tokens, shift, scale), encoder_hidden_states=text)
            tokens = tokens + _gated(gate, change)
        shift, scale, gate = modulation(self.norm3, activated, lora, frames, parts=3)
        change = self.ff(_modulated(self.norm3, tokens, shift, scale))
        return tokens + _gated(gate, change)


def modulation(norm: Any, activated: Tensor, lora: Tensor, frames: int, *, parts: int) -> tuple[Tensor, ...]:
    """What a norm is modulated with, each (T, 1, D): shift and scale, and the gate of the branch behind it.

    Source: `CosmosAdaLayerNormZero` and `CosmosAdaLayerNorm`.
    """
    rows = norm.linear_2(norm.linear_1(activated)) + lora
    return rows[:frames].unsqueeze(1).chunk(parts, dim=-1)


def _modulated(norm: Any, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (_by_frame(norm.norm(tokens), len(scale)) * (1 + scale) + shift).flatten(1, 2)


def _gated(gate: Tensor, change: Tensor) -> Tensor:
    return (gate * _by_frame(change, len(gate))).flatten(1, 2)


def _by_frame(tokens: Float[Tensor, "B N D"], frames: int) -> Float[Tensor, "B T S D"]:
    return tokens.unflatten(1, (frames, -1))
