"""Prompt embeddings, as stores keep them and world models take them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...pipeline.errors import WorldModelError
from ...pipeline.files.plain import open_file
from ...pipeline.latents.world_model import WorldModel

MAX_EMBEDDING_BYTES = 2**28
"""Of a file of them; 512 tokens of 4,096 numbers are 8 MiB."""


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """Embeddings of prompts, one for all or one for each sample of a batch; None where a branch has no text and the
    family needs none."""

    prompt: Float[Tensor, "texts L D"] | None
    negative: Float[Tensor, "negatives L D"] | None

    def to_bytes(self) -> bytes:
        """The content of a safetensors file."""
        parts = {"prompt": self.prompt, "negative": self.negative}
        return save({name: value.contiguous() for name, value in parts.items() if value is not None})

    @classmethod
    def load(cls, path: Path) -> TextEmbeddings:
        """Read a file with the content of `to_bytes`.

        Raises:
            WorldModelError: it is not what was written.
        """
        try:
            open_file(path, MAX_EMBEDDING_BYTES, within=path.parent).close()  # a pipe would block the library
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                prompt, negative = (
                    require_embedding(file.get_tensor(name)) if name in names else None
                    for name in ("prompt", "negative")
                )
            if prompt is not None and negative is not None and prompt.shape[1:] != negative.shape[1:]:
                raise ValueError(f"its prompts have the shapes {tuple(prompt.shape)} and {tuple(negative.shape)}")
        except (OSError, ValueError, SafetensorError) as error:
            raise damaged_embedding(path, "the embedding of the recipe's prompt", error) from error
        return cls(prompt, negative)

    def padded(self, count: int) -> TextEmbeddings:
        """The embeddings with the last prompt repeated `count` more times, to fill a batch."""
        if self.prompt is None or not count:
            return self
        return TextEmbeddings(torch.cat([self.prompt, self.prompt[-1:].expand(count, -1, -1)]), self.negative)


_Engine = TypeVar("_Engine", bound="FollowsPrompts")  # beartype, in the tests, takes no Self here


class FollowsPrompts:
    """An engine that holds the embeddings of its prompts, and takes others without loading its weights again."""

    _text: TextEmbeddings | None

    def with_text(self: _Engine, text: TextEmbeddings) -> _Engine:
        """A copy with the same weights and other prompts: one for all samples, or one for each sample of a batch."""
        copied = copy.copy(self)
        copied._text = text
        return copied


class PromptedWorld(WorldModel, Protocol):
    """A world model that can follow one prompt per sample."""

    def with_text(self, text: TextEmbeddings) -> WorldModel:
        """A copy of this world model that follows other prompts."""
        ...


def require_embedding(tensor: Tensor) -> Tensor:
    """The tensor of a file, if it is one of embeddings: (texts, L, D), of finite numbers.

    Raises:
        ValueError: it is another.
    """
    if tensor.ndim != 3 or not tensor.is_floating_point() or not tensor.numel() or not tensor.isfinite().all():
        raise ValueError(f"it holds {tensor.dtype} of shape {tuple(tensor.shape)}, and no embeddings")
    return tensor


def damaged_embedding(path: Path, owner: str, error: Exception) -> WorldModelError:
    """The error for a file of embeddings that cannot be read; `owner` says whose they are."""
    return WorldModelError(
        f"{path}, {owner}, cannot be read: {error}. Remove it and run precompute again: it is made anew"
    )
