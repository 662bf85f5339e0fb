"""A miniature Cosmos 3 of the real classes, randomly initialised: for shapes and parity, not skill."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import Cosmos3OmniPipeline, Cosmos3OmniTransformer, UniPCMultistepScheduler
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .world_model import mini_vae22

CHANNELS = 48
EDGE = {
    "hidden_act": "relu2",
    "qk_norm_for_text": False,
    "use_und_k_norm_for_gen": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000_000,  # a whole number, and the largest that a config may state
}
"""In what Edge's transformer differs from Nano's, beside sizes. Source: its published config."""
MINI = {
    "head_dim": 16,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "patch_latent_dim": 4 * CHANNELS,
    "rope_axes_dim": [4, 2, 2],
    "vocab_size": 64,
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
WORDS = (
    *("<unk>", "system", "user", "assistant", "You", "are", "a", "helpful", "who", "will", "generate", "videos"),
    *("from", "give", "prompt", "The", "This", "video", "is", "not", "of", "and", "long", "seconds", "FPS"),
    *("resolution", "x", "ball", "falls", "to", "the", "left", "blur", "rolls", ".", *"0123456789"),
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def mini_cosmos3(seed: int = 0, **changes: object) -> Cosmos3OmniTransformer:
    torch.manual_seed(seed)
    transformer = Cosmos3OmniTransformer(**(MINI | changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():  # norms of ones would hide which is which
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return transformer


def mini_unipc(**changes: object) -> UniPCMultistepScheduler:
    """What NVIDIA's folders hold."""
    fields = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "use_karras_sigmas": True,
        "sigma_max": 200.0,
        "sigma_min": 0.147,
    }
    return UniPCMultistepScheduler(**(fields | changes))


def chat_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *WORDS]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    vocabulary.add_special_tokens([AddedToken(token) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token=SPECIAL[0], eos_token=SPECIAL[2], unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def mini_pipeline(
    transformer: Cosmos3OmniTransformer, scheduler: UniPCMultistepScheduler | None = None, **settings: bool
) -> Cosmos3OmniPipeline:
    """The stock pipeline, without its guardrail."""
    pipeline = Cosmos3OmniPipeline(
        transformer=transformer,
        text_tokenizer=chat_tokenizer(),
        vae=mini_vae22(),
        scheduler=scheduler or mini_unipc(),
        enable_safety_checker=False,
        **settings,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_mini_cosmos3(
    folder: Path, seed: int = 0, *, index: dict[str, object] | None = None, **changes: object
) -> Path:
    """A folder in the layout of NVIDIA's; `changes` are of the transformer's config."""
    mini_vae22(seed).save_pretrained(folder / "vae")
    mini_cosmos3(seed, **changes).save_pretrained(folder / "transformer")
    mini_unipc().save_pretrained(folder / "scheduler")
    chat_tokenizer().save_pretrained(folder / "text_tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Cosmos3OmniPipeline", **(index or {})}))
    return folder
