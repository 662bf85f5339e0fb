"""The sizes of public world models, as the configs on the Hub state them: for plans that have no such folder at hand.

Source: diffusers' `scripts/convert_cosmos_to_diffusers.py` (both Cosmos-Predict2 Video2World models) and the configs
of Wan-AI/Wan2.1-I2V-14B-480P-Diffusers. What decides no size is left out.
"""

from __future__ import annotations

from .family import Configs

_VAE = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
_COSMOS_2B = {
    "in_channels": 17,
    "out_channels": 16,
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": [128, 240, 240],
    "patch_size": [1, 2, 2],
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}
_WAN_14B = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "image_dim": 1280,
    "added_kv_proj_dim": 5120,
}
_CLIP = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}

PUBLIC_CONFIGS: dict[str, Configs] = {
    "cosmos-predict2-2b": {"vae": _VAE, "transformer": _COSMOS_2B},
    "cosmos-predict2-14b": {
        "vae": _VAE,
        "transformer": {**_COSMOS_2B, "num_layers": 36, "num_attention_heads": 40},
    },
    "wan2.1-i2v-480p": {"vae": _VAE, "transformer": _WAN_14B, "image_encoder": _CLIP},
}
"""By the name that `--world` takes."""
