"""The generation tower of a Cosmos 3 transformer: it denoises latents beside keys and values that a prompt left behind.

Cosmos 3 is two towers of the same depth. The understanding tower reads the prompt and sees neither noise nor image
(`cosmos3_text.py`); the generation tower looks, layer by layer, at its keys and values and at its own. So the first is
run once for a prompt, and only the second is held here: 42 % of Edge's weights. The modules are the loaded ones, so
what differs between checkpoints (norms, activation) is theirs.

Axes:  B sample   T latent frame   N token of a clip   L token of a prompt   D width   K head of keys   E its width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import Cosmos3OmniTransformer
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import get_3d_mrope_ids_vae_tokens
from jaxtyping import Float, Int
from torch import Tensor, nn

Rope = tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]


class PromptKeys(NamedTuple):
    """What the understanding tower leaves behind of one prompt, layer by layer."""

    keys: Float[Tensor, "layers L K E"]
    values: Float[Tensor, "layers L K E"]


class SamePrompts(NamedTuple):
    """The samples of a batch whose prompts are equally long, which attend together."""

    rows: Int[Tensor, " _"] | None
    """Their numbers in the batch; None is all of them."""
    keys: Float[Tensor, "layers prompts L K E"]
    """One prompt for all of them, or one for each."""
    values: Float[Tensor, "layers prompts L K E"]


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands beside the latents of a batch in each forward, the same from step to step."""

    rope: Rope
    groups: tuple[SamePrompts, ...]


class GenerationTower(nn.Module):
    """The generation half of a loaded `Cosmos3OmniTransformer`, whose modules it keeps; it lets go of the others."""

    def __init__(self, stock: Cosmos3OmniTransformer, *, temporal_stride: int) -> None:
        """
        Args:
            temporal_stride: video frames of a latent frame after the first, for the positions.
        """
        super().__init__()
        config: Any = stock.config
        self.dtype: torch.dtype = stock.dtype
        self.layers = nn.ModuleList(GenerationLayer(layer) for layer in stock.layers)
        self.proj_in, self.proj_out, self.norm_out = stock.proj_in, stock.proj_out, stock.norm_moe_gen
        self.time_proj, self.time_embedder = stock.time_proj, stock.time_embedder
        # not a part of this module: it turns positions between forwards, when offloaded weights are elsewhere
        self._turns_of = stock.rotary_emb.forward
        self._patch = int(config.latent_patch_size)
        self._time_scale = float(config.timestep_scale)
        self._margin = int(config.unified_3d_mrope_temporal_modality_margin)
        self._follows_fps = bool(config.enable_fps_modulation)
        self._positions = {
            "reset_spatial_indices": bool(config.unified_3d_mrope_reset_spatial_ids),
            "base_fps": float(config.base_fps),
            "temporal_compression_factor": temporal_stride,
        }

    def beside(
        self,
        prompts: Sequence[PromptKeys],
        shape: tuple[int, int, int],
        *,
        batch: int,
        fps: float,
        device: torch.device,
    ) -> Beside:
        """What stands beside a batch's latents: the keys and values of its prompts, and the tokens' positions.

        A prompt's length shifts the positions, so samples are grouped by it; no prompt is padded, no key masked.

        Args:
            prompts: one for all samples, or one for each. shape: frames, rows and columns of the latents.
            fps: video frames per second, which stretches the positions in time.
            device: of the forward. Between forwards, weights may be elsewhere.
        """
        dtype = self.dtype
        lengths = [prompt.keys.shape[1] for prompt in prompts] * (batch if len(prompts) == 1 else 1)
        ropes = {length: self._rope(length, shape, fps, device) for length in dict.fromkeys(lengths)}
        rope = tuple(torch.cat([ropes[length][part] for length in lengths]) for part in (0, 1))
        if len(set(lengths)) == 1:
            members: list[tuple[Tensor | None, Sequence[PromptKeys]]] = [(None, prompts)]
        else:
            rows = {length: [i for i, other in enumerate(lengths) if other == length] for length in ropes}
            members = [
                (torch.tensor(row_numbers, device=device), [prompts[i] for i in row_numbers])
                for row_numbers in rows.values()
            ]
        groups = tuple(
            SamePrompts(
                row_numbers,
                torch.stack([prompt.keys.to(device, dtype) for prompt in texts], dim=1),
                torch.stack([prompt.values.to(device, dtype) for prompt in texts], dim=1),
            )
            for row_numbers, texts in members
        )
        return Beside((rope[0], rope[1]), groups)

    def forward(
        self, latents: Float[Tensor, "B C T H W"], timestep: float, observed_frames: int, beside: Beside
    ) -> Float[Tensor, "B C unseen H W"]:
        """The velocity, from clean latents to noise, of the frames that are not seen.

        Args:
            latents: the first `seen` frames are clean, the others noisy; of an odd height or width, zeros are added.
            timestep: of the noisy frames, 0 to 1000. The network is told no time of the seen ones.

        Source: `Cosmos3OmniTransformer.forward`.
        """
        height, width = latents.shape[3:]
        tokens: Tensor = self.proj_in(self._patches(latents.to(self.dtype)))
        noisy = observed_frames * self._grid(height, width)[0] * self._grid(height, width)[1]
        tokens = torch.cat([tokens[:, :noisy], tokens[:, noisy:] + self._time(timestep)], dim=1)
        for number, layer in enumerate(self.layers):
            texts = [(group.rows, group.keys[number], group.values[number]) for group in beside.groups]
            tokens = layer(tokens, beside.rope, texts)
        return self._latents(self.proj_out(self.norm_out(tokens[:, noisy:])), height, width)

    def compile_blocks(self) -> None:
        """Have the layers compiled at the first forward; all share one piece of code."""
        for layer in self.layers:
            layer.compile(dynamic=False)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self._patch), -(-width // self._patch)

    def _rope(self, length: int, shape: tuple[int, int, int], fps: float, device: torch.device) -> Rope:
        frames, height, width = shape
        tall, wide = self._grid(height, width)
        offset = length + self._margin
        positions, _ = get_3d_mrope_ids_vae_tokens(
            frames, tall, wide, offset, fps=fps if self._follows_fps else None, **self._positions
        )
        return self._turns_of(position_ids=positions.unsqueeze(1).to(device), device=device, dtype=self.dtype)

    def _time(self, timestep: float) -> Float[Tensor, "1 D"]:
        times = torch.full((1,), timestep, device=self.proj_in.weight.device) * self._time_scale
        dtype = self.time_embedder.linear_1.weight.dtype  # float32, as the stock class keeps it
        return self.time_embedder(self.time_proj(times).to(dtype)).to(self.dtype)

    def _patches(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B N patch"]:
        (height, width), patch = latents.shape[3:], self._patch
        tall, wide = self._grid(height, width)
        padded = nn.functional.pad(latents, (0, wide * patch - width, 0, tall * patch - height))
        cells = padded.unflatten(4, (wide, patch)).unflatten(3, (tall, patch))
        return cells.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3)

    def _latents(self, patches: Float[Tensor, "B N patch"], height: int, width: int) -> Float[Tensor, "B C T H W"]:
        tall, wide = self._grid(height, width)
        cells = patches.unflatten(1, (-1, tall, wide)).unflatten(4, (self._patch, self._patch, -1))
        latents = cells.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return latents[..., :height, :width]


class GenerationLayer(nn.Module):
    """The generation half of a `Cosmos3VLTextMoTDecoderLayer`."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        attention = stock.self_attn
        self.norm, self.norm_mlp, self.mlp = (
            stock.input_layernorm_moe_gen,
            stock.post_attention_layernorm_moe_gen,
            stock.mlp_moe_gen,
        )
        self.to_q, self.to_k, self.to_v = attention.add_q_proj, attention.add_k_proj, attention.add_v_proj
        self.norm_q, self.norm_k, self.to_out = attention.norm_added_q, attention.norm_added_k, attention.to_add_out
        self._head_width = int(attention.head_dim)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        rope: Rope,
        texts: Sequence[tuple[Int[Tensor, " _"] | None, Tensor, Tensor]],
    ) -> Float[Tensor, "B N D"]:
        """
        Args:
            texts: as of `SamePrompts`, of this layer.
        """
        normed = self.norm(tokens)
        queries, keys, values = (
            project(normed).unflatten(2, (-1, self._head_width)) for project in (self.to_q, self.to_k, self.to_v)
        )
        queries, keys = rotate(self.norm_q(queries), rope), rotate(self.norm_k(keys), rope)
        mixed = torch.empty_like(queries)
        for rows, text_keys, text_values in texts:
            if rows is None:
                mixed = _attend(queries, keys, values, text_keys, text_values)
            else:
                mixed[rows] = _attend(queries[rows], keys[rows], values[rows], text_keys, text_values)
        tokens = tokens + self.to_out(mixed.flatten(2))
        return tokens + self.mlp(self.norm_mlp(tokens))


def rotate(heads: Float[Tensor, "B N K E"], rope: Rope) -> Float[Tensor, "B N K E"]:
    """Queries or keys turned by their tokens' positions. Source: `Cosmos3AttnProcessor`."""
    cos, sin = (part.unsqueeze(2) for part in rope)
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def attention(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False) -> Tensor:
    """Attention over heads in the layout (B, N, heads, E), several of the queries' to one of the keys'."""
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    return nn.functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=causal, enable_gqa=True
    ).transpose(1, 2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, text_keys: Tensor, text_values: Tensor) -> Tensor:
    """All tokens of a clip look at its whole prompt and at each other: text first, nothing masked."""
    batch = len(queries)
    keys = torch.cat([text_keys.expand(batch, -1, -1, -1), keys], dim=1)
    values = torch.cat([text_values.expand(batch, -1, -1, -1), values], dim=1)
    return attention(queries, keys, values)
