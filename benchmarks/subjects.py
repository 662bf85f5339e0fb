"""What the training benchmarks train: a model, rollouts and texts of stated sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from theworld.train import TheWorld, TokenLayout, WorldReader, embedding_rms, find_weights, load_language_model
from theworld.train.data.batches import Example
from theworld.train.language.lm import LanguageModel, load_tokenizer_only
from theworld.train.language.lora import add_lora
from theworld.train.language.weights import Weights

PROMPT, ANSWER, STEPS = 14, 2, 8
"""Tokens of a prompt behind <bos>'s place, of an answer; rollout steps."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Sizes, and how long a measurement of them is."""

    side: int
    """Latent cells."""
    patch: int
    layers: int | None = None
    """Of a random Gemma-2 of width 512 with 32,000 words; None is the embedded language model."""
    queries: int | None = None
    """World tokens of a resampler; None is a token a patch of each frame."""
    images: int = 1
    """Of an update."""
    updates: int = 4
    """Of a turn; the first is not counted."""
    rounds: int = 3

    @property
    def world_tokens(self) -> int:
        """Of an image."""
        return self.queries or (1 + STEPS) * (self.side // self.patch) ** 2

    def told(self) -> str:
        """In words."""
        lm = "embedded language model" if self.layers is None else f"random Gemma-2, {self.layers} layers, 32,000 words"
        return f"{lm}, {1 + STEPS} latent frames of {self.side}x{self.side}, {self.world_tokens} world tokens"


SETTINGS = {
    "worldlet": Setting(side=8, patch=4, images=8, updates=13, rounds=7),
    "wide": Setting(side=28, patch=4, layers=6),
    "long": Setting(side=28, patch=2, layers=4),
    "wide latents": Setting(side=28, patch=4, queries=64, images=4, updates=13),
}


def world_model(setting: Setting) -> tuple[LanguageModel, TheWorld]:
    """Untrained, with LoRA on all linear layers; the same each time."""
    torch.manual_seed(0)
    lm = _language_model(setting)
    reader = WorldReader(
        latent_shape=(16, setting.side, setting.side),
        hidden_size=lm.hidden_size,
        embedding_rms=embedding_rms(lm.model),
        layout=_layout(setting),
    )
    lm = add_lora(lm, rank=16, alpha=32, dropout=0.0)
    return lm, TheWorld(lm.model, reader, num_world_steps=STEPS)


def _layout(setting: Setting) -> TokenLayout:
    if setting.queries is None:
        return TokenLayout(name="patch", patch=setting.patch)
    return TokenLayout(name="resampler", patch=setting.patch, queries=setting.queries)


def rollouts(setting: Setting, images: int) -> Tensor:
    """(images, 16, 1 + STEPS, side, side), float16 as in a store."""
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(images, 16, 1 + STEPS, setting.side, setting.side, generator=drawn).half()


def examples(images: int, texts: int) -> list[Example]:
    """So many texts about each image, image by image."""
    words = torch.randint(3, 300, (images, texts, PROMPT + ANSWER), generator=torch.Generator().manual_seed(2)).tolist()
    return [
        Example(key_of(image), (1, *ids[:PROMPT]), tuple(ids[PROMPT:])) for image, of in enumerate(words) for ids in of
    ]


def key_of(image: int) -> str:
    """A key as stores have them."""
    return f"{image:032x}"


def _language_model(setting: Setting) -> LanguageModel:
    embedded = find_weights(None)
    if setting.layers is None:
        return load_language_model(embedded, device=torch.device("cpu"), dtype=torch.float32)
    config = Gemma2Config(
        vocab_size=32_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=setting.layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=128,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    return LanguageModel(model, load_tokenizer_only(embedded).tokenizer, Weights(Path(), "random", "sha256:0"))
