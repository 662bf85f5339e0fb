"""Prompt embeddings as world models read them and stores keep them: named tensors.

A family decides which tensors stand for a prompt: a row for each token, keys and values of each layer, a prefix. Here
nothing of it is known but the names. Each tensor is of one prompt and begins with an axis of length one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

from ...pipeline.errors import TheWorldError, WorldModelError
from ...pipeline.files.places.folder import Folder
from ...pipeline.files.places.place import Place
from ...pipeline.files.plain import open_file
from ...pipeline.latents.world_model import WorldModel
from ...pipeline.store.prompt_files import MAX_EMBEDDING_BYTES

ROWS = "rows"
"""The tensor of a text that has one only: (1, L, D), a row for each token. Files have it under the bare name of its
branch, `prompt`, as all stores had it before there were other forms; others are `prompt/NAME`."""
PROMPT_BRANCH, NEGATIVE_BRANCH = "prompt", "negative"

Text = Mapping[str, Tensor]
"""One prompt as a family's engine takes it: name -> tensor (1, …), on the CPU where it comes from a file."""


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """The prompts of a recipe or of a batch, ready for an engine."""

    prompts: tuple[Text, ...] = ()
    """One for all samples, or one for each sample of a batch; none where there is no text and the family needs none."""
    negative: Text | None = None
    """Of the branch that guidance steers away from; None is no text there."""

    def to_bytes(self) -> bytes:
        """The content of a safetensors file: a recipe's prompt and what it steers away from.

        Raises:
            ValueError: these are the prompts of a batch.
        """
        if len(self.prompts) > 1:
            raise ValueError(f"a file holds one prompt, not {len(self.prompts)}")
        tensors = _named(PROMPT_BRANCH, self.prompts[0]) if self.prompts else {}
        return save(tensors | (_named(NEGATIVE_BRANCH, self.negative) if self.negative is not None else {}))

    @classmethod
    def load(cls, path: Path) -> TextEmbeddings:
        """Read a file with the content of `to_bytes`.

        Raises:
            WorldModelError: it is not what was written.
        """
        return cls.load_from(Folder(path.parent), path.name)

    @classmethod
    def load_from(cls, store: Place, name: str) -> TextEmbeddings:
        """`load` of a file of a store, in a folder or in a bucket; raises StoreError if the bucket refuses."""
        owner = "the embedding of the recipe's prompt"
        branches = read_texts_from(store, name, owner)
        prompt, negative = branches.get(PROMPT_BRANCH), branches.get(NEGATIVE_BRANCH)
        if prompt is not None and negative is not None:
            require_like(negative, prompt, store.location(name), owner)
        return cls(() if prompt is None else (prompt,), negative)

    @classmethod
    def of_rows(cls, prompts: Tensor | None, negative: Tensor | None = None) -> TextEmbeddings:
        """Texts that are a row for each token: (texts, L, D) and (1, L, D)."""
        texts = () if prompts is None else tuple({ROWS: rows} for rows in prompts.split(1))
        return cls(texts, None if negative is None else {ROWS: negative})

    def padded(self, count: int) -> TextEmbeddings:
        """The embeddings with the last prompt repeated `count` more times, to fill a batch."""
        if not self.prompts or not count:
            return self
        return TextEmbeddings((*self.prompts, *self.prompts[-1:] * count), self.negative)


_Engine = TypeVar("_Engine", bound="FollowsPrompts")  # beartype, in the tests, takes no Self here


class FollowsPrompts:
    """An engine that holds the embeddings of its prompts, and takes others without loading its weights again."""

    _text: TextEmbeddings | None

    def with_text(self: _Engine, text: TextEmbeddings) -> _Engine:
        """A copy with the same weights and other prompts: one for all samples, or one for each sample of a batch."""
        copied = copy.copy(self)
        copied._text = text
        return copied


@runtime_checkable
class PromptReader(Protocol):
    """Reads prompts, one at a time; its weights are held as long as it is."""

    def __call__(self, prompt: str, *, negative: bool = False) -> Text:
        """The tensors that stand for a prompt, in whatever form the family's engine takes them.

        Args:
            negative: the text is one that guidance steers away from.
        Raises:
            ConfigError: this prompt cannot be read: it is too long.
        """
        ...


class PromptedWorld(WorldModel, Protocol):
    """A world model that can follow one prompt per sample."""

    def with_text(self, text: TextEmbeddings) -> WorldModel:
        """A copy of this world model that follows other prompts."""
        ...


def text_bytes(text: Text, prompt: str) -> bytes:
    """The content of the file of one sample's prompt."""
    return save(_named(PROMPT_BRANCH, text), metadata={"prompt": prompt})


def read_texts(path: Path, owner: str, *, within: Path) -> dict[str, dict[str, Tensor]]:
    """The texts in a file, by branch.

    Args:
        owner: whose they are, for messages. within: the folder that the file may not lead out of.
    Raises:
        WorldModelError: it cannot be read, or holds something else.
    """
    try:
        open_file(path, MAX_EMBEDDING_BYTES, within=within).close()  # a pipe would block the library
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return _by_branch((name, file.get_tensor(name)) for name in names)
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged_embedding(path, owner, error) from error


def read_texts_from(store: Place, name: str, owner: str) -> dict[str, dict[str, Tensor]]:
    """`read_texts` of a file of a store, in a folder or in a bucket.

    Raises:
        WorldModelError: it cannot be read, or holds something else.
        StoreError: the bucket refuses or does not answer.
    """
    if isinstance(store, Folder):
        return read_texts(store.path / name, owner, within=store.path)
    try:
        return _by_branch(load_tensors(store.read(name, MAX_EMBEDDING_BYTES)).items())
    except TheWorldError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged_embedding(store.location(name), owner, error) from error


def require_like(text: Text, first: Text, path: Path | str, owner: str) -> None:
    """Refuse a text of another form than the first one: other tensors, or vectors of other lengths.

    Raises:
        WorldModelError: says which file to remove.
    """
    if (ours := _form(text)) != (theirs := _form(first)):
        raise damaged_embedding(path, owner, ValueError(f"it has the tensors {ours}, and others have {theirs}"))


def damaged_embedding(path: Path | str, owner: str, error: Exception) -> WorldModelError:
    """The error for a file of embeddings that cannot be read; `owner` says whose they are."""
    return WorldModelError(
        f"{path}, {owner}, cannot be read: {error}. Remove it and run precompute again: it is made anew"
    )


def stack_rows(texts: Sequence[Text], length: int) -> Tensor | None:
    """The rows of several texts as one tensor (texts, length, D), zeros after each text; None of no texts.

    Raises:
        WorldModelError: a text is no rows, or has more of them.
    """
    padded: list[Tensor] = []
    for text in texts:
        rows = text.get(ROWS)
        if rows is None or rows.ndim != 3 or rows.shape[1] > length:
            shapes = {name: tuple(tensor.shape) for name, tensor in text.items()}
            raise WorldModelError(
                f"the embedding of a prompt holds {shapes}, and this world model reads up to {length} rows of numbers. "
                "Remove the store's embeddings of prompts and run precompute again: they are made anew"
            )
        padded.append(torch.nn.functional.pad(rows, (0, 0, 0, length - rows.shape[1])))
    return torch.cat(padded) if padded else None


def _named(branch: str, text: Text) -> dict[str, Tensor]:
    return {branch if name == ROWS else f"{branch}/{name}": value.contiguous() for name, value in text.items()}


def _by_branch(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    texts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        branch, _, tensor_name = name.partition("/")
        texts.setdefault(branch, {})[tensor_name or ROWS] = _require_embedding(tensor)
    return texts


def _form(text: Text) -> dict[str, tuple[int, int]]:
    """Of each tensor the number of axes, and the length of the last: texts differ in nothing else."""
    return {name: (tensor.ndim, tensor.shape[-1]) for name, tensor in sorted(text.items())}


def _require_embedding(tensor: Tensor) -> Tensor:
    """The tensor of a file, if it is of one prompt: (1, …), of finite numbers.

    Raises:
        ValueError: it is another.
    """
    is_one = tensor.ndim > 1 and tensor.shape[0] == 1 and tensor.numel()
    if not is_one or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise ValueError(f"it holds {tensor.dtype} of shape {tuple(tensor.shape)}, and no embeddings of one prompt")
    return tensor
