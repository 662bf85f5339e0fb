"""Miniature models of AnyFlow FAR, of the real classes and randomly initialised: for shapes and parity, not skill."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AnyFlowFARTransformer3DModel, FlowMapEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from .world_model import TEXT_WIDTH, mini_vae, save_tokenizer


def mini_anyflow_transformer(seed: int = 0, **changes: object) -> AnyFlowFARTransformer3DModel:
    torch.manual_seed(seed)
    fields = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }
    return AnyFlowFARTransformer3DModel(**(fields | changes)).eval()


def mini_anyflow_scheduler() -> FlowMapEulerDiscreteScheduler:
    """With the shift of the released models."""
    return FlowMapEulerDiscreteScheduler(shift=5.0)


def save_mini_anyflow(folder: Path, seed: int = 0) -> Path:
    """A folder in the layout of AnyFlow-FAR-Wan2.1-1.3B-Diffusers."""
    mini_vae(seed).save_pretrained(folder / "vae")
    mini_anyflow_transformer(seed).save_pretrained(folder / "transformer")
    mini_anyflow_scheduler().save_pretrained(folder / "scheduler")
    torch.manual_seed(1)
    UMT5EncoderModel(
        UMT5Config(vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1)
    ).save_pretrained(folder / "text_encoder")
    save_tokenizer(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "AnyFlowFARPipeline"}))
    return folder
