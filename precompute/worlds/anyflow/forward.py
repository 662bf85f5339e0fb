"""The forward of an AnyFlow FAR transformer, one chunk of latent frames after another, and what it keeps of the past.

The network sees the past as keys and values of each layer: its last chunks in full, and all chunks before them ("far")
in patches of four times the area. Diffusers computes the keys and values of the whole past anew after each chunk. But a
far chunk sees nothing that comes later, so its keys and values never change again: here they are computed once, when
the chunk becomes far, and kept. After a chunk only the last ones are computed anew, since what they see has moved
farther away. Keys and values of the text, and the modulation, which is one row for all tokens, are computed once too.
The weights stay where the loaded modules have them.

At a denoise step diffusers fills queries, keys and values with zeros to a multiple of 128 tokens, and masks none of
them, so the softmax counts zero keys (transformer_anyflow_far.py). NVIDIA's own code, with which the weights were made,
fills nothing there (NVlabs/AnyFlow, far/models/transformer_far_wan_model.py), and neither does this file, unless it is
asked to, for comparison.

Axes:  B sample   C channel   T latent frame   H, W latent row, column   N token   L text token   D width   A head
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any

import torch
from diffusers import AnyFlowFARTransformer3DModel
from diffusers.models.transformers.transformer_anyflow_far import apply_rotary_emb
from jaxtyping import Complex, Float
from torch import Tensor, nn

FILLED = 128
"""Tokens that diffusers fills up to a multiple of."""

KeysValues = tuple[Tensor, Tensor]
"""Of one layer, each (B, A, N, D / A); keys are turned to their positions."""


@dataclass(slots=True)
class Memory:
    """What the network keeps of a batch's past under one text. Each chunk that becomes far adds its frames in large
    patches; the rest stays as large as the last chunks."""

    text: list[KeysValues]
    """Of each layer."""
    past: list[KeysValues | None]
    """Of each layer: tokens of the far chunks, then of the last ones. None before the first chunk."""
    far_chunks: int = 0
    far_tokens: int = 0

    @property
    def numbers(self) -> int:
        """In the keys and values of the past."""
        return sum(keys.numel() + values.numel() for keys, values in filter(None, self.past))


class CausalTransformer:
    """A loaded `AnyFlowFARTransformer3DModel`, whose modules and weights it uses, with the forward of this file."""

    def __init__(self, stock: AnyFlowFARTransformer3DModel, *, zero_keys: bool = False) -> None:
        """
        Args:
            zero_keys: as diffusers has it, for comparison with it.
        """
        self._stock: Any = stock.eval().requires_grad_(False)
        self._zero_keys = zero_keys
        config = stock.config
        self._patch, self._far_patch = config["patch_size"][1], config["compressed_patch_size"][1]
        self._recent_chunks = config["full_chunk_limit"] - 1
        self._tells_interval = config["deltatime_type"] == "t-r"
        self.dtype: torch.dtype = stock.dtype

    def begin(self, text: Float[Tensor, "texts L width"]) -> Memory:
        """A memory of no past.

        Args:
            text: one for all samples, or one for each.
        """
        stock = self._stock
        embedded = stock.condition_embedder.text_embedder(text.to(stock.proj_out.weight.device, self.dtype))
        layers = [_keys_values(block.attn2, embedded) for block in stock.blocks]
        return Memory(text=layers, past=[None] * len(layers))

    def positions(self, frames: int, far_frames: int, like: Tensor) -> Complex[Tensor, "1 1 N half"]:
        """Where the tokens of a clip stand, those of its first frames in large patches.

        Args:
            frames: of the clip. like: latents of its height and width.
        """
        height, width = like.shape[3:]
        shapes = {
            "total_frames": frames,
            "num_compressed_frames": far_frames,
            "full_frame_shape": (height // self._patch, width // self._patch),
            "compressed_frame_shape": (height // self._far_patch, width // self._far_patch),
        }
        return self._stock.rope(far_cfg=shapes, device=like.device)["query"]

    def predict(
        self,
        chunk: Float[Tensor, "B C T H W"],
        time: float,
        next_time: float,
        memory: Memory,
        positions: Complex[Tensor, "1 1 all_N half"],
    ) -> Float[Tensor, "B C T H W"]:
        """The mean flow of a chunk between two times, 1000 to 0, given the past.

        Args:
            positions: of the clip up to this chunk's end.
        """
        stock, (frames, height, width) = self._stock, chunk.shape[2:]
        tokens = self.tokens(chunk, time, next_time, memory, positions)
        embedded, _ = self._modulation(time, next_time)
        shift, scale = (stock.scale_shift_table + embedded).chunk(2, dim=1)
        tokens = (stock.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        side = self._patch  # now out of the patches
        rows = stock.proj_out(tokens).unflatten(1, (frames, height // side, width // side))
        patches = rows.unflatten(-1, (side, side, -1))
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def tokens(
        self,
        chunk: Float[Tensor, "B C T H W"],
        time: float,
        next_time: float,
        memory: Memory,
        positions: Complex[Tensor, "1 1 all_N half"],
        *,
        blocks: int | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The tokens of a chunk behind so many blocks, None is all; the rest is as of `predict`."""
        stock = self._stock
        tokens = _patches(stock.patch_embedding, chunk.to(self.dtype))
        _, modulation = self._modulation(time, next_time)
        turns = positions[:, :, -tokens.shape[1] :]
        filled = -tokens.shape[1] % FILLED if self._zero_keys else 0
        for block, past, text in islice(zip(stock.blocks, memory.past, memory.text, strict=True), blocks):
            tokens, _ = _through(block, tokens, modulation, turns, past, [tokens.shape[1]], text, filled)
        return tokens

    def remember(self, memory: Memory, chunks: Sequence[Float[Tensor, "B C _ H W"]]) -> None:
        """Take the past into the memory: the newest chunk, and what has become far since the last time.

        Args:
            chunks: all of the past, clean, the oldest first.
        """
        stock = self._stock
        far, recent = chunks[: -self._recent_chunks], chunks[-self._recent_chunks :]
        parts = [_patches(stock.far_patch_embedding, chunk.to(self.dtype)) for chunk in far[memory.far_chunks :]]
        became_far = sum(part.shape[1] for part in parts)
        parts += [_patches(stock.patch_embedding, chunk.to(self.dtype)) for chunk in recent]
        ends = list(accumulate(part.shape[1] for part in parts))
        tokens = torch.cat(parts, dim=1)
        far_frames = sum(chunk.shape[2] for chunk in far)
        positions = self.positions(far_frames + sum(chunk.shape[2] for chunk in recent), far_frames, chunks[0])
        _, modulation = self._modulation(0.0, 0.0)
        turns, kept = positions[:, :, memory.far_tokens :], memory.far_tokens
        for layer, block in enumerate(stock.blocks):
            past = memory.past[layer]
            far_past = None if past is None else _first(past, kept)
            tokens, memory.past[layer] = _through(block, tokens, modulation, turns, far_past, ends, memory.text[layer])
        memory.far_chunks, memory.far_tokens = len(far), kept + became_far

    def _modulation(self, time: float, next_time: float) -> tuple[Float[Tensor, "1 1 D"], Float[Tensor, "1 6 D"]]:
        """The embedding of a step, and what it modulates the blocks with: the same for all frames and samples."""
        weight = self._stock.proj_out.weight
        times = (time, time - next_time if self._tells_interval else next_time)
        now, then = (torch.tensor([[at]], device=weight.device, dtype=torch.float32) for at in times)
        embedded, rows = self._stock.condition_embedder.forward_timestep(now, then, weight, 1)
        return embedded, rows.unflatten(2, (6, -1))[:, 0]


def _through(
    block: Any,
    tokens: Float[Tensor, "B N D"],
    modulation: Float[Tensor, "1 6 D"],
    turns: Complex[Tensor, "1 1 N half"],
    past: KeysValues | None,
    ends: Sequence[int],
    text: KeysValues,
    filled: int = 0,
) -> tuple[Float[Tensor, "B N D"], KeysValues]:
    """Tokens behind an `AnyFlowTransformerBlock`, and the keys and values that they saw, their own included.

    Args:
        past: what all of them see. ends: of each chunk among the tokens; each sees those before it, and itself.
        filled: zero keys that they see beside.
    """
    rows = (block.scale_shift_table + modulation.float()).chunk(6, dim=1)
    shift, scale, gate, ff_shift, ff_scale, ff_gate = rows
    normed = (block.norm1(tokens.float()) * (1 + scale) + shift).type_as(tokens)
    attention = block.attn1
    query = apply_rotary_emb(_queries(attention, normed).to(tokens.dtype), turns)  # a float32 norm gives float32
    keys, values = _keys_values(attention, normed)
    keys_values = (apply_rotary_emb(keys.to(tokens.dtype), turns), values)
    if past is not None:
        keys_values = (torch.cat([past[0], keys_values[0]], dim=2), torch.cat([past[1], keys_values[1]], dim=2))
    before = keys_values[0].shape[2] - ends[-1]
    parts = [
        _attend(query[:, :, start:end], _filled(_first(keys_values, before + end), filled))
        for start, end in pairwise([0, *ends])
    ]
    change = _out(attention, torch.cat(parts, dim=2))
    tokens = (tokens.float() + change * gate).type_as(tokens)
    normed = block.norm2(tokens.float()).type_as(tokens)
    tokens = tokens + _out(block.attn2, _attend(_queries(block.attn2, normed), text))
    normed = (block.norm3(tokens.float()) * (1 + ff_scale) + ff_shift).type_as(tokens)
    return (tokens.float() + block.ffn(normed).float() * ff_gate).type_as(tokens), keys_values


def _patches(embedding: Any, chunk: Tensor) -> Float[Tensor, "B N D"]:
    return embedding(chunk).flatten(2).transpose(1, 2)


def _queries(attention: Any, tokens: Tensor) -> Float[Tensor, "B A N each"]:
    return _heads(attention, attention.norm_q(attention.to_q(tokens)))


def _keys_values(attention: Any, tokens: Tensor) -> KeysValues:
    keys = _heads(attention, attention.norm_k(attention.to_k(tokens)))
    return keys, _heads(attention, attention.to_v(tokens))


def _heads(attention: Any, rows: Tensor) -> Tensor:
    return rows.unflatten(2, (attention.heads, -1)).transpose(1, 2)


def _attend(query: Tensor, keys_values: KeysValues) -> Tensor:
    keys, values = (each.expand(len(query), -1, -1, -1) for each in keys_values)  # one text for all samples
    return nn.functional.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype))


def _out(attention: Any, heads: Tensor) -> Tensor:
    return attention.to_out[0](heads.transpose(1, 2).flatten(2))


def _first(keys_values: KeysValues, tokens: int) -> KeysValues:
    return keys_values[0][:, :, :tokens], keys_values[1][:, :, :tokens]


def _filled(keys_values: KeysValues, zeros: int) -> KeysValues:
    return (nn.functional.pad(keys_values[0], (0, 0, 0, zeros)), nn.functional.pad(keys_values[1], (0, 0, 0, zeros)))
