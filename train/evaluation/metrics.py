"""Figures of one run's answers: accuracy, without the favour of a common answer, by pairs; how sure, and how rightly.

Lives here: what is counted of predictions, as plain values. Elsewhere: intervals and tests (statistics.py), who is
asked what (evaluate.py), the page (run_report.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from ..pages.intervals import as_share
from ..questions.record import Question
from .statistics import paired_p_value, wilson

BINS = 10
"""Of a calibration, of equal width."""
ALARM = 0.02
"""Ranking and generation that differ by more say different things about a reader."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = re.compile(r"(?!(?<!\w)-\d)[^\w\s]")  # but the minus of a number


def normalised(text: str) -> str:
    """An answer without case, punctuation, articles and extra spaces, unless it is nothing else: "A" is an answer."""
    whole = text.casefold()
    words = _MARKS.sub(" ", whole)
    return " ".join((_ARTICLES.sub(" ", words).split() or words.split()) or whole.split())


class Figure(BaseModel):
    """A plain value that evaluation.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(Figure):
    """How many of a kind were right, with the Wilson 95 % interval of the share."""

    correct: int
    total: int
    accuracy: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{as_share(self.accuracy, self.low, self.high)} of {self.total}"


class Prediction(Figure):
    """What was answered to one question. Evaluations before version 2 hold the first five fields alone."""

    id: str
    type: str
    predicted: str
    answer: str
    correct: bool
    generated: str | None = None
    """In its own words, where `predicted` is the choice ranked first."""
    generated_correct: bool | None = None
    choices: tuple[str, ...] | None = None
    probabilities: tuple[float, ...] = ()
    """Of the choices, among them."""
    question: str = ""
    image: str = ""
    key: str = ""
    """Of its image's latents."""
    scene: str = ""
    about: str = ""
    """Family and question of a controlled comparison."""
    pair: str = ""

    @property
    def cluster(self) -> str:
        """As `Question.cluster`; of files that say none of it, the question itself."""
        return self.pair or self.scene or self.image or self.id

    @property
    def asks(self) -> tuple[str, str]:
        """As `Question.asks`."""
        return self.type, self.about or self.question

    @property
    def confidence(self) -> float | None:
        """The probability of the choice ranked first."""
        return max(self.probabilities) if self.probabilities else None


class Balanced(Figure):
    """Accuracy where every answer counts the same, however often it is the right one."""

    accuracy: float
    chance: float
    """What a blind guess among the choices gets."""
    questions: int


class Bin(Figure):
    """Answers of about the same confidence."""

    questions: int
    confidence: float
    """Mean."""
    accuracy: float


class Calibration(Figure):
    """Whether a reader that is p sure is right p of the time."""

    questions: int
    ece: float
    """Expected calibration error: the mean distance of accuracy from confidence, bins weighted by their questions."""
    confidence: float
    accuracy: float
    bins: tuple[Bin, ...]
    """From unsure to sure; empty ones left out."""


def score(right: Iterable[bool]) -> Score:
    """Count them; there is at least one."""
    told = list(right)
    low, high = wilson(sum(told), len(told))
    return Score(correct=sum(told), total=len(told), accuracy=sum(told) / len(told), low=low, high=high)


def generation(predictions: Sequence[Prediction]) -> Score | None:
    """Of the questions with choices, how many were answered rightly in own words."""
    told = [p.generated_correct for p in predictions if p.generated_correct is not None]
    return score(told) if told else None


def balance(predictions: Sequence[Prediction]) -> Balanced | None:
    """Mean over the answers of the share of their questions that was told right; None without choices.

    Taken apart for each question of a family or, where none is named, for each set of choices, and these weighted by
    their questions: "no" to "will it fall?" is another answer than a color.
    """
    groups: dict[tuple[str, ...], dict[str, list[Prediction]]] = {}
    for one in predictions:
        if one.choices:
            group = (one.about,) if one.about else tuple(sorted(one.choices))
            groups.setdefault(group, {}).setdefault(one.answer, []).append(one)
    total = sum(len(of) for answers in groups.values() for of in answers.values())
    if not total:
        return None
    accuracy = chance = 0.0
    for answers in groups.values():
        weight = sum(map(len, answers.values())) / total / len(answers)
        accuracy += weight * sum(sum(p.correct for p in of) / len(of) for of in answers.values())
        chance += weight * sum(sum(1 / len(p.choices or ()) for p in of) / len(of) for of in answers.values())
    return Balanced(accuracy=accuracy, chance=chance, questions=total)


def minimal_pairs(asked: Sequence[Question] | Sequence[Prediction]) -> list[tuple[int, int]]:
    """The places of both halves of each minimal pair: the same question, two scenes of a pair, different answers."""
    halves: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(asked):
        if one.pair:
            halves.setdefault((one.pair, *one.asks), []).append(place)
    known = [(of[0], of[1]) for of in halves.values() if len(of) == 2]
    return [(first, second) for first, second in known if asked[first].answer != asked[second].answer]


def pairs(predictions: Sequence[Prediction]) -> Score | None:
    """How many minimal pairs were told right, both halves of them."""
    both = [predictions[first].correct and predictions[second].correct for first, second in minimal_pairs(predictions)]
    return score(both) if both else None


def calibrate(predictions: Iterable[Prediction]) -> Calibration | None:
    """How far confidence and accuracy lie apart, of questions with choices.

    Source: C. Guo et al., ICML 2017 (after M. P. Naeini et al., AAAI 2015), of the likeliest answer.
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for one in predictions:
        if (sure := one.confidence) is not None:
            bins.setdefault(min(int(sure * BINS), BINS - 1), []).append((sure, one.correct))
    total = sum(map(len, bins.values()))
    if not total:
        return None
    told = tuple(
        Bin(
            questions=len(of),
            confidence=sum(sure for sure, _ in of) / len(of),
            accuracy=sum(right for _, right in of) / len(of),
        )
        for _, of in sorted(bins.items())
    )
    return Calibration(
        questions=total,
        ece=sum(b.questions * abs(b.accuracy - b.confidence) for b in told) / total,
        confidence=sum(b.questions * b.confidence for b in told) / total,
        accuracy=sum(b.questions * b.accuracy for b in told) / total,
        bins=told,
    )


def alarms(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """What a reader of the figures has to know before believing them."""
    chosen = [p for p in predictions if p.generated_correct is not None]
    far: list[str] = []
    for kind in ("", *sorted({p.type for p in chosen})):
        of = [p for p in chosen if kind in ("", p.type)]
        ranked, said = sum(p.correct for p in of), sum(bool(p.generated_correct) for p in of)
        if of and abs(ranked - said) > ALARM * len(of):
            p_value = paired_p_value((p.cluster, p.correct, bool(p.generated_correct)) for p in of)
            shares = f"{100 * ranked / len(of):.1f} % against {100 * said / len(of):.1f} % in own words"
            far.append(f"{kind or 'all'} {shares} (exact p {p_value:.2g})")
    if not far:
        return ()
    stray = sum(not _is_choice(p) for p in chosen)
    return (
        f"ranking choices and own words differ by more than {100 * ALARM:g} points: {', '.join(far)}. "
        f"{stray} of {len(chosen)} answers in own words are none of the choices: ranking shows what the reader knows "
        "of the choices, own words what it says without them",
    )


def _is_choice(one: Prediction) -> bool:
    return normalised(one.generated or "") in map(normalised, one.choices or ())
