"""A report on questions: counts, problems, token lengths, and the accuracy of guessing.

`theworld questions FILE STORE` prints it; a training prints its first lines.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from statistics import median
from typing import Any

from ...pipeline.messages import MAX_NAMES, name_some
from ..language.prompt_format import PromptFormat
from .record import UNTYPED, Coverage, Question, QuestionFile

_WORDING = 10  # questions in the same words, from which on what is answered to them is a habit and no accident
_TOP = 5
BLIND = 0.95
"""Share of correct answers without the image from which on they show nothing of what a reader sees."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The questions of one type, and the accuracy of guessing their answers."""

    questions: int
    with_choices: int
    answers: dict[str, int]
    """How often each is right, the commonest first."""
    majority: float
    """Share that the commonest answer gets right."""
    blind: float
    """Share that the commonest answer to each wording gets right: what a model can learn without the image."""

    def __str__(self) -> str:
        top = ", ".join(f"{answer} {count / self.questions:.0%}" for answer, count in list(self.answers.items())[:_TOP])
        more = f", {len(self.answers) - _TOP} more" if len(self.answers) > _TOP else ""
        return f"{self.questions:,}: {top}{more}; blind {self.blind:.0%}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token lengths of questions, for one language model."""

    lm: str
    prompt: tuple[int, float, int]
    """Least, median, most."""
    answer: tuple[int, float, int]
    """Of all choices, or the answer where there are none."""
    longest: str
    """Which question takes most, its longest choice included."""
    longest_tokens: int
    world: int | None
    """World tokens of one image; None where no store was named."""
    context: int
    too_long: tuple[str, ...]
    unknown: dict[str, tuple[str, ...]]
    """Question -> words of its answers that the language model has no token for."""
    unread: dict[str, int] = field(default_factory=dict[str, int])
    """Words of the questions themselves that it has no token for -> in how many; it reads all of these as one word."""

    def lines(self) -> list[str]:
        """Lines for the terminal."""
        low, middle, high = self.prompt
        shortest, _, longest = self.answer
        world = f"{self.world:,} world tokens + " if self.world is not None else ""
        lines = [
            f"tokens: prompts {low} to {high} (median {middle:g}), answers {shortest} to {longest}; "
            f"longest {self.longest}: {world}{self.longest_tokens:,} of the {self.context:,} that {self.lm} attends to"
        ]
        if self.too_long:
            lines.append(f"too long for it: {name_some(self.too_long)}")
        if self.unknown:
            words = Counter(word for words in self.unknown.values() for word in words)
            lines.append(
                f"no token for {', '.join(repr(word) for word, _ in words.most_common(_TOP))} in answers to "
                f"{name_some(list(self.unknown))}"
            )
        if self.unread:
            words = name_some([repr(word) for word in self.unread], most=_TOP)
            lines.append(f"words of questions that it has no token for, and reads as one and the same: {words}")
        return lines


@dataclass(frozen=True, slots=True)
class QuestionReport:
    """The report on a questions file."""

    source: str
    layout: str
    questions: int
    images: int
    splits: dict[str, int]
    kinds: dict[str, Kind]
    later_turns: int
    """Questions with others before them in the same conversation."""
    repeated: tuple[str, ...]
    """Questions that another one asks already, with the same answer."""
    contradictions: tuple[tuple[str, str], ...]
    """Pairs of questions, the same about the same image, with different answers."""
    leaks: dict[str, int]
    """Pair of splits -> images that are in both."""
    bad: tuple[str, ...] = ()
    passed_over: dict[str, int] = field(default_factory=dict[str, int])
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """What was changed in rows, or taken in one of two ways -> how many times."""
    blind: str = ""
    """A warning where answers do not need the image; else empty."""
    held_out: str = ""
    """What a training would hold out for tests, in words; empty where the file states its splits."""
    with_latents: int | None = None
    """None where no store was named."""
    without_latents: dict[str, str] = field(default_factory=dict[str, str])
    """Question -> why it has none."""
    other_names: tuple[str, ...] = ()
    """Images that were found by another name than their own: how many of each kind, and one of them."""
    tokens: Tokens | None = None
    max_bad: int = 0
    """How many questions may be left out for each reason."""

    @property
    def refused(self) -> bool:
        """Whether a training on these would be refused."""
        long, unknown = (self.tokens.too_long, self.tokens.unknown) if self.tokens is not None else ((), ())
        left_out = max(len(self.bad), len(self.without_latents), len(long))
        return left_out > self.max_bad or bool(unknown) or not self.questions

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "refused": self.refused}

    def lines(self) -> list[str]:
        """Lines for the terminal, most important first."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        lines = [f"{self.source} ({self.layout}): {self.questions:,} questions about {self.images:,} images; {splits}"]
        lines += [self.held_out] if self.held_out else []
        lines += [f"  {name} {kind}" for name, kind in self.kinds.items()]
        lines += [f"warning: {self.blind}"] if self.blind else []
        if self.later_turns:
            lines.append(f"{self.later_turns:,} questions follow others of their conversation")
        if self.with_latents is not None:
            lines.append(f"latents: of {self.with_latents:,} questions there are, of {len(self.without_latents):,} not")
            lines += [f"  {name}: {why}" for name, why in list(self.without_latents.items())[:MAX_NAMES]]
            lines += self.other_names
        if self.tokens is not None:
            lines += self.tokens.lines()
        if self.bad:
            lines.append(f"wrong, and no question: {len(self.bad):,}")
            lines += [f"  {row}" for row in self.bad[:MAX_NAMES]]
        lines += [f"passed over, it {reason}: {count:,}" for reason, count in self.passed_over.items()]
        lines += [f"{note}: {count:,}" for note, count in self.notes.items()]
        if self.contradictions:
            pairs = [f"{first} and {other}" for first, other in self.contradictions]
            lines.append(f"the same question about the same image with different answers: {name_some(pairs)}")
        if self.repeated:
            lines.append(f"asked twice: {name_some(self.repeated)}")
        lines += [f"images that are both in {pair}: {count:,}" for pair, count in self.leaks.items()]
        return lines


def describe(
    file: QuestionFile,
    questions: Sequence[Question] | None = None,
    *,
    coverage: Coverage | None = None,
    tokens: Tokens | None = None,
    max_bad: int = 0,
    held_out: str = "",
) -> QuestionReport:
    """Count a questions file, or some of its questions.

    Args:
        questions: those to describe; None is all.
        coverage: which of them have latents. tokens: what they cost. max_bad: as of a training. held_out: what of them
            a training would hold out.
    """
    described = file.questions if questions is None else questions
    repeated, contradictions = _repetitions(described)
    return QuestionReport(
        source=str(file.path),
        layout=file.layout,
        questions=len(described),
        images=len({_image(question) for question in described}),
        splits=dict(sorted(Counter(question.split or "no split" for question in described).items())),
        kinds=kinds_of(described),
        blind=blind_warning(asked_by_type(described)),
        later_turns=sum(bool(question.before) for question in described),
        repeated=repeated,
        contradictions=contradictions,
        leaks=_leaks(described),
        bad=tuple(map(str, file.bad)),
        passed_over=file.skipped,
        notes=file.notes,
        held_out=held_out,
        other_names=() if coverage is None else coverage.notes,
        with_latents=None if coverage is None else len(coverage.keys),
        without_latents={} if coverage is None else {item.question.id: item.reason for item in coverage.missing},
        tokens=tokens,
        max_bad=max_bad,
    )


def kinds_of(questions: Iterable[Question]) -> dict[str, Kind]:
    """Summaries by type, sorted: counts, answers, and the accuracy of guessing."""
    by_type: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_type[question.type or UNTYPED].append(question)
    kinds: dict[str, Kind] = {}
    for name, group in sorted(by_type.items()):
        answers = Counter(question.answer for question in group)
        kinds[name] = Kind(
            questions=len(group),
            with_choices=sum(question.choices is not None for question in group),
            answers=dict(answers.most_common()),
            majority=max(answers.values()) / len(group),
            blind=blind_share([(question.question, question.answer) for question in group]),
        )
    return kinds


def blind_share(asked_questions: Sequence[tuple[str, str]]) -> float:
    """Share of the answers that the commonest answer to each wording gets right, where a wording comes often enough,
    and else the commonest of all.

    Args:
        asked_questions: question and correct answer; at least one.
    """
    answers = Counter(answer for _, answer in asked_questions)
    by_wording: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for wording, answer in asked_questions:
        by_wording[wording][answer] += 1
    [(commonest, _)] = answers.most_common(1)
    right = sum(
        counts.most_common(1)[0][1] if counts.total() >= _WORDING else counts[commonest]
        for counts in by_wording.values()
    )
    return right / len(asked_questions)


def blind_warning(asked_by_type: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """What to say of questions whose answers do not need the image; empty where there are none.

    Args:
        asked_by_type: type -> question and correct answer of each.
    """
    everything = [each for group in asked_by_type.values() for each in group]
    groups = {"all questions together": everything} if len(everything) >= _WORDING else {}
    if not groups or blind_share(everything) < BLIND:
        groups = {f"questions of type {name}": group for name, group in asked_by_type.items() if len(group) >= _WORDING}
    blind = [f"{share:.0%} of {name}" for name, group in groups.items() if (share := blind_share(group)) >= BLIND]
    if not blind:
        return ""
    return (
        f"the commonest answer to each wording is correct for {name_some(blind, most=_TOP)}. So a reader can answer "
        "them without image and future, and their accuracy does not show what it reads. Balance the answers to each "
        "wording, or compare with a run of --arm text"
    )


def asked_by_type(questions: Iterable[Question]) -> dict[str, list[tuple[str, str]]]:
    """What `blind_warning` takes."""
    by_type: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for question in questions:
        by_type[question.type or UNTYPED].append((question.question, question.answer))
    return dict(sorted(by_type.items()))


def measure(questions: Sequence[Question], speech: PromptFormat, *, world_tokens: int | None) -> Tokens:
    """Token lengths of questions, each with its longest possible answer."""
    unknown_id = speech.tokenizer.unk_token_id

    @cache
    def prompt_length(question: str, before: tuple[tuple[str, str], ...]) -> tuple[int, bool]:
        ids = speech.prompt_ids(question, before)
        return len(ids), unknown_id is not None and unknown_id in ids

    @cache
    def answer_length(text: str) -> tuple[int, tuple[str, ...]]:
        ids = speech.answer_ids(text)
        is_unknown = unknown_id is not None and unknown_id in ids
        return len(ids), tuple(speech.unknown_words(text)) if is_unknown else ()

    measured = [prompt_length(question.question, question.before) for question in questions]
    prompts = [length for length, _ in measured]
    unread = Counter(
        word
        for question, (_, is_unknown) in zip(questions, measured, strict=True)
        if is_unknown
        for word in dict.fromkeys(word.strip(".,:;?!") for word in speech.unknown_words(question.question))
    )
    answer_lengths = [
        [answer_length(text)[0] for text in question.choices or (question.answer,)] for question in questions
    ]
    totals = [prompt + max(answers) for prompt, answers in zip(prompts, answer_lengths, strict=True)]
    unknown = {
        question.id: tuple(words)
        for question in questions
        if (words := [word for text in question.choices or (question.answer,) for word in answer_length(text)[1]])
    }
    longest = max(range(len(totals)), key=totals.__getitem__)
    room = speech.context - (world_tokens or 0)
    answers = [length for lengths in answer_lengths for length in lengths]
    return Tokens(
        lm=speech.weights.source,
        prompt=(min(prompts), median(prompts), max(prompts)),
        answer=(min(answers), median(answers), max(answers)),
        longest=questions[longest].id,
        longest_tokens=totals[longest],
        world=world_tokens,
        context=speech.context,
        too_long=tuple(question.id for question, total in zip(questions, totals, strict=True) if total > room),
        unknown=unknown,
        unread=dict(unread.most_common()),
    )


def training_lines(questions: Sequence[Question], tokens: Tokens) -> list[str]:
    """The lines about its questions that a training prints first."""
    images = len({_image(question) for question in questions})
    lines = [f"{len(questions):,} questions about {images:,} images"]
    return [*lines, *(f"  {name} {kind}" for name, kind in kinds_of(questions).items()), *tokens.lines()]


def _image(question: Question) -> tuple[str, str | None, float | None]:
    return question.image_sha256 or question.image, question.prompt, question.anchor


def _repetitions(questions: Iterable[Question]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    first_by_content: dict[tuple[object, ...], Question] = {}
    repeated: list[str] = []
    contradictions: list[tuple[str, str]] = []
    for question in questions:
        content = (*_image(question), " ".join(question.question.casefold().split()), question.before)
        earlier = first_by_content.setdefault(content, question)
        if earlier is question:
            continue
        if earlier.answer.casefold() == question.answer.casefold():
            repeated.append(question.id)
        else:
            contradictions.append((earlier.id, question.id))
    return tuple(repeated), tuple(contradictions)


def _leaks(questions: Iterable[Question]) -> dict[str, int]:
    splits_of: defaultdict[tuple[str, str | None, float | None], set[str]] = defaultdict(set)
    for question in questions:
        splits_of[_image(question)].add(question.split or "train")
    counts: Mapping[str, int] = Counter(
        " and ".join(sorted(splits)) for splits in splits_of.values() if len(splits) > 1
    )
    return dict(counts)
