"""The real models by their configurations, with random weights: Cosmos-Predict2-2B, Wan's VAE, Gemma-2-2b.

Each has a toy of the same class beside it, for a CPU. A network's output passes a norm before its last layer, so random
weights give values of ordinary size, and the operations and bytes are those of the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.utils import logging

from theworld.precompute.worlds.public_sizes import PUBLIC_CONFIGS
from theworld.train import find_weights
from theworld.train.reader.public_sizes import GEMMA_2_2B

_CONFIGS = PUBLIC_CONFIGS["cosmos-predict2-2b"]
COSMOS_2B: dict[str, Any] = {**_CONFIGS["transformer"], "rope_scale": (1.0, 3.0, 3.0)}
"""Video2World, 1,956,413,440 parameters. The scale of positions decides no size, so the plan's configuration has none.
Source: diffusers, scripts/convert_cosmos_to_diffusers.py."""
TOY_COSMOS = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "text_embed_dim": 32,
    "adaln_lora_dim": 8,
}
WAN_VAE: dict[str, Any] = {name: value for name, value in _CONFIGS["vae"].items() if "latents" not in name}
"""Of Wan 2.1, with the real means and deviations: the defaults of `AutoencoderKLWan`; 0.5 GB in float32."""
TOY_VAE = {"base_dim": 8}
GEMMA2_2B: dict[str, Any] = {**GEMMA_2_2B, "query_pre_attn_scalar": 256, "max_position_embeddings": 8192}
"""2,614,341,888 parameters."""
TOY_GEMMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
}

_Model = TypeVar("_Model", bound=torch.nn.Module)


def cosmos_2b(**changes: object) -> CosmosTransformer3DModel:
    """Random weights, in torch's default dtype and device.

    Args:
        changes: of the configuration: fewer `num_layers`, say.
    """
    return CosmosTransformer3DModel(**(COSMOS_2B | changes)).eval()


def save_world(folder: Path, device: torch.device, *, is_toy: bool = False) -> int:
    """A folder as the Hub has it, but for the text encoder; returns the parameters of the transformer."""
    changes = TOY_COSMOS if is_toy else {}
    transformer = _random(lambda: cosmos_2b(**changes), torch.bfloat16, device)
    transformer.save_pretrained(folder / "transformer", max_shard_size="5GB")
    vae = _random(lambda: AutoencoderKLWan(**(WAN_VAE | (TOY_VAE if is_toy else {}))), torch.float32, device)
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "Cosmos2VideoToWorldPipeline",
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "CosmosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return sum(parameter.numel() for parameter in transformer.parameters())


def save_language_model(folder: Path, device: torch.device, *, is_toy: bool = False) -> int:
    """A folder as the Hub has it, with the embedded tokenizer of few words; returns the parameters."""
    sizes = GEMMA2_2B | (TOY_GEMMA if is_toy else {})
    config = Gemma2Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = _random(lambda: Gemma2ForCausalLM(config), torch.bfloat16, device)
    logging.disable_progress_bar()  # a bar for two files
    model.save_pretrained(folder, max_shard_size="5GB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((find_weights(None).folder / name).read_bytes())
    return sum(parameter.numel() for parameter in model.parameters())


def _random(make: Callable[[], _Model], dtype: torch.dtype, device: torch.device) -> _Model:
    """Made on the device and in the dtype, which for billions of parameters saves minutes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
