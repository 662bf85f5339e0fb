"""Embed all prompts once, before workers start, so that no worker holds a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...pipeline.errors import ConfigError
from ...pipeline.files.atomic import made_folder
from ...pipeline.files.places.folder import Folder
from ...pipeline.files.places.local import place_of
from ...pipeline.files.places.place import Place
from ...pipeline.latents.recipe import Recipe
from ...pipeline.store.folder import PROMPTS
from ...pipeline.store.prompt_files import prompt_name
from .family import TextForm
from .text_embeddings import (
    PROMPT_BRANCH,
    Text,
    TextEmbeddings,
    damaged_embedding,
    read_texts_from,
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
    store: Path | Place, folder: Path, prompts: Sequence[str], recipe: Recipe, form: TextForm, device: str
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
    place = place_of(store)
    if isinstance(place, Folder):
        with place.writing(), made_folder(place.path, place.path / PROMPTS):
            pass
    saved_names = set(place.names(PROMPTS))  # one look at a folder, or one listing of a bucket
    names = {prompt: prompt_name(prompt) for prompt in prompts}
    if missing := [prompt for prompt, name in names.items() if name not in saved_names]:
        read = form.load(folder, recipe, device=device)
        for prompt in missing:
            try:
                content = text_bytes({name: value.cpu() for name, value in read(prompt).items()}, prompt)
            except ConfigError as error:
                refused[prompt] = str(error)
                continue
            with place.writing():
                place.create(f"{PROMPTS}/{names[prompt]}", content)
        del read
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return refused


def load_prompt_embeddings(store: Path | Place, prompts: Sequence[str], negative: Text | None) -> TextEmbeddings:
    """The embeddings that `embed_sample_prompts` wrote, one for each prompt.

    Raises:
        WorldModelError: one is not there, or is of another form than the first.
        StoreError: they are in a bucket, which refuses or does not answer.
    """
    place = place_of(store)
    texts: list[Text] = []
    for prompt in prompts:
        name, owner = f"{PROMPTS}/{prompt_name(prompt)}", f"the embedding of the prompt {prompt!r}"
        path, branches = place.location(name), read_texts_from(place, name, owner)
        if PROMPT_BRANCH not in branches:
            raise damaged_embedding(path, owner, ValueError("it holds no prompt"))
        text = branches[PROMPT_BRANCH]
        require_like(text, texts[0] if texts else text, path, owner)
        texts.append(text)
    return TextEmbeddings(tuple(texts), negative)


def prompt_file(store: Path, prompt: str) -> Path:
    """File of a store that holds the embedding of a sample's prompt."""
    return store / PROMPTS / prompt_name(prompt)
