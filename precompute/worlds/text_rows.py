"""Prompt embeddings of T5 and similar encoders: a row of numbers for each token.

Source: `_get_t5_prompt_embeds` of the Cosmos and Wan pipelines: the encoder's last hidden state, zeros after the text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pipeline.errors import ConfigError, WorldModelError
from ...pipeline.files.hub.pretrained import load_pretrained, refusals_of_tokenizer
from ...pipeline.latents.recipe import Recipe
from .text_embeddings import ROWS, PromptReader, Text, TextEmbeddings, stack_rows

MAX_PROMPT_TOKENS = 512
"""The pipelines pad every prompt to this, and the padding changes the result (it is not masked)."""


def load_reader(folder: Path, class_name: str, *, clean: Callable[[str], str], device: str) -> PromptReader:
    """What reads prompts with the text encoder of a folder in the stock layout, which is held as long as this is.

    Args:
        class_name: of the text encoder, in transformers. clean: what is done to a prompt before.
    Raises:
        WorldModelError: the text encoder cannot be loaded.
    """
    import transformers

    tokenizer = load_pretrained(
        transformers.AutoTokenizer, folder, "tokenizer", error=WorldModelError, what="text encoder's tokenizer"
    )
    kind = getattr(transformers, class_name)
    model = load_pretrained(
        kind, folder, "text_encoder", error=WorldModelError, what="text encoder", use_safetensors=True
    )
    # it has dropout: left on, the same prompt would embed differently each time
    model = model.eval().to(device)

    def read(prompt: str, *, negative: bool = False) -> Text:
        del negative  # both are read alike
        rows = _embed(model, tokenizer, clean(prompt)).cpu()
        count = int(rows[0].any(dim=1).nonzero().max()) + 1  # what follows is zeros
        return {ROWS: rows[:, :count]}

    return read


def stack_prompts(text: TextEmbeddings | None) -> tuple[Tensor | None, Tensor | None]:
    """Prompts and the text to steer away from as the pipelines' networks take them: (texts, 512, D) and (1, 512, D).

    Raises:
        WorldModelError: they are no rows, or too many.
    """
    if text is None:
        return None, None
    negative = () if text.negative is None else (text.negative,)
    return stack_rows(text.prompts, MAX_PROMPT_TOKENS), stack_rows(negative, MAX_PROMPT_TOKENS)


def stack_prompts_of(recipe: Recipe, text: TextEmbeddings | None) -> tuple[Tensor | None, Tensor | None]:
    """The same, for a world model that needs no text where the recipe has none.

    Raises:
        ConfigError: the recipe has a prompt, and its embeddings were not loaded.
    """
    prompted = recipe.prompt is not None or recipe.negative_prompt is not None or recipe.prompts == "sample"
    if prompted and text is None:
        raise ConfigError("this recipe has a prompt, and the world model was loaded without its embeddings")
    return stack_prompts(text)


def require_fitting_tokens(ids: list[int], model: Any, tokenizer: Any) -> None:
    """Refuse a prompt that its encoder cannot take.

    Raises:
        ConfigError: the tokenizer is another model's, or the prompt too long.
    """
    if max(ids, default=0) >= (embeddings := int(model.get_input_embeddings().weight.shape[0])):
        raise ConfigError(
            f"the tokenizer in {tokenizer.name_or_path} gives token {max(ids)}, and its text encoder has {embeddings} "
            "embeddings: it is another model's"
        )
    if (length := len(ids)) > MAX_PROMPT_TOKENS:
        raise ConfigError(f"the prompt has {length} tokens; the world model reads {MAX_PROMPT_TOKENS}. Shorten it")


@torch.inference_mode()
def _embed(model: Any, tokenizer: Any, text: str) -> Tensor:
    """(1, 512, D); positions after the text are zero."""
    with refusals_of_tokenizer(ConfigError, Path(tokenizer.name_or_path)):
        ids = tokenizer(text).input_ids
    require_fitting_tokens(ids, model, tokenizer)
    with refusals_of_tokenizer(ConfigError, Path(tokenizer.name_or_path)):
        inputs = tokenizer(text, padding="max_length", max_length=MAX_PROMPT_TOKENS, return_tensors="pt")
    inputs = inputs.to(model.device)
    hidden = model(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    return hidden * inputs.attention_mask.unsqueeze(-1)
