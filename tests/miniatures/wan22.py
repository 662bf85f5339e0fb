"""Miniature models of Wan 2.2, of the real classes and randomly initialised: for shapes and parity, not skill."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from .world_model import TEXT_WIDTH, mini_vae, mini_wan_scheduler, save_tokenizer


def mini_wan22_vae(seed: int = 0) -> AutoencoderKLWan:
    """The patchified, residual autoencoder of TI2V 5B: 48 channels, 16x16 pixels a cell."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.01 * i for i in range(48)],
        latents_std=[0.5 + 0.02 * i for i in range(48)],
    )
    return vae.eval()


def mini_wan22_transformer(seed: int = 0, *, per_token: bool = False) -> WanTransformer3DModel:
    """Of TI2V 5B where times are per token, else one of the two of I2V A14B; neither takes CLIP's tokens."""
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        in_channels=48 if per_token else 36,
        out_channels=48 if per_token else 16,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=64,
    )
    return transformer.eval()


def save_mini_ti2v(folder: Path, seed: int = 0) -> Path:
    """A folder in the layout of Wan2.2-TI2V-5B-Diffusers, whose pipeline is named for text-to-video."""
    mini_wan22_vae(seed).save_pretrained(folder / "vae")
    mini_wan22_transformer(seed, per_token=True).save_pretrained(folder / "transformer")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"transformer_2": [None, None], "boundary_ratio": None, "expand_timesteps": True}
    return _add_text_and_index(folder, "WanPipeline", index)


def save_mini_two_stage(folder: Path, seed: int = 0) -> Path:
    """A folder in the layout of Wan2.2-I2V-A14B-Diffusers."""
    mini_vae(seed).save_pretrained(folder / "vae")
    mini_wan22_transformer(seed).save_pretrained(folder / "transformer")
    mini_wan22_transformer(seed + 1).save_pretrained(folder / "transformer_2")
    mini_wan_scheduler().save_pretrained(folder / "scheduler")
    index = {"image_encoder": [None, None], "boundary_ratio": 0.9, "expand_timesteps": False}
    return _add_text_and_index(folder, "WanImageToVideoPipeline", index)


def _add_text_and_index(folder: Path, pipeline: str, index: dict[str, object]) -> Path:
    torch.manual_seed(1)
    UMT5EncoderModel(
        UMT5Config(vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1)
    ).save_pretrained(folder / "text_encoder")
    save_tokenizer(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **index}))
    return folder
