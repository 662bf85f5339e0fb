"""Miniature world models of the real classes, randomly initialised: for shapes and parity, not skill."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

TEXT_WIDTH = 24


def mini_vae(seed: int = 0) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(16)],
        latents_std=[0.5 + 0.1 * i for i in range(16)],
    )
    return vae.eval()


def mini_transformer(seed: int = 0, *, padding_mask: bool = False) -> CosmosTransformer3DModel:
    torch.manual_seed(seed)
    transformer = CosmosTransformer3DModel(
        in_channels=17,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_WIDTH,
        adaln_lora_dim=8,
        max_size=(32, 64, 64),
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 3.0, 3.0),
        concat_padding_mask=padding_mask,
        extra_pos_embed_type=None,
    )
    return transformer.eval()


def mini_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)


def save_mini_world(folder: Path, seed: int = 0, *, padding_mask: bool = False) -> Path:
    """A folder in the stock layout: vae/, transformer/, scheduler/."""
    mini_vae(seed).save_pretrained(folder / "vae")
    mini_transformer(seed, padding_mask=padding_mask).save_pretrained(folder / "transformer")
    mini_scheduler().save_pretrained(folder / "scheduler")
    return folder


def add_text_encoder(folder: Path) -> Path:
    """text_encoder/ and tokenizer/ beside the other parts: a T5 of the transformer's text width."""
    torch.manual_seed(1)
    encoder = T5EncoderModel(
        T5Config(vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1)
    )
    encoder.save_pretrained(folder / "text_encoder")
    words = ["<pad>", "</s>", "<unk>", "a", "ball", "falls", "to", "the", "left", "blur"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    vocabulary.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder
