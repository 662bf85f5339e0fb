"""A miniature Gemma-3 that sees images: the real classes with random weights, and files as its repositories have."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from .lm import WORDS

_SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
IMAGE_SIDE, IMAGE_TOKENS = 16, 4
_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{{ 'model' if turn.role == 'assistant' else turn.role }} : "
    "{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{{ '<start_of_image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %} .\n"
    "{% endfor %}{% if add_generation_prompt %}model : {% endif %}"
)


def eyes_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    table = {word: number for number, word in enumerate([*_SPECIAL, *WORDS])}
    inner = Tokenizer(WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    if chat:
        tokenizer.chat_template = _TEMPLATE
    return tokenizer


def eyes_processor() -> Gemma3ImageProcessorPil:
    return Gemma3ImageProcessorPil(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE})


def eyes_lm(seed: int = 0) -> Gemma3ForConditionalGeneration:
    torch.manual_seed(seed)
    text = Gemma3TextConfig(
        vocab_size=len(_SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=16,  # so that it cuts, in tests
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=4,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=4,
        eoi_token_index=5,
        image_token_index=6,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros in a fresh one
    return model


def save_eyes_lm(folder: Path, seed: int = 0) -> Path:
    eyes_lm(seed).save_pretrained(folder)
    eyes_tokenizer().save_pretrained(folder)
    eyes_processor().save_pretrained(folder)
    return folder
