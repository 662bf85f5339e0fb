"""From a store and questions to batches: which tokens are learned, in which order, with which latents.

Lives here: encoding, shuffling, collating. Elsewhere: the text format (lm.py), reading ahead (loader.py), reading bytes
(pipeline/store.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..pipeline.errors import QuestionError
from .lm import LanguageModel
from .loader import LatentDataset, Prefetcher
from .model import IGNORED
from .questions import Question


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a batch: a prompt, an answer to learn or to score, and whose latents stand in front."""

    key: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Ends with the token that ends an answer. Empty where the model is to write its own."""


def encode(question: Question, key: str, lm: LanguageModel, *, answer: str | None) -> Example:
    """Token ids of a question and of one answer to it (its own, one of its choices, or None to leave it open)."""
    ids = () if answer is None else tuple(lm.answer_ids(answer))
    return Example(key, tuple(lm.prompt_ids(question.question)), ids)


def check_answers(questions: Sequence[Question], lm: LanguageModel) -> None:
    """Refuse answers the language model has no words for: all of them would look the same to it.

    Raises:
        QuestionError: names the first such question and its words.
    """
    seen: set[str] = set()
    for question in questions:
        for answer in question.choices or (question.answer,):
            if answer not in seen and (unknown := lm.unknown_words(answer)):
                raise QuestionError(
                    f"question {question.id}: the tokenizer of {lm.weights.source} has no token for {unknown} in the "
                    f"answer {answer!r}. Put the answer in other words, or use another --lm"
                )
            seen.add(answer)


class EpochShuffle(Sampler[int]):
    """A permutation of the examples per epoch: a function of (seed, epoch) alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist())


def pad_rows(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, (B, L), padded on the right.

    Labels are the answer's ids where the answer stands, `IGNORED` on prompt and padding.
    """
    rows = [[*example.prompt, *example.answer] for example in examples]
    ids = torch.full((len(rows), max(map(len, rows))), pad_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        labels[number, len(example.prompt) : len(row)] = torch.tensor(example.answer, dtype=ids.dtype)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def texts(examples: Sequence[Example], pad_id: int) -> dict[str, Any]:
    """`pad_rows`, and `keys`: whose latents are to stand in front, by row."""
    return {**pad_rows(examples, pad_id), "keys": [example.key for example in examples]}


def with_latents(
    batches: Iterable[dict[str, Any]], images: LatentDataset | None, *, keep: int, device: torch.device | None
) -> Iterator[dict[str, Tensor]]:
    """Batches of `texts` with `latents` (B, C, 1 + K, H, W) in the store's dtype, read ahead of use.

    Each image is read once per batch.

    Args:
        images: holds every key of the batches once; None is a world that is not looked at.
        keep, device: as for `Prefetcher`.
    """
    if images is None:
        for batch in batches:
            del batch["keys"]
            yield batch
        return
    place = {key: index for index, key in enumerate(images.keys)}
    waiting: deque[tuple[dict[str, Any], list[str]]] = deque()

    def upcoming() -> Iterator[list[int]]:
        for batch in batches:
            keys: list[str] = batch.pop("keys")
            waiting.append((batch, keys))
            yield [place[key] for key in dict.fromkeys(keys)]

    with Prefetcher(images, upcoming(), keep=keep, device=device) as ahead:
        for _, latents in ahead:
            batch, keys = waiting.popleft()
            row = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            yield {**batch, "latents": latents if len(row) == len(keys) else latents[[row[key] for key in keys]]}


def supervised_tokens(labels: Tensor) -> int:
    """How many tokens of a batch are learned: no first token is, for nothing stands before it."""
    return int((labels[:, 1:] != IGNORED).sum())


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same batch on a device. Latents travel in the store's dtype and widen there."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
