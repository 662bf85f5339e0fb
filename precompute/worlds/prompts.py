"""Prompts: embedded once, before workers start, so that no worker holds a text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from ...pipeline.errors import ConfigError, WorldModelError
from ...pipeline.files.atomic import made_folder, publish, writing
from ...pipeline.files.plain import open_file
from ...pipeline.files.pretrained import load_pretrained, refusals_of_tokenizer
from ...pipeline.latents.recipe import Recipe
from ...pipeline.store.folder import PROMPTS
from .family import TextEncoder
from .text_embeddings import MAX_EMBEDDING_BYTES, TextEmbeddings, damaged_embedding, require_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_PROMPT_TOKENS = 512
"""The pipelines pad every prompt to this, and the padding changes the result (it is not masked)."""


def embed_prompts(folder: Path, recipe: Recipe, encoder: TextEncoder | None) -> TextEmbeddings | None:
    """Embeddings of all the text that a recipe's rollouts see, or None where they see none. Loads the text encoder,
    uses it once and lets it go.

    Args:
        folder: a world model in the stock layout, with `text_encoder/` and `tokenizer/`.
        encoder: the family's; None reads no text.
    Raises:
        ConfigError: a prompt is too long.
        WorldModelError: the text encoder cannot be loaded.
    """
    if encoder is None or "prompt" in recipe.traits.fields_without_meaning or recipe.rollout_steps == 0:
        return None
    texts = {"prompt": recipe.prompt, "negative": recipe.negative_prompt}
    if not encoder.empty_is_free:
        texts["prompt"] = recipe.prompt or ""
        if recipe.guidance > 1.0:
            texts["negative"] = recipe.negative_prompt or ""
    clean_texts = {name: encoder.clean(text) for name, text in texts.items() if text is not None}
    if not clean_texts:
        return None
    model, tokenizer = _load(folder, encoder, "cpu")
    embeddings = {name: _embed(model, tokenizer, text) for name, text in clean_texts.items()}
    return TextEmbeddings(embeddings.get("prompt"), embeddings.get("negative"))


def embed_sample_prompts(
    store: Path, folder: Path, prompts: Sequence[str], encoder: TextEncoder, device: str
) -> dict[str, str]:
    """Write the embedding of every sample's prompt to the store; existing ones stay.

    Args:
        folder: a world model in the stock layout. device: where its text encoder runs, for as long as this takes.
    Returns:
        The prompts that cannot be embedded -> why.
    Raises:
        WorldModelError: the text encoder cannot be loaded.
        StoreError: the store cannot be written.
    """
    refused: dict[str, str] = {}
    with writing(store), made_folder(store, store / PROMPTS):
        pass
    if missing := [prompt for prompt in dict.fromkeys(prompts) if not prompt_file(store, prompt).exists()]:
        model, tokenizer = _load(folder, encoder, device)
        for prompt in missing:
            try:
                embedding = _embed(model, tokenizer, encoder.clean(prompt)).cpu()
            except ConfigError as error:
                refused[prompt] = str(error)
                continue
            tokens = int(embedding[0].any(dim=1).nonzero().max()) + 1  # what follows is zeros
            content = save({"prompt": embedding[:, :tokens].contiguous()}, metadata={"prompt": prompt})
            with writing(store):
                publish(store / "tmp", prompt_file(store, prompt), content, within=store)
        del model
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return refused


def load_prompt_embeddings(store: Path, prompts: Sequence[str], negative: Tensor | None) -> TextEmbeddings:
    """The embeddings that `embed_sample_prompts` wrote, one row per prompt, padded to 512 tokens.

    Raises:
        WorldModelError: one is not there.
    """
    rows: list[Tensor] = []
    for prompt in prompts:
        path = prompt_file(store, prompt)
        try:
            open_file(path, MAX_EMBEDDING_BYTES, within=store).close()  # a pipe would block the library
            with safe_open(path, framework="pt") as file:
                embedding = require_embedding(file.get_tensor("prompt"))
            if len(embedding) > 1 or embedding.shape[1] > MAX_PROMPT_TOKENS:
                raise ValueError(f"it has the shape {tuple(embedding.shape)}, which is not that of one prompt")
            if rows and embedding.shape[2] != rows[0].shape[2]:
                raise ValueError(f"its vectors have {embedding.shape[2]} numbers, and others {rows[0].shape[2]}")
        except (OSError, ValueError, SafetensorError) as error:
            raise damaged_embedding(path, f"the embedding of the prompt {prompt!r}", error) from error
        rows.append(pad(embedding, (0, 0, 0, MAX_PROMPT_TOKENS - embedding.shape[1])))
    return TextEmbeddings(torch.cat(rows), negative)


def prompt_file(store: Path, prompt: str) -> Path:
    """File of a store that holds the embedding of a sample's prompt."""
    return store / PROMPTS / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"


def _load(folder: Path, encoder: TextEncoder, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import transformers

    tokenizer = load_pretrained(
        transformers.AutoTokenizer, folder, "tokenizer", error=WorldModelError, what="text encoder's tokenizer"
    )
    kind = getattr(transformers, encoder.class_name)
    model = load_pretrained(
        kind, folder, "text_encoder", error=WorldModelError, what="text encoder", use_safetensors=True
    )
    # it has dropout: left on, the same prompt would embed differently each time
    return model.eval().to(device), tokenizer


@torch.inference_mode()
def _embed(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """(1, 512, D); positions after the text are zero, as in the pipelines' `_get_t5_prompt_embeds`."""
    with refusals_of_tokenizer(ConfigError, Path(tokenizer.name_or_path)):
        ids = tokenizer(text).input_ids
    table: Any = encoder.get_input_embeddings()
    if max(ids, default=0) >= (embeddings := int(table.weight.shape[0])):
        raise ConfigError(
            f"the tokenizer in {tokenizer.name_or_path} gives token {max(ids)}, and its text encoder has {embeddings} "
            "embeddings: it is another model's"
        )
    length = len(ids)
    if length > MAX_PROMPT_TOKENS:
        raise ConfigError(f"the prompt has {length} tokens; the world model reads {MAX_PROMPT_TOKENS}. Shorten it")
    with refusals_of_tokenizer(ConfigError, Path(tokenizer.name_or_path)):
        inputs = tokenizer(text, padding="max_length", max_length=MAX_PROMPT_TOKENS, return_tensors="pt")
    inputs = inputs.to(encoder.device)
    hidden = encoder(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    return hidden * inputs.attention_mask.unsqueeze(-1)
