"""Answer many questions: choices are scored, other answers generated.

The questions about an image are packed into one row behind its world tokens, up to a limit. Only answers to questions
without choices, which may be long, are generated row by row, with a key-value cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from ....pipeline.errors import RunError
from ....pipeline.progress import Progress
from ...config import AnswerConfig
from ...data.batches import Example, pack_by, texts, to_device, with_latents
from ...data.loader import LatentDataset
from ...data.vision import VisionInputs
from ...questions.record import Question
from ...reader.memory import SCORED_AT_ONCE
from ...runs.folder import LoadedRun
from .forward import MAX_NEW_TOKENS, generate_texts, log_likelihoods, most_new_tokens, next_token_logits, next_tokens
from .row_limit import RowLimit

_BEYOND_CHOICES = 2  # tokens that a generated answer may have more than the longest choice: an article, a full stop
_PACK = 8  # questions of an image in one row
_PACK_CHOICES = 32  # choices of an image's questions in one row


@dataclass(frozen=True, slots=True)
class Response:
    """The answer of a run to one of many questions."""

    text: str
    """The likeliest choice; without choices, the generated answer."""
    probabilities: tuple[float, ...] = ()
    """Of the question's choices, in their order; they sum to 1."""
    generated: str | None = None
    """The generated answer to a question with choices; None if `generate` was off."""
    agreement: float | None = None
    """The share of draws whose own answer is this one, where it is averaged over several."""


def answer_all(
    loaded: LoadedRun,
    questions: Sequence[Question],
    keys: Mapping[str, str],
    images: LatentDataset | None,
    *,
    batch_size: int,
    progress: Progress,
    pictures: VisionInputs | None = None,
    generate: bool = False,
    max_new_tokens: int | None = None,
) -> list[Response]:
    """One answer per question, in their order.

    Args:
        keys: question id -> key of its image's latents.
        images: the latents of these keys, of as many steps as are to be read; None shows no world.
        batch_size: rows at a time, a row being an image's questions; or choices at a time. Changes speed only.
        pictures: the images, where the language model looks at them itself.
        generate: also generate answers to the questions with choices.
        max_new_tokens: of an answer to a question without choices; None is 16, or more where the correct one needs it.
    """
    prompt_ids, answer_ids = cache(loaded.lm.prompt_ids), cache(loaded.lm.answer_ids)  # the same few, again and again
    end, ends = (loaded.lm.end_id,), loaded.lm.end_ids
    single_token: list[_Item] = []
    ranked: list[_Item] = []  # one a choice
    without_choices: list[_Item] = []
    generations: dict[int, _Generation] = {}
    for number, question in enumerate(questions):
        prompt = tuple(prompt_ids(question.question, question.before))
        open_end = Example(keys[question.id], prompt, (), loaded.lm.shared(prompt))
        ids = [tuple(answer_ids(choice)) for choice in question.choices or ()]
        first = single_tokens(ids)
        if generate and ids:
            generations[number] = _Generation(open_end, max(map(len, ids)) + _BEYOND_CHOICES)
        if not ids:
            without_choices.append(_Item(number, open_end))
        elif first:
            single_token.append(_Item(number, replace(open_end, answer=first[:1]), first))
        else:
            ranked += [_Item(number, replace(open_end, answer=answer)) for answer in ids]
    generated: dict[int, str] = {}
    scores: dict[int, list[float]] = {}
    total = len(single_token) + len(ranked) + len(without_choices) + len(generations)
    limit = RowLimit(loaded.device, progress, loaded.sizes, memory=loaded.memory)
    with progress.bar("evaluate", total=total, unit="answers") as bar:

        def scored(rows: _Rows, batch: dict[str, Tensor]) -> list[tuple[list[float], int | None]]:
            items = [item for row in rows for item in row]
            return _choice_scores(loaded, batch, items, likeliest=any(item.question in generations for item in items))

        for rows, batch in _batches(single_token, loaded, images, batch_size, pictures, pack=_PACK):
            items = [item for row in rows for item in row]
            for item, (values, likeliest) in zip(items, limit.answer(rows, batch, scored), strict=True):
                scores[item.question] = values
                if item.question in generations and likeliest is not None:
                    generations[item.question].append(likeliest, ends)
            bar.advance(
                len(items) + sum(item.question in generations and generations[item.question].done for item in items)
            )
        for rows, batch in _batches(ranked, loaded, images, batch_size, pictures, pack=_PACK_CHOICES, by_text=True):
            items = [item for row in rows for item in row]
            likelihoods = limit.answer(rows, batch, lambda _, part: log_likelihoods(loaded, part))
            for item, score in zip(items, likelihoods, strict=True):
                scores.setdefault(item.question, []).append(score)
            bar.advance(len(items))
        room = [len(answer_ids(questions[item.question].answer)) + _BEYOND_CHOICES for item in without_choices]
        longest = max([MAX_NEW_TOKENS, *room])  # the correct answer must have room
        writing = AnswerConfig(max_new_tokens=max_new_tokens)
        for rows, batch in _batches(without_choices, loaded, images, batch_size, pictures, pack=1):
            texts_of_batch = limit.answer(
                rows,
                batch,
                lambda _, part: generate_texts(loaded, part, writing, longest),
                new_tokens=most_new_tokens(writing, longest),
            )
            generated |= zip((item.question for row in rows for item in row), texts_of_batch, strict=True)
            bar.advance(len(rows))
        while open_numbers := [number for number, generation in generations.items() if not generation.done]:
            next_words = [_Item(number, generations[number].example(end)) for number in open_numbers]
            for rows, batch in _batches(next_words, loaded, images, batch_size, pictures, pack=_PACK):
                items = [item for row in rows for item in row]
                found_tokens = limit.answer(rows, batch, lambda _, part: next_tokens(loaded, part))
                for item, token in zip(items, found_tokens, strict=True):
                    generations[item.question].append(token, ends)
                bar.advance(sum(generations[item.question].done for item in items))
    if note := limit.note():
        progress.warn(note)
    answers: list[Response] = []
    for number, question in enumerate(questions):
        if question.choices is None:
            answers.append(Response(generated[number]))
            continue
        text = loaded.lm.decode(generations[number].tokens) if number in generations else None
        values = torch.tensor(scores[number])
        if not bool(values.isfinite().all()):
            raise RunError(
                f"{loaded.path} finds no likelihood for the choices of {question.id}: its weights or what it is shown "
                "hold values that are not finite. Train it again, or verify the store: theworld cache verify"
            )
        answers.append(Response(question.choices[int(values.argmax())], tuple(values.softmax(0).tolist()), text))
    return answers


def single_tokens(answers: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The first tokens of the answers, if all are different and only the end token follows; else nothing."""
    first = tuple(answer[0] for answer in answers)
    return first if len(set(first)) == len(first) and all(len(answer) == 2 for answer in answers) else ()


@dataclass(frozen=True, slots=True)
class _Item:
    """One text to score or to continue, and the index of its question."""

    question: int
    example: Example
    first: tuple[int, ...] = ()
    """The first tokens of all choices."""


_Rows = Sequence[tuple[_Item, ...]]


@dataclass(slots=True)
class _Generation:
    """An answer that is being generated, token by token."""

    prompt: Example
    max_tokens: int
    """Tokens at which generation stops: an answer of more is none of the choices."""
    tokens: list[int] = field(default_factory=list[int])
    done: bool = False

    def append(self, token: int, ends: Collection[int]) -> None:
        """Take the likeliest next token."""
        self.tokens.append(token)
        self.done = token in ends or len(self.tokens) == self.max_tokens

    def example(self, any_token: tuple[int, ...]) -> Example:
        """The prompt for the next token; `any_token` is a label that marks its place."""
        return replace(self.prompt, prompt=(*self.prompt.prompt, *self.tokens), answer=any_token)


def _batches(
    items: Sequence[_Item],
    loaded: LoadedRun,
    images: LatentDataset | None,
    batch_size: int,
    pictures: VisionInputs | None,
    *,
    pack: int,
    by_text: bool = False,
) -> Iterator[tuple[_Rows, dict[str, Tensor]]]:
    """Batches with their rows of items, in the order of the labels.

    Args:
        pack: the most texts of an image in one row.
        by_text: `batch_size` counts texts, not rows: each text has logits over the whole vocabulary.
    """
    rows = pack_by(items, pack, lambda item: item.example.key)
    parts: list[list[tuple[_Item, ...]]] = []
    room = 0
    for row in rows:
        if (room := room - (len(row) if by_text else 1)) < 0:
            parts.append([])
            room = batch_size - (len(row) if by_text else 1)
        parts[-1].append(row)
    text_batches = (
        texts([[item.example for item in row] for row in part], loaded.lm.pad_id, pictures) for part in parts
    )
    device = loaded.device if loaded.device.type == "cuda" else None
    for part, batch in zip(parts, with_latents(text_batches, images, keep=1, device=device), strict=True):
        yield part, to_device(batch, loaded.device)


@torch.no_grad()
def _choice_scores(
    loaded: LoadedRun, batch: dict[str, Tensor], items: Sequence[_Item], *, likeliest: bool
) -> list[tuple[list[float], int | None]]:
    """The logits of each item's choices and, if wanted, its likeliest token: all words' logits stay on the device."""
    logits = next_token_logits(loaded, batch)
    places = [place for place, item in enumerate(items) for _ in item.first]
    ids = [token for item in items for token in item.first]
    values = iter(logits[places, ids].float().tolist())
    best: list[int | None] = [None] * len(items)
    if likeliest:
        best = [token for part in logits.split(SCORED_AT_ONCE) for token in part.float().argmax(-1).tolist()]
    return [([next(values) for _ in item.first], token) for item, token in zip(items, best, strict=True)]
