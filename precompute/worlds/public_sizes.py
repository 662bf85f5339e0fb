"""The sizes of public world models, as the configs on the Hub state them: for plans that have no such folder at hand.

Source: diffusers' `scripts/convert_cosmos_to_diffusers.py` (Cosmos-Predict2 Video2World and 2.5, both sizes each) and
`scripts/convert_wan_to_diffusers.py` (both Wan 2.2), the configs of Wan-AI/Wan2.1-I2V-14B-480P-Diffusers and of
nvidia/Cosmos3-Edge and -Nano. What decides no size is left out.
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
_VAE_2_2 = {
    **_VAE,
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
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

_PROJECTED = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 100352}
_COSMOS_14B = {**_COSMOS_2B, "num_layers": 36, "num_attention_heads": 40}
_WAN_A14B = {**_WAN_14B, "image_dim": None, "added_kv_proj_dim": None}
_WAN_5B = {
    **_WAN_A14B,
    "num_attention_heads": 24,
    "in_channels": 48,
    "out_channels": 48,
    "ffn_dim": 14336,
    "num_layers": 30,
}
_EDGE = {
    "hidden_size": 2048,
    "intermediate_size": 9216,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "vocab_size": 131072,
    "hidden_act": "relu2",
    "qk_norm_for_text": False,
    "use_und_k_norm_for_gen": True,
}

PUBLIC_CONFIGS: dict[str, Configs] = {
    "cosmos-predict2-2b": {"vae": _VAE, "transformer": _COSMOS_2B},
    "cosmos-predict2-14b": {"vae": _VAE, "transformer": _COSMOS_14B},
    "cosmos-predict2.5-2b": {"vae": _VAE, "transformer": {**_COSMOS_2B, **_PROJECTED}},
    "cosmos-predict2.5-14b": {"vae": _VAE, "transformer": {**_COSMOS_14B, **_PROJECTED}},
    "cosmos3-edge": {"vae": _VAE_2_2, "transformer": _EDGE},
    "cosmos3-nano": {"vae": _VAE_2_2, "transformer": {}},
    "wan2.1-i2v-480p": {"vae": _VAE, "transformer": _WAN_14B, "image_encoder": _CLIP},
    "wan2.2-ti2v-5b": {"vae": _VAE_2_2, "transformer": _WAN_5B},
    "wan2.2-i2v-a14b": {"vae": _VAE, "transformer": _WAN_A14B, "transformer_2": _WAN_A14B},
}
"""By the name that `--world` takes."""
