"""Leave out questions without latents and questions that are too long, up to `max_bad` of each, with a warning.

More than `max_bad` is an error, raised before the job starts. Answers outside the vocabulary are always an error
(batches.py), because one such choice spoils every question that offers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...pipeline.errors import QuestionError
from ...pipeline.messages import name_some
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ..language.lm import LanguageModel
from ..language.prompt_format import PromptFormat
from ..questions.record import Question, resolve_keys
from ..questions.report import measure
from .batches import Example


def questions_with_latents(
    questions: Sequence[Question],
    questions_file: Path,
    store: LatentStore,
    *,
    max_bad: int,
    progress: Progress,
    images: Path | None = None,
) -> tuple[Question, ...]:
    """The questions that have latents in a store. Says which images were found by another name than their own.

    Args:
        images: as of `resolve_keys`.
    Raises:
        QuestionError: more than `max_bad` have none, or not one of them has.
    """
    coverage = resolve_keys(questions, questions_file, store, images=images)
    if len(coverage.missing) > max_bad or not coverage.keys:
        coverage.require_complete()
    if coverage.missing:
        missing = [f"{item.question.id} ({item.reason})" for item in coverage.missing]
        _warn_of_left_out(progress, missing, "without latents")
    for note in coverage.notes:
        progress.say(note)
    return tuple(question for question in questions if question.id in coverage.keys)


def examples_that_fit(
    questions: Sequence[Question],
    examples: Sequence[Example],
    lm: LanguageModel,
    *,
    world_tokens: int,
    max_bad: int,
    progress: Progress,
) -> tuple[tuple[Question, ...], list[Example]]:
    """The questions that leave room for the world tokens, and their examples, in the same order.

    Where not one of them does, all are returned: then the layout is too long, and no question.

    Raises:
        QuestionError: more than `max_bad` are too long, and others are not.
    """
    room = lm.context - world_tokens
    long = {n for n, example in enumerate(examples) if len(example.prompt) + len(example.answer) > room}
    if not long or len(long) == len(examples):
        return tuple(questions), list(examples)
    items = [
        f"{questions[n].id} ({len(examples[n].prompt):,} tokens of prompt, {len(examples[n].answer):,} of answer)"
        for n in sorted(long)
    ]
    if len(long) > max_bad:
        raise QuestionError(
            f"{len(long)} of {len(examples)} questions are too long: behind {world_tokens:,} world tokens, {room:,} of "
            f"the {lm.context:,} that {lm.weights.source} attends to are left: {name_some(items, between='; ')}. "
            f"Shorten them, pass fewer --steps, or go on without them: --max-bad {len(long)}"
        )
    _warn_of_left_out(progress, items, "too long")
    kept_indices = [n for n in range(len(examples)) if n not in long]
    return tuple(questions[n] for n in kept_indices), [examples[n] for n in kept_indices]


def questions_that_fit(
    questions: Sequence[Question], lm: PromptFormat, *, world_tokens: int, max_bad: int, progress: Progress
) -> tuple[Question, ...]:
    """The questions that are not too long to be answered with the longest of their choices.

    Raises:
        QuestionError: more than `max_bad` are, or all; names a few of them, counts all.
    """
    long = measure(questions, lm, world_tokens=world_tokens).too_long
    if len(long) > max_bad or (long and len(long) == len(questions)):
        raise QuestionError(
            f"{len(long)} of {len(questions)} questions are too long: with {world_tokens:,} world tokens they exceed "
            f"the {lm.context:,} tokens that {lm.weights.source} attends to: {name_some(long)}. "
            f"Shorten them, read fewer --steps, or go on without them: --max-bad {len(long)}"
        )
    if long:
        _warn_of_left_out(progress, long, "too long")
    left_out = set(long)
    return tuple(question for question in questions if question.id not in left_out)


def _warn_of_left_out(progress: Progress, items: Sequence[str], reason: str) -> None:
    progress.warn(f"warning: {len(items)} questions {reason} are left out: {name_some(items, between='; ')}")
