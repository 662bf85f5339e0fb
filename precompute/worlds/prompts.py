"""Prompts: read once, before workers start, so that no worker holds what reads them. How is the family's affair."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ...pipeline.errors import ConfigError
from ...pipeline.files.atomic import made_folder, publish, writing
from ...pipeline.latents.recipe import Recipe
from ...pipeline.store.folder import PROMPTS
from .family import TextForm
from .text_embeddings import (
    PROMPT_BRANCH,
    Text,
    TextEmbeddings,
    damaged_embedding,
    read_texts,
    require_like,
    text_bytes,
)


def embed_prompts(folder: Path, recipe: Recipe, form: TextForm | None) -> TextEmbeddings | None:
    """Embeddings of all the text that a recipe's rollouts see, or None where they see none. Loads what reads prompts,
    uses it once and lets it go.

    Args:
        folder: a world model in the stock layout, with the form's parts.
        form: the family's; None reads no text.
    Raises:
        ConfigError: a prompt is too long.
        WorldModelError: what reads prompts cannot be loaded.
    """
    if form is None or "prompt" in recipe.traits.fields_without_meaning or recipe.rollout_steps == 0:
        return None
    prompt, negative = recipe.prompt, recipe.negative_prompt
    if not form.empty_is_free:
        prompt = prompt or ""
        negative = (negative or "") if recipe.guidance > 1.0 else None
    if prompt is None and negative is None:
        return None
    read = form.load(folder, recipe, device="cpu")
    return TextEmbeddings(
        () if prompt is None else (read(prompt),), None if negative is None else read(negative, negative=True)
    )


def embed_sample_prompts(
    store: Path, folder: Path, prompts: Sequence[str], recipe: Recipe, form: TextForm, device: str
) -> dict[str, str]:
    """Write the embedding of every sample's prompt to the store; existing ones stay.

    Args:
        folder: a world model in the stock layout. device: where its prompts are read, for as long as this takes.
    Returns:
        The prompts that cannot be embedded -> why.
    Raises:
        WorldModelError: what reads prompts cannot be loaded.
        StoreError: the store cannot be written.
    """
    refused: dict[str, str] = {}
    with writing(store), made_folder(store, store / PROMPTS):
        pass
    if missing := [prompt for prompt in dict.fromkeys(prompts) if not prompt_file(store, prompt).exists()]:
        read = form.load(folder, recipe, device=device)
        for prompt in missing:
            try:
                content = text_bytes({name: value.cpu() for name, value in read(prompt).items()}, prompt)
            except ConfigError as error:
                refused[prompt] = str(error)
                continue
            with writing(store):
                publish(store / "tmp", prompt_file(store, prompt), content, within=store)
        del read
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return refused


def load_prompt_embeddings(store: Path, prompts: Sequence[str], negative: Text | None) -> TextEmbeddings:
    """The embeddings that `embed_sample_prompts` wrote, one for each prompt.

    Raises:
        WorldModelError: one is not there, or is of another form than the first.
    """
    texts: list[Text] = []
    for prompt in prompts:
        path, owner = prompt_file(store, prompt), f"the embedding of the prompt {prompt!r}"
        branches = read_texts(path, owner, within=store)
        if PROMPT_BRANCH not in branches:
            raise damaged_embedding(path, owner, ValueError("it holds no prompt"))
        text = branches[PROMPT_BRANCH]
        require_like(text, texts[0] if texts else text, path, owner)
        texts.append(text)
    return TextEmbeddings(tuple(texts), negative)


def prompt_file(store: Path, prompt: str) -> Path:
    """File of a store that holds the embedding of a sample's prompt."""
    return store / PROMPTS / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"
