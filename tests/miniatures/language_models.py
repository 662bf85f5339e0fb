"""A miniature of each language model that was tried: the real classes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from .lm import mini_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 25, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 5, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
_KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
_GEMMA_4 = {**SIZES, "global_head_dim": 16, "num_hidden_layers": 4, "layer_types": 2 * _KINDS["layer_types"]}
_BY_LAYER = {"vocab_size_per_layer_input": 25, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}
_WINDOW = {"use_sliding_window": True, "max_window_layers": 1}
_EYES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8,
}  # fmt: skip


def text_config(architecture: str) -> Any:
    """The config of a miniature; windows are far shorter than a row."""
    config: Any = getattr(transformers, architecture).config_class
    match architecture:
        case "Gemma2ForCausalLM":  # soft-capping included
            return config(**SIZES, **_KINDS, query_pre_attn_scalar=16, attn_implementation="eager")
        case "Gemma3ForCausalLM":
            return config(**SIZES, **_KINDS)
        case "Gemma4ForCausalLM":  # as E2B: an embedding for each layer, keys and values that layers share
            return config(**_GEMMA_4, **_BY_LAYER)
        case "Gemma4UnifiedForCausalLM":
            return config(**_GEMMA_4)
        case "Qwen2ForCausalLM" | "Qwen3ForCausalLM":
            return config(**SIZES, **_WINDOW)
        case _:
            return config(**SIZES)


def tried_lm(architecture: str) -> Any:
    """A miniature of a class that reads text alone."""
    torch.manual_seed(0)
    return getattr(transformers, architecture)(text_config(architecture)).eval()


def save_tried_lm(folder: Path, architecture: str) -> Path:
    """A folder as the Hub has it: of Gemma-4, the multimodal model."""
    model = tried_lm(architecture)
    if architecture == "Gemma4ForCausalLM":
        config = transformers.Gemma4Config(
            text_config=model.config.to_dict(), vision_config=_EYES, audio_config=None, image_token_id=5,
            video_token_id=6, audio_token_id=7,
        )  # fmt: skip
        whole = transformers.Gemma4ForConditionalGeneration(config)
        whole.model.language_model.load_state_dict(model.model.state_dict())
        whole.tie_weights()
        model = whole
    model.save_pretrained(folder)
    mini_tokenizer().save_pretrained(folder)
    return folder
