"""A miniature V-JEPA 2 of the real class, randomly initialised: for shapes and parity, not skill."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import VJEPA2Config, VJEPA2Model

SIDE, CHANNELS = 64, 32
"""Pixels of its pictures, in 4x4 tokens."""


def mini_vjepa2(seed: int = 0, **changes: object) -> VJEPA2Model:
    torch.manual_seed(seed)
    sizes = {"crop_size": SIDE, "frames_per_clip": 16, "hidden_size": CHANNELS, "num_attention_heads": 4}
    sizes |= {"num_hidden_layers": 2, "pred_hidden_size": 24, "pred_num_attention_heads": 3, "mlp_ratio": 2.0}
    sizes |= {"pred_num_hidden_layers": 2, "pred_num_mask_tokens": 3, "initializer_range": 0.2}
    model = VJEPA2Model(VJEPA2Config(**(sizes | changes)))
    with torch.no_grad():  # zero at first, which would hide a wrong one
        model.predictor.embeddings.mask_tokens.normal_(generator=torch.Generator().manual_seed(seed))
    return model.eval()


def save_mini_vjepa2(folder: Path, seed: int = 0, **changes: object) -> Path:
    """As on the Hub: a config, weights, and the config of a processor, without subfolders."""
    mini_vjepa2(seed, **changes).save_pretrained(folder)
    processor = {"video_processor_type": "VJEPA2VideoProcessor", "crop_size": {"height": SIDE, "width": SIDE}}
    processor |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor))
    return folder
