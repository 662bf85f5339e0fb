"""Encode questions, pack them into rows of one image each, and collate rows with their latents.

A row of a batch is one image and some questions about it: <bos>, the image's world tokens (put there by the model), the
image itself where the language model sees images, then the questions one behind the other, each as blind to the others
as if it were alone.

Axes:  B row   L text token
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...pipeline.errors import QuestionError
from ..language.prompt_format import PromptFormat
from ..questions.record import Question
from ..reader.model import IGNORED
from .loader import LatentDataset, Prefetcher
from .vision import VisionInputs

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, an answer to learn or to score, and whose latents stand in front."""

    key: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Ends with the token that ends an answer. Empty where the model is to write its own."""
    shared: int = 1
    """How many of the prompt's first tokens all questions about the image share."""


def encode(question: Question, key: str, lm: PromptFormat, *, answer: str | None) -> Example:
    """Token ids of a question and of one answer to it (its own, one of its choices, or None to leave it open)."""
    ids = () if answer is None else _kept(lm.answer_ids(answer))
    prompt = _kept(lm.prompt_ids(question.question, question.before))
    return Example(key, prompt, ids, lm.shared(prompt))


_IDS: dict[int, int] = {}
"""One object for each token id: a training keeps those of all its questions, and an id of its own takes 28 bytes."""


def _kept(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(_IDS.setdefault(id_, id_) for id_ in ids)


def check_answers(questions: Sequence[Question], lm: PromptFormat) -> None:
    """Refuse answers with words that the language model has no token for: they would all look the same to it. Refuse
    control tokens in any text.

    Raises:
        QuestionError: names the first such question and its words.
    """
    checked_answers: set[str] = set()
    for question in questions:
        try:
            for text in (question.question, *(text for turn in question.before for text in turn), question.answer):
                lm.require_plain(text)
        except QuestionError as error:
            raise QuestionError(f"question {question.id}: {error}") from error
        for answer in question.choices or (question.answer,):
            if answer not in checked_answers and (unknown := lm.unknown_words(answer)):
                raise QuestionError(
                    f"question {question.id}: the tokenizer of {lm.weights.source} has no token for {unknown} in the "
                    f"answer {answer!r}. Put the answer in other words, or use another --lm"
                )
            checked_answers.add(answer)


def pack(examples: Iterable[Example], max_examples: int) -> list[tuple[Example, ...]]:
    """Rows of up to `most` examples of one image, images in the order in which they first come."""
    return pack_by(examples, max_examples, lambda example: example.key)


def pack_by(items: Iterable[_Item], max_items: int, key: Callable[[_Item], str]) -> list[tuple[_Item, ...]]:
    """As `pack`, for anything that has a key."""
    by_key: dict[str, list[_Item]] = {}
    for item in items:
        by_key.setdefault(key(item), []).append(item)
    return [tuple(group[n : n + max_items]) for group in by_key.values() for n in range(0, len(group), max_items)]


def pad_rows(rows: Sequence[Sequence[Example]], pad_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, (B, L), padded on the right.

    Labels are the answer's ids where an answer stands, `IGNORED` on prompts and padding. Where a row holds several
    examples there is also `segments` (B, L): 0 on what they share (<bos>), n on the n-th example's tokens.

    Args:
        rows: examples of one image each.
    """
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    segments: list[list[int]] = []
    for row in rows:  # lists, and tensors of all at the end: one of each slice took ten times as long
        shared = row[0].prompt[: row[0].shared]
        ids.append([*shared])
        labels.append([IGNORED] * len(shared))
        segments.append([0] * len(shared))
        for segment, example in enumerate(row, start=1):
            prompt = example.prompt[example.shared :]
            ids[-1] += (*prompt, *example.answer)
            labels[-1] += (*[IGNORED] * len(prompt), *example.answer)
            segments[-1] += [segment] * (len(prompt) + len(example.answer))
    length = max(map(len, ids))

    def padded(lists: Iterable[list[int]], value: int) -> Tensor:
        return torch.from_numpy(np.array([row + [value] * (length - len(row)) for row in lists], dtype=np.int64))

    packed = {"segments": padded(segments, 0)} if any(len(row) > 1 for row in rows) else {}
    return {
        "input_ids": padded(ids, pad_id),
        "attention_mask": padded(([1] * len(row) for row in ids), 0),
        "labels": padded(labels, IGNORED),
        **packed,
    }


def texts(
    rows: Sequence[Sequence[Example]],
    pad_id: int,
    pictures: VisionInputs | None = None,
    *,
    update: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """`pad_rows`, and `keys`: whose latents are to stand in front, by row.

    Args:
        pictures: where the language model looks at images itself; adds `pixel_values` (B, 3, height, width).
        update: in a training, which update of how many: an arm may show an image in another way each time.
    """
    keys = [row[0].key for row in rows]
    vision_inputs = {} if pictures is None else {"pixel_values": pictures(keys)}
    return {**pad_rows(rows, pad_id), **vision_inputs, "keys": keys, "update": update}


def with_latents(
    batches: Iterable[dict[str, Any]], images: LatentDataset | None, *, keep: int, device: torch.device | None
) -> Iterator[dict[str, Tensor]]:
    """Batches of `texts` with `latents` (B, C, 1 + K, H, W) in the store's dtype, read ahead of use.

    Each image is read once per batch. Datasets that are not worth reading ahead are asked when a batch is wanted.

    Args:
        images: holds every key of the batches once; None is a world that is not looked at.
        keep, device: as for `Prefetcher`.
    """
    if images is None:
        for batch in batches:
            del batch["keys"], batch["update"]
            yield batch
        return
    index_by_key = {key: index for index, key in enumerate(images.keys)}

    def indices_of(keys: Iterable[str], update: tuple[int, int] | None) -> list[int]:
        indices = [index_by_key[key] for key in dict.fromkeys(keys)]
        return indices if update is None else [images.index_in_update(index, *update) for index in indices]

    if not images.read_ahead:
        for batch in batches:
            keys: list[str] = batch.pop("keys")
            row = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            latents = images.read(indices_of(row, batch.pop("update")))
            latents = latents if device is None else latents.to(device)
            yield {**batch, "latents": latents if len(row) == len(keys) else latents[[row[key] for key in keys]]}
        return
    waiting: deque[tuple[dict[str, Any], list[str]]] = deque()

    def upcoming() -> Iterator[list[int]]:
        for batch in batches:
            keys: list[str] = batch.pop("keys")
            waiting.append((batch, keys))
            yield indices_of(keys, batch.pop("update"))

    ahead = images.store.reader.batches_ahead
    with Prefetcher(images, upcoming(), depth=ahead, threads=ahead, keep=keep, device=device) as prefetcher:
        for _, latents in prefetcher:
            batch, keys = waiting.popleft()
            row = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            yield {**batch, "latents": latents if len(row) == len(keys) else latents[[row[key] for key in keys]]}


def supervised_tokens(labels: Tensor) -> int:
    """How many tokens of a batch have a loss. The first token has none, as nothing predicts it."""
    return int((labels[:, 1:] != IGNORED).sum())


def count_right_answers(
    logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, "B L"], segments: Int[Tensor, "B L"] | None = None
) -> tuple[int, int]:
    """How many answers of a batch have the likeliest token everywhere, as greedy decoding would write them; and of how
    many.

    Args:
        logits: of the labelled tokens alone, in their order, as the model returns them.
        labels, segments: as in `pad_rows`.
    """
    row, place = (labels[:, 1:] != IGNORED).nonzero().unbind(1)
    answer = row if segments is None else row * (1 + segments.max()) + segments[row, place + 1]
    answer = torch.unique_consecutive(answer, return_inverse=True)[1]
    wrong = logits.argmax(-1) != labels[row, place + 1]
    missed = torch.bincount(answer, wrong.double())
    return int((missed == 0).sum()), len(missed)


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same batch on a device. Latents travel in the store's dtype and widen there."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
