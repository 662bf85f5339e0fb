"""Answer questions with a trained run: rank the choices, or generate an answer.

With choices, the answer is the choice with the highest log-likelihood, summed over its tokens and the end token: the
probability that the model says exactly this. A mean over tokens would favour long choices whose words follow from one
another; without the end token, a choice would gain from being the start of a longer one. If all choices are different
single tokens, none is the start of another, so one forward pass compares the likelihoods of these tokens. Without
choices, the likeliest tokens are generated one by one.

The questions about an image are packed into one row behind its world tokens, up to a limit. Only answers to questions
without choices, which may be long, are generated row by row, with a key-value cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ...pipeline.errors import ConfigError, LatentShapeError, QuestionError, RunError
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.progress import Progress
from ..config import AnswerConfig
from ..data.batches import Example, pack_by, pad_rows, texts, to_device, with_latents
from ..data.loader import LatentDataset
from ..data.vision import VisionInputs
from ..language.prompt_format import PromptFormat
from ..questions.record import Question
from ..questions.shown_choices import as_shown
from ..reader.memory import SCORED_AT_ONCE
from ..runs.folder import LoadedRun, load_run
from .row_limit import RowLimit

_MAX_NEW_TOKENS = 16  # of an answer in own words, unless more are asked for or needed
_BEYOND_CHOICES = 2  # tokens that a generated answer may have more than the longest choice: an article, a full stop
_PACK = 8  # questions of an image in one row
_PACK_CHOICES = 32  # choices of an image's questions in one row


@dataclass(frozen=True, slots=True)
class Ranked:
    """One choice and its likelihood."""

    choice: str
    probability: float
    """Among the choices."""
    log_likelihood: float
    """Natural logarithm; of its token alone where every choice is one token, else of its tokens and the end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a run to one question."""

    text: str
    ranked: tuple[Ranked, ...]
    """Likeliest first; empty without choices."""


def ask(
    run: Path | str | LoadedRun,
    latents: Float[Tensor, "_ C T H W"] | Shaped[np.ndarray, "_ C T H W"],
    question: str,
    choices: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    image: Path | None = None,
    writing: AnswerConfig | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Answer one question about one rollout, cached or fresh.

    Args:
        run: a run folder, or one already loaded.
        latents: (1, C, T, H, W) of one image, standardised, of the recipe the run was trained on: a tensor, or what a
            store's `read` returns.
        choices: rank these, shown in the prompt as in the run's training; without them the model generates an answer.
        steps: K, rollout steps to read; by default those it was trained with.
        image: the file the latents are of, for a language model that looks at images itself.
        writing: how an answer is generated: greedily, or drawn.
        progress: where warnings go; None is `Progress.to_logger()`.
    Raises:
        RunError: no run folder, or another base model.
        ConfigError: more steps than the latents have, an empty question, choices that are not two different ones, or
            `writing` with choices, which are ranked.
        QuestionError: a choice has words the language model has no token for, or a text holds a control token.
        LatentShapeError: latents of another shape than it was trained on.
    """
    progress = progress or Progress.to_logger()
    loaded = run if isinstance(run, LoadedRun) else load_run(run)
    latents = as_tensor(latents) if isinstance(latents, np.ndarray) else latents
    if len(latents) != 1:
        raise LatentShapeError(f"ask takes the latents of one image, (1, C, T, H, W), got {tuple(latents.shape)}")
    if not question.strip():
        raise ConfigError("the question is empty")
    if isinstance(choices, str):
        raise ConfigError(f"choices are a list of texts, got the text {choices!r}")
    if choices and writing is not None and writing != AnswerConfig():
        raise ConfigError(
            "choices are ranked, so nothing is generated: leave out max_new_tokens, temperature, top_p and seed, or "
            "the choices"
        )
    asked, labels = _shown(question, choices, loaded)
    _check_choices(labels, loaded.lm)
    if unknown := loaded.lm.unknown_words(question):
        progress.warn(f"warning: {loaded.lm.weights.source} has no token for {', '.join(unknown)} in the question")
    steps = check_steps(loaded, latents.shape[2] - 1, steps, progress)
    prompt = tuple(loaded.lm.prompt_ids(asked))
    answers = [tuple(loaded.lm.answer_ids(label)) for label in labels or ()]
    first = _single_tokens(answers)
    rows = [first[:1]] if first else answers or [()]
    batch = pad_rows([(Example("", prompt, row),) for row in rows], loaded.lm.pad_id)
    if loaded.meta.reader.frames != ():
        batch["latents"] = latents[:, :, : 1 + steps].expand(len(batch["input_ids"]), -1, -1, -1, -1)
    if loaded.lm.image_tokens:
        if image is None:
            raise ConfigError(f"{loaded.lm.weights.source} looks at images itself: pass the image as well")
        pixels = VisionInputs(loaded.lm, {}).prepare(image)
        batch["pixel_values"] = pixels.expand(len(batch["input_ids"]), -1, -1, -1)
    batch = to_device(batch, loaded.device)
    limit = RowLimit(loaded.device, progress, loaded.sizes, memory=loaded.memory)
    if not choices:
        writing = writing or AnswerConfig()
        written = limit.answer(
            rows, batch, lambda _, part: _generate(loaded, part, writing), new_tokens=_new_tokens(writing)
        )
        return Answer(written[0], ())
    if first:
        [logits] = limit.answer(rows, batch, lambda _, part: [_next_token_logits(loaded, part)[0]])
        scores = logits.float().log_softmax(0)[list(first)].tolist()
    else:
        scores = limit.answer(rows, batch, lambda _, part: _score(loaded, part))
    shares = torch.tensor(scores).softmax(0).tolist()
    ranked = sorted(map(Ranked, choices, shares, scores), key=lambda choice: -choice.log_likelihood)
    return Answer(ranked[0].choice, tuple(ranked))


def _shown(question: str, choices: Sequence[str] | None, loaded: LoadedRun) -> tuple[str, Sequence[str] | None]:
    """The text of the prompt and the answers that are ranked, as the run was trained to see them."""
    if not choices or loaded.meta.show_choices == "none":
        return question, choices
    asked = Question.model_construct(question=question, choices=tuple(choices), answer=choices[0])
    shown = as_shown(asked, loaded.meta.show_choices)
    return shown.question, shown.choices


def _check_choices(choices: Sequence[str] | None, lm: PromptFormat) -> None:
    if not choices:
        return
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choice.strip() for choice in choices):
        raise ConfigError(f"choices must be two or more different answers, got {list(choices)}")
    for choice in choices:
        if unknown := lm.unknown_words(choice):  # all such choices would look the same to it
            raise QuestionError(
                f"the tokenizer of {lm.weights.source} has no token for {unknown} in the choice {choice!r}. Say it in "
                "other words"
            )


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
        first = _single_tokens(ids)
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
            found = limit.answer(rows, batch, lambda _, part: _score(loaded, part))
            for item, score in zip(items, found, strict=True):
                scores.setdefault(item.question, []).append(score)
            bar.advance(len(items))
        room = [len(answer_ids(questions[item.question].answer)) + _BEYOND_CHOICES for item in without_choices]
        longest = max([_MAX_NEW_TOKENS, *room])  # the correct answer must have room
        writing = AnswerConfig(max_new_tokens=max_new_tokens)
        for rows, batch in _batches(without_choices, loaded, images, batch_size, pictures, pack=1):
            texts_of_batch = limit.answer(
                rows,
                batch,
                lambda _, part: _generate(loaded, part, writing, longest),
                new_tokens=_new_tokens(writing, longest),
            )
            generated |= zip((item.question for row in rows for item in row), texts_of_batch, strict=True)
            bar.advance(len(rows))
        while open_numbers := [number for number, generation in generations.items() if not generation.done]:
            next_words = [_Item(number, generations[number].example(end)) for number in open_numbers]
            for rows, batch in _batches(next_words, loaded, images, batch_size, pictures, pack=_PACK):
                items = [item for row in rows for item in row]
                found_tokens = limit.answer(rows, batch, lambda _, part: _next_tokens(loaded, part))
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


def _single_tokens(answers: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
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


def check_steps(loaded: LoadedRun, stored_steps: int, steps: int | None, progress: Progress) -> int:
    """K, the rollout steps to read from latents that hold `stored_steps`; None is as many as in training.

    Raises:
        ConfigError: the latents hold fewer, or the run reads only some frames and not these.
    """
    trained = loaded.meta.reader.num_world_steps
    steps = trained if steps is None else steps
    if not 0 <= steps <= stored_steps:
        raise ConfigError(
            f"{steps} rollout steps are asked for, the latents have {stored_steps}. Pass --steps 0 to {stored_steps}"
        )
    frames = loaded.meta.reader.frames or ()
    if (last_frame := max(frames, default=0)) and steps not in (0, last_frame):
        raise ConfigError(
            f"{loaded.path} reads frames {', '.join(map(str, frames))} of a rollout and no others: pass "
            f"--steps {last_frame}, or 0 for the observed frame alone"
        )
    if steps > trained:
        progress.warn(
            f"warning: {loaded.path} was trained with {trained} rollout steps: those up to {steps} are new to it"
        )
    return steps


def _steps_of(batch: Mapping[str, Tensor]) -> int | None:
    """The rollout steps in a batch; None for a run without latents."""
    return batch["latents"].shape[2] - 1 if "latents" in batch else None


@torch.no_grad()
def _next_token_logits(loaded: LoadedRun, batch: dict[str, Tensor]) -> Float[Tensor, "A V"]:
    """(A, V) logits of the token after each prompt, on the device; one label per prompt marks the place."""
    return loaded.model(**batch, num_world_steps=_steps_of(batch)).logits


@torch.no_grad()
def _choice_scores(
    loaded: LoadedRun, batch: dict[str, Tensor], items: Sequence[_Item], *, likeliest: bool
) -> list[tuple[list[float], int | None]]:
    """The logits of each item's choices and, if wanted, its likeliest token: all words' logits stay on the device."""
    logits = _next_token_logits(loaded, batch)
    places = [place for place, item in enumerate(items) for _ in item.first]
    ids = [token for item in items for token in item.first]
    values = iter(logits[places, ids].float().tolist())
    best: list[int | None] = [None] * len(items)
    if likeliest:
        best = [token for part in logits.split(SCORED_AT_ONCE) for token in part.float().argmax(-1).tolist()]
    return [([next(values) for _ in item.first], token) for item, token in zip(items, best, strict=True)]


@torch.no_grad()
def _next_tokens(loaded: LoadedRun, batch: dict[str, Tensor]) -> list[int]:
    """The likeliest token after each prompt."""
    return loaded.model(**batch, num_world_steps=_steps_of(batch)).logits.argmax(-1).tolist()


def _score(loaded: LoadedRun, batch: dict[str, Tensor]) -> list[float]:
    return loaded.model.log_likelihood(**batch, num_world_steps=_steps_of(batch)).tolist()


def _new_tokens(writing: AnswerConfig, longest: int = _MAX_NEW_TOKENS) -> int:
    """The most tokens of a generated answer; of at most `longest` where `writing` does not say."""
    return writing.max_new_tokens or longest


def _generate(
    loaded: LoadedRun, batch: dict[str, Tensor], writing: AnswerConfig, longest: int = _MAX_NEW_TOKENS
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
        max_new_tokens=_new_tokens(writing, longest),
        temperature=writing.temperature,
        top_p=writing.top_p,
        seed=writing.seed,
    )
    return [loaded.lm.decode(row) for row in ids.tolist()]
