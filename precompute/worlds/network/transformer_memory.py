"""How much memory the forward of a video transformer takes, from its config and the shape of its latents alone.

Counted is what one block holds at the moment that takes most, as diffusers' modules and our engines compute it; blocks
follow one another, so one is enough. Attention counts as a fused kernel. Loads no torch.

Sizes:  N tokens of a sample   D width   W bytes of a number of the transformer: 4, or 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arithmetic import TEXT_TOKENS

_F = 4  # bytes of a float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """What a forward is given."""

    batch: int
    frames: int
    """Latent frames, as are height and width."""
    height: int
    width: int
    number_bytes: int
    """W."""
    guided: bool = False
    """Whether there are two forwards a step, one after the other."""
    texts: int = 0
    """Prompts that are held; 0 is no text."""
    kept: int = 0
    """Clips in float32 that a loop keeps from step to step, beside the noise, the noisy and the clean one."""

    def cells(self, channels: int) -> int:
        """Numbers of latents with so many channels."""
        return self.batch * channels * self.frames * self.height * self.width


def cosmos_parameters(config: Mapping[str, Any]) -> int:
    """Of a `CosmosTransformer3DModel` without a bias, as those of Cosmos-Predict2 and 2.5 are.

    The projection of the text is left out: no worker holds it.
    """
    d, head, lora = _width(config), config["attention_head_dim"], config["adaln_lora_dim"]
    attention = 8 * d * d - 2 * d * d + 2 * d * config["text_embed_dim"] + 4 * head
    block = attention + 2 * int(config["mlp_ratio"] * d) * d + 3 * (d * lora + lora * 3 * d)
    patch = math.prod(config["patch_size"])
    ends = (config["in_channels"] + bool(config["concat_padding_mask"]) + config["out_channels"]) * patch * d
    time = d * d + d * 3 * d + d
    positions = 0
    if config.get("extra_pos_embed_type") == "learnable":
        positions = d * sum(map(int.__floordiv__, config["max_size"], config["patch_size"]))
    return config["num_layers"] * block + ends + time + d * lora + lora * 2 * d + positions


def cosmos_forward_memory(config: Mapping[str, Any], forward: Forward) -> int:
    """Bytes that a step of Cosmos-Predict2 or 2.5 takes (predict2.py, predict25.py and forward.py of cosmos/)."""
    d, w = _width(config), forward.number_bytes
    tokens = _tokens(config, forward)
    has_positions = config.get("extra_pos_embed_type") == "learnable"
    # input, what is modulated of it, query, key, value and the turned key; three float32 of them while it is turned
    attention = 6 * w + 3 * _F
    mlp = 4 * w + 2 * config["mlp_ratio"] * w  # with what attention made, which the block still holds
    by_number = max(attention + w * has_positions, mlp) + w * has_positions
    rope = 2 * _F * tokens * config["attention_head_dim"]
    latents = forward.cells(config["out_channels"])
    # noise, the noisy latents and the clean ones; what the transformer takes of them, with its masks
    outer = 3 * _F * latents + 2 * w * latents + 2 * w * forward.cells(2)
    outer += _F * latents * (forward.guided + forward.kept)
    text = forward.texts * TEXT_TOKENS * config["text_embed_dim"] * (_F + w)
    return int(by_number * d * tokens * forward.batch) + rope + outer + text


def wan_parameters(config: Mapping[str, Any]) -> int:
    """Of a `WanTransformer3DModel`, with what takes CLIP's tokens of an image, if it does."""
    d, mlp, image = _width(config), config["ffn_dim"], config.get("image_dim")
    attention = 4 * (d * d + d) + 2 * d
    block = 2 * attention + 2 * d * mlp + mlp + d + 6 * d + 2 * d * bool(config["cross_attn_norm"])
    if added := config.get("added_kv_proj_dim"):
        block += 2 * (added * d + d) + d
    patch = math.prod(config["patch_size"])
    time = config["freq_dim"] * d + d + d * d + d + 6 * d * d + 6 * d
    text = config["text_dim"] * d + d + d * d + d
    picture = 2 * image + image * image + image + image * d + d + 2 * d if image else 0
    ends = config["in_channels"] * patch * d + d + (d + 1) * config["out_channels"] * patch + 2 * d
    return config["num_layers"] * block + time + text + picture + ends


def wan_forward_memory(config: Mapping[str, Any], forward: Forward, *, time_per_token: bool = False) -> int:
    """Bytes that a step of Wan takes (wan/engine.py).

    Args:
        time_per_token: whether there is a modulation of each token, one row of them for all samples (wan/wan22.py).
    """
    d, w = _width(config), forward.number_bytes
    tokens = _tokens(config, forward)
    is_cast = w < _F
    # at a block's end: its input, what it made of it, the norm, both branches, and their sum in float32
    branch = 5 * w + (3 if is_cast else 2) * _F
    # query, key and value beside what they are made of; a half of one in float32, three times, while it is turned
    attention = 6 * w + 6
    mlp = 4 * w + 2 * w * config["ffn_dim"] / d
    rope = 2 * _F * tokens * config["attention_head_dim"]
    latents = forward.cells(config["out_channels"])
    context = forward.batch * (TEXT_TOKENS + 257 * bool(config.get("image_dim"))) * d * w  # text, CLIP's tokens
    # noise, latents, three of the solver, the condition; what the transformer takes
    outer = 5 * _F * latents + (_F + w) * forward.cells(config["in_channels"]) + w * latents * forward.guided
    text = forward.texts * TEXT_TOKENS * config["text_dim"] * (_F + w)
    most = max(branch, attention, mlp) * forward.batch
    if time_per_token:
        # time and its projection; of a block, six modulations in float32, and one of them plus one for a moment
        row = 7 * w + 6 * _F
        # at a block's start all of them are cast, and only its input is there
        most = max(row + _F + most, row + 6 * _F * is_cast + w * forward.batch)
    return int(most * d * tokens) + rope + outer + context + text


def generation_forward_memory(config: Mapping[str, Any], forward: Forward, text_tokens: int) -> int:
    """Bytes that a step of Cosmos 3's generation tower takes (cosmos/cosmos3.py, cosmos/cosmos3_forward.py).

    Args:
        config: of its transformer, with no default left out. text_tokens: of a prompt.
    """
    d, w, head = config["hidden_size"], forward.number_bytes, config["head_dim"]
    query_width, shared = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    patch = config["latent_patch_size"]
    tokens = forward.frames * math.ceil(forward.height / patch) * math.ceil(forward.width / patch)
    # input and its norm, query, key and value
    held = w * (2 * d + query_width + 2 * shared)
    # the query while it is turned: normed, by its cosine, its halves in turn; or what attention takes and makes
    attention = held + max(4.5 * w * query_width + w * query_width, w * 2 * query_width + 2 * w * shared)
    # what attention made and its sum with the input, which a norm takes; then the branch
    branch = (2 if config["hidden_act"] == "relu2" else 3) * config["intermediate_size"]
    mlp = held + w * (query_width + 2 * d + branch)
    rope = 2 * w * tokens * head * forward.batch
    kept = 2 * w * config["num_hidden_layers"] * shared * text_tokens * forward.texts
    outer = forward.cells(config["latent_channel"]) * (_F * (6 + forward.guided) + 2 * w)
    return int(max(attention, mlp) * tokens * forward.batch) + rope + kept + outer


def clip_parameters(config: Mapping[str, Any]) -> int:
    """Of transformers' `CLIPVisionModel`; a config leaves out what is the class's default."""
    d, mlp = config.get("hidden_size", 768), config.get("intermediate_size", 3072)
    side = config.get("image_size", 224) // config.get("patch_size", 32)
    block = 4 * (d * d + d) + 2 * d * mlp + mlp + d + 4 * d
    ends = config.get("num_channels", 3) * config.get("patch_size", 32) ** 2 * d + (side * side + 2) * d + 4 * d
    return config.get("num_hidden_layers", 12) * block + ends


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _tokens(config: Mapping[str, Any], forward: Forward) -> int:
    depth, tall, wide = config["patch_size"]
    return (forward.frames // depth) * math.ceil(forward.height / tall) * math.ceil(forward.width / wide)
