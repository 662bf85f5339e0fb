"""Operations of the networks that families share, counted from their configs. Loads no torch.

Axes:  T latent frame   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...pipeline.files.limits import MAX_LAYERS, MAX_MODEL_NUMBER
from ...pipeline.latents.recipe import Recipe

TEXT_TOKENS = 512
"""Of a prompt, as the pipelines pad it."""


@dataclass(frozen=True, slots=True)
class Operations:
    """Of one input; a multiply and an add are two."""

    encode: float
    """In float32, whatever the recipe computes in."""
    predict: float = 0.0

    @property
    def total(self) -> float:
        """Of both parts."""
        return self.encode + self.predict


def text_tokens(recipe: Recipe, *, no_text: int = 0) -> list[int]:
    """Tokens of text that each forward of one denoise step sees: one number, and with guidance two.

    Args:
        no_text: tokens that stand for no text.
    """
    has_text = recipe.prompt is not None or recipe.prompts == "sample"
    texts = [TEXT_TOKENS if has_text else no_text]
    if recipe.guidance > 1:
        texts.append(no_text if recipe.negative_prompt is None else TEXT_TOKENS)
    return texts


def cosmos_forward_flops(config: Mapping[str, Any], frames: int, height: int, width: int, text_tokens: int) -> float:
    """One lean forward of a `CosmosTransformer3DModel` (cosmos/forward.py); a multiply and an add are two.

    Args:
        frames, height, width: of the latent. text_tokens: 0 is no text, and no cross-attention.
    """
    depth, tall, wide = config["patch_size"]
    n = (frames // depth) * (height // tall) * (width // wide)
    d = config["num_attention_heads"] * config["attention_head_dim"]
    a = config["adaln_lora_dim"]
    attention = 8 * n * d**2 + 4 * n**2 * d
    cross_attention = 4 * n * d**2 + 4 * n * text_tokens * d + 4 * text_tokens * config["text_embed_dim"] * d
    if text_tokens <= 1:  # of one row only the value is computed, of none nothing
        cross_attention = 2 * text_tokens * d * (config["text_embed_dim"] + d)
    mlp = 4 * config["mlp_ratio"] * n * d**2
    modulation = (3 if text_tokens else 2) * 8 * frames * a * d  # of frames, not of tokens
    channels = config["in_channels"] + bool(config["concat_padding_mask"]) + config["out_channels"]
    projections = 2 * n * d * channels * depth * tall * wide + 6 * frames * a * d
    return config["num_layers"] * (attention + cross_attention + mlp + modulation) + projections


def wan_forward_flops(
    config: Mapping[str, Any], frames: int, height: int, width: int, *, image_tokens: int = 0
) -> float:
    """One forward of a `WanTransformer3DModel`, which always sees a text.

    Args:
        frames, height, width: of the latent. image_tokens: of CLIP, beside the text's.
    """
    if config["num_layers"] > MAX_LAYERS:
        raise ValueError("more layers than a transformer has")
    deep, tall, wide = config["patch_size"]
    n = (frames // deep) * (height // tall) * (width // wide)
    d = config["num_attention_heads"] * config["attention_head_dim"]
    attended = TEXT_TOKENS + image_tokens
    attention = 8 * n * d**2 + 4 * n**2 * d
    cross_attention = 4 * n * d**2 + 4 * attended * d**2 + 4 * n * attended * d
    layers = config["num_layers"] * (attention + cross_attention + 4 * n * d * config["ffn_dim"])
    text = 2 * TEXT_TOKENS * (config["text_dim"] * d + d**2)
    channels = config["in_channels"] + config["out_channels"]
    return layers + text + 2 * n * d * channels * deep * tall * wide


def wan_encode_flops(config: Mapping[str, Any], height: int, width: int, frames: int) -> float:
    """Encoding a clip with an `AutoencoderKLWan`, whose first frame is a chunk of its own.

    Args:
        height, width: of the frames, in pixels. frames: 1 + a multiple of the temporal stride.
    """
    if config["num_res_blocks"] > MAX_LAYERS:
        raise ValueError("more layers than an autoencoder has")
    patch = config.get("patch_size") or 1  # pixels that enter as channels, in Wan 2.2's
    height, width = height // patch, width // patch
    base, widths = config["base_dim"], config["dim_mult"]
    dims = [base * factor for factor in (1, *widths)]
    z = 2 * config["z_dim"]
    cells = frames * height * width
    total = 2.0 * 27 * 3 * patch**2 * dims[0] * cells
    for stage, (width_in, width_out) in enumerate(pairwise(dims)):
        for block in range(config["num_res_blocks"]):
            start = width_in if block == 0 else width_out
            total += 2 * 27 * (start + width_out) * width_out * cells + (
                2 * start * width_out * cells if start != width_out else 0
            )
        if stage == len(widths) - 1:
            break
        height, width = height // 2, width // 2
        total += 2 * 9 * width_out * width_out * frames * height * width
        if config["temperal_downsample"][stage]:  # diffusers' spelling
            later_frames = (frames - 1) // 2
            total += 2 * 3 * width_out * width_out * later_frames * height * width
            frames = 1 + later_frames
        cells = frames * height * width
    top, area = dims[-1], height * width
    total += 2 * 2 * 27 * 2 * top * top * cells + (2 * 4 * top * top + 4 * area * top) * cells
    return total + 2 * 27 * top * z * cells + 2 * z * z * cells


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether no number is so large, and no list so long, that an estimate would take as long as the work."""
    lists = [value for value in config.values() if isinstance(value, list)]
    numbers = [value for values in (config.values(), *lists) for value in values if isinstance(value, int | float)]
    return all(len(each) <= 100 for each in lists) and all(abs(number) <= MAX_MODEL_NUMBER for number in numbers)
