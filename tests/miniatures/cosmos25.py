"""Miniatures of Cosmos-Predict2.5: its network, its scheduler, and Qwen2.5-VL to read prompts."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import CosmosTransformer3DModel, UniPCMultistepScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.miniatures.world_model import TEXT_WIDTH, mini_transformer, mini_vae

LAYERS, WIDTH = 2, 20
RAW_WIDTH = LAYERS * WIDTH
"""Of a token, before it is projected to TEXT_WIDTH."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{{ part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What that of Qwen2.5-VL does with texts."""


def mini_transformer25(seed: int = 0, *, padding_mask: bool = False, **changes: object) -> CosmosTransformer3DModel:
    fields = {
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": RAW_WIDTH,
        "encoder_hidden_states_channels": TEXT_WIDTH,
    }
    return mini_transformer(seed, padding_mask=padding_mask, **(fields | changes))


def mini_unipc() -> UniPCMultistepScheduler:
    """With the config of the released checkpoints."""
    return UniPCMultistepScheduler(
        use_karras_sigmas=True,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        sigma_max=200.0,
        sigma_min=0.01,
    )


def save_mini_world25(folder: Path, seed: int = 0) -> Path:
    """A folder in the stock layout, without a text encoder."""
    mini_vae(seed).save_pretrained(folder / "vae")
    mini_transformer25(seed).save_pretrained(folder / "transformer")
    mini_unipc().save_pretrained(folder / "scheduler")
    return folder


def add_qwen(folder: Path, *, padding_side: str = "right") -> Path:
    """text_encoder/ and tokenizer/ beside the other parts."""
    torch.manual_seed(2)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 48,
            "hidden_size": WIDTH,
            "intermediate_size": 32,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 600,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
    words = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "a", "ball", "falls", "left", "system", "user", "blur"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        padding_side=padding_side,
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder
