"""What one batch of prompts gives: the logits of the next token, likelihoods of answers, generated texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ....pipeline.errors import ConfigError
from ...config import AnswerConfig
from ...runs.folder import LoadedRun

MAX_NEW_TOKENS = 16  # of an answer in own words, unless more are asked for or needed


def _steps_of(batch: Mapping[str, Tensor]) -> int | None:
    """The rollout steps in a batch; None for a run without latents."""
    return batch["latents"].shape[2] - 1 if "latents" in batch else None


@torch.no_grad()
def next_token_logits(loaded: LoadedRun, batch: dict[str, Tensor]) -> Float[Tensor, "A V"]:
    """(A, V) logits of the token after each prompt, on the device; one label per prompt marks the place."""
    return loaded.model(**batch, num_world_steps=_steps_of(batch)).logits


@torch.no_grad()
def next_tokens(loaded: LoadedRun, batch: dict[str, Tensor]) -> list[int]:
    """The likeliest token after each prompt."""
    return loaded.model(**batch, num_world_steps=_steps_of(batch)).logits.argmax(-1).tolist()


def log_likelihoods(loaded: LoadedRun, batch: dict[str, Tensor]) -> list[float]:
    """The log-likelihood of each labelled answer, summed over its tokens."""
    return loaded.model.log_likelihood(**batch, num_world_steps=_steps_of(batch)).tolist()


def most_new_tokens(writing: AnswerConfig, longest: int = MAX_NEW_TOKENS) -> int:
    """The most tokens of a generated answer; of at most `longest` where `writing` does not say."""
    return writing.max_new_tokens or longest


def generate_texts(
    loaded: LoadedRun, batch: dict[str, Tensor], writing: AnswerConfig, longest: int = MAX_NEW_TOKENS
) -> list[str]:
    """The answers as text; of at most `longest` tokens where `writing` does not say."""
    if (most := writing.max_new_tokens) is not None:
        prompt = batch["input_ids"].shape[1]
        prompt += loaded.model.reader.count(*batch["latents"].shape[2:]) if "latents" in batch else 0
        if prompt + most > loaded.lm.context:
            raise ConfigError(
                f"an answer of {most:,} tokens does not fit behind {prompt:,} of world and prompt: "
                f"{loaded.lm.weights.source} attends to {loaded.lm.context:,}. Pass fewer --max-new-tokens, at most "
                f"{max(0, loaded.lm.context - prompt):,}"
            )
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != "labels"}
    ids = loaded.model.generate(
        **inputs,
        num_world_steps=_steps_of(batch),
        end_id=sorted(loaded.lm.end_ids),
        max_new_tokens=most_new_tokens(writing, longest),
        temperature=writing.temperature,
        top_p=writing.top_p,
        seed=writing.seed,
    )
    return [loaded.lm.decode(row) for row in ids.tolist()]
