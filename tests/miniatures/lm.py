"""A miniature Gemma-2 with a word-level tokenizer, and a store whose latents show where a blob is: for stage two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Punctuation, WhitespaceSplit
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.store.folder import LatentStore, create_store

WORDS = tuple(
    "question answer where is will the ball be land now left right upper lower corner : ? . user model".split()  # noqa: SIM905
)
SMALL_TRAINING = {"batch_size": 4, "lora_rank": 2, "patch": 2, "max_world_steps": 4, "device": "cpu"}
"""Settings of a training of seconds, on what is saved here."""

PLACES = ("left", "right", "upper right corner")

RECIPE = Recipe(world="sha256:" + "0" * 64, height=32, width=48, rollout_steps=3)
"""Latents of shape (16, 4, 4, 6)."""
SPEC = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)


def mini_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    table = {word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *words])}
    inner = Tokenizer(WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([WhitespaceSplit(), Punctuation()])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def mini_lm(
    seed: int = 0, *, hidden_size: int = 32, layers: int = 2, words: Sequence[str] = WORDS
) -> Gemma2ForCausalLM:
    """Stock Gemma-2, soft-capping included, with random weights."""
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=4 + len(words),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=4096,
        initializer_range=0.3,  # a frozen head of stock size (0.02) could never be sure of a word
        sliding_window=4096,
        attn_implementation="eager",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Gemma2ForCausalLM(config).eval()


def save_mini_lm(folder: Path, seed: int = 0, *, words: Sequence[str] = WORDS) -> Path:
    mini_lm(seed, words=words).save_pretrained(folder)
    mini_tokenizer(words).save_pretrained(folder)
    return folder


def blob_latents(place: int, seed: int) -> np.ndarray:
    """(16, 4, 4, 6): noise, and from the second frame on a blob at one of three places."""
    latents = np.random.default_rng(seed).normal(0, 0.3, (16, 4, 4, 6)).astype(np.float32)
    row, column = ((2, 0), (2, 5), (0, 5))[place]
    latents[:4, 1:, row, column] += 3.0
    return latents


def save_mini_store(cache: Path, *, images: int = 12, recipe: Recipe = RECIPE) -> tuple[LatentStore, Path]:
    """A store and its questions beside it: `images` pictures, the last third of them for the test split."""
    cache.mkdir(parents=True, exist_ok=True)
    store = create_store(cache, recipe, SPEC, label="mini", shard_size=8)
    lines, sources = [], []
    for first in range(0, images, 8):
        with store.new_shard() as shard:
            for number in range(first, min(first + 8, images)):
                picture = f"picture {number}".encode()
                name = f"{number}.png"
                (cache / name).write_bytes(picture)
                shard.add(key_of_bytes(picture), blob_latents(number % 3, number))
                sources.append((name, key_of_bytes(picture)))
                asked = {"image": name, "split": "test" if number >= images * 2 // 3 else "train"}
                lines.append(
                    {
                        **asked,
                        "id": f"{number}-land",
                        "question": "where will the ball land?",
                        "answer": PLACES[number % 3],
                        "choices": list(PLACES),
                        "type": "temporal",
                    }
                )
                lines.append({**asked, "id": f"{number}-now", "question": "where is the ball now?", "answer": "left"})
            shard.commit({})
    store.record_sources(sources)
    questions = cache / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return store, questions
