"""Miniature world models of the real classes, randomly initialised: for shapes and parity, not skill."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

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


def mini_vae22(seed: int = 0) -> AutoencoderKLWan:
    """As Wan 2.2's: patches of 2x2 pixels enter it, so that a latent cell stands for 16x16."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=48,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.01 * i for i in range(48)],
        latents_std=[0.5 + 0.01 * i for i in range(48)],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return vae.eval()


def mini_transformer(seed: int = 0, *, padding_mask: bool = False, **changes: object) -> CosmosTransformer3DModel:
    torch.manual_seed(seed)
    fields = {
        "in_channels": 17,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": TEXT_WIDTH,
        "adaln_lora_dim": 8,
        "max_size": (32, 64, 64),
        "patch_size": (1, 2, 2),
        "rope_scale": (1.0, 3.0, 3.0),
        "concat_padding_mask": padding_mask,
        "extra_pos_embed_type": None,
    }
    return CosmosTransformer3DModel(**(fields | changes)).eval()


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
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    words = ["<pad>", "</s>", "<unk>", "a", "ball", "falls", "to", "the", "left", "blur"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    vocabulary.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")


def mini_wan_transformer(seed: int = 0) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        in_channels=36,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        image_dim=16,
        added_kv_proj_dim=24,
        rope_max_seq_len=64,
    )
    return transformer.eval()


def mini_clip(seed: int = 0) -> tuple[CLIPVisionModel, CLIPImageProcessorPil]:
    torch.manual_seed(seed)
    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    return encoder.eval(), CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def mini_wan_scheduler(euler: bool = False) -> UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler:
    """What Wan 2.1's folders hold, with the shift of its 480p model; or the other one its pipeline takes."""
    if euler:
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def save_mini_wan(folder: Path, seed: int = 0) -> Path:
    """A folder in the layout of Wan 2.1's image-to-video models, text encoder and all."""
    encoder, processor = mini_clip(seed)
    mini_vae(seed).save_pretrained(folder / "vae")
    mini_wan_transformer(seed).save_pretrained(folder / "transformer")
    mini_wan_scheduler().save_pretrained(folder / "scheduler")
    encoder.save_pretrained(folder / "image_encoder")
    processor.save_pretrained(folder / "image_processor")
    torch.manual_seed(1)
    UMT5EncoderModel(
        UMT5Config(vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1)
    ).save_pretrained(folder / "text_encoder")
    save_tokenizer(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanImageToVideoPipeline"}))
    return folder
