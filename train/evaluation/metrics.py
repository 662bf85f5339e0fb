"""Figures of one run's answers: accuracy, balanced accuracy, minimal pairs, calibration, and warnings about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from ...pipeline.messages import name_some
from ..pages.intervals import as_share
from ..questions.record import Question
from ..questions.report import BLIND, blind_share, blind_warning
from .own_words import normalised
from .statistics import clustered, paired_p_value, wilson

BINS = 10
"""Bins of a calibration, of equal width."""
ALARM = 0.02
"""A larger difference between the accuracy of ranked and of generated answers is reported."""


class Figure(BaseModel):
    """A plain value that evaluation.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(Figure):
    """How many answers are correct, with two 95 % intervals of the share."""

    correct: int
    total: int
    accuracy: float
    low: float
    high: float
    """Wilson's, which takes questions for independent."""
    clusters: int | None = None
    """Scenes, images or minimal pairs (`Prediction.cluster`) that the questions are about; None where it was not
    noted."""
    cluster_low: float | None = None
    cluster_high: float | None = None
    """Of `statistics.clustered`: other clusters might have been asked about."""

    def __str__(self) -> str:
        return f"{as_share(self.accuracy, self.low, self.high)} of {self.total}"

    @property
    def by_cluster(self) -> str | None:
        """The interval by cluster as text; None if each question is a cluster."""
        if self.clusters is None or self.clusters == self.total or self.cluster_low is None:
            return None
        _, _, interval = as_share(self.accuracy, self.cluster_low, self.cluster_high).partition(" ")
        return f"{interval} by {self.clusters:,} clusters"


class Prediction(Figure):
    """The answer to one question. Evaluations before version 2 hold the first five fields alone."""

    id: str
    type: str
    predicted: str
    answer: str
    correct: bool
    generated: str | None = None
    """The generated answer, where `predicted` is the choice ranked first. Of an answer that is the letter of a choice,
    the choice."""
    generated_correct: bool | None = None
    choices: tuple[str, ...] | None = None
    probabilities: tuple[float, ...] = ()
    """Of the choices; they sum to 1."""
    question: str = ""
    image: str = ""
    key: str = ""
    """Of its image's latents."""
    scene: str = ""
    about: str = ""
    """Family and question of a controlled comparison."""
    pair: str = ""
    agreement: float | None = None
    """The share of draws whose own answer is this one; None where one future was shown."""

    @property
    def cluster(self) -> str:
        """As `Question.cluster`; the question itself where a file has none of these fields."""
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
    """Accuracy in which every answer has the same weight, however often it is the correct one."""

    accuracy: float
    chance: float
    """What a random choice reaches."""
    questions: int


class Bin(Figure):
    """Answers of about the same confidence."""

    questions: int
    confidence: float
    """Mean."""
    accuracy: float


class Calibration(Figure):
    """Whether answers of probability p are correct in a share p of the questions."""

    questions: int
    ece: float
    """Expected calibration error: the mean distance of accuracy from confidence, bins weighted by their questions."""
    confidence: float
    accuracy: float
    bins: tuple[Bin, ...]
    """By rising confidence; empty ones are left out."""


def score(correct: Iterable[bool], clusters: Iterable[str] | None = None) -> Score:
    """The share of correct answers, of at least one.

    Args:
        clusters: of each answer, where several may be about one scene.
    """
    flags = list(correct)
    low, high = wilson(sum(flags), len(flags))
    plain = Score(correct=sum(flags), total=len(flags), accuracy=sum(flags) / len(flags), low=low, high=high)
    if clusters is None:
        return plain
    names = list(clusters)
    low, high = clustered(flags, names)
    return plain.model_copy(update={"clusters": len(set(names)), "cluster_low": low, "cluster_high": high})


def accuracy(predictions: Sequence[Prediction]) -> Score:
    """The share of correct answers, of at least one."""
    return score((p.correct for p in predictions), (p.cluster for p in predictions))


def generation(predictions: Sequence[Prediction]) -> Score | None:
    """The score of generated answers to questions with choices; None without any."""
    chosen = [p for p in predictions if p.generated_correct is not None]
    return score((bool(p.generated_correct) for p in chosen), (p.cluster for p in chosen)) if chosen else None


def balance(predictions: Sequence[Prediction]) -> Balanced | None:
    """Mean over the answers of the accuracy on the questions they are correct for; None without choices.

    It is computed apart for each question of a family, or for each set of choices where no family is named, and then
    averaged by number of questions: "no" to "will it fall?" is another answer than a color.
    """
    groups: dict[tuple[str, ...], dict[str, list[Prediction]]] = {}
    for prediction in predictions:
        if prediction.choices:
            name = (prediction.about,) if prediction.about else tuple(sorted(prediction.choices))
            groups.setdefault(name, {}).setdefault(prediction.answer, []).append(prediction)
    total = sum(len(group) for answers in groups.values() for group in answers.values())
    if not total:
        return None
    accuracy = chance = 0.0
    for answers in groups.values():
        weight = sum(map(len, answers.values())) / total / len(answers)
        accuracy += weight * sum(sum(p.correct for p in group) / len(group) for group in answers.values())
        chance += weight * sum(sum(1 / len(p.choices or ()) for p in group) / len(group) for group in answers.values())
    return Balanced(accuracy=accuracy, chance=chance, questions=total)


def minimal_pairs(questions: Sequence[Question] | Sequence[Prediction]) -> list[tuple[int, int]]:
    """The indices of both halves of each minimal pair: the same question, two scenes of a pair, different answers."""
    halves: dict[tuple[str, ...], list[int]] = {}
    for index, question in enumerate(questions):
        if question.pair:
            halves.setdefault((question.pair, *question.asks), []).append(index)
    pairs = [(indices[0], indices[1]) for indices in halves.values() if len(indices) == 2]
    return [(first, second) for first, second in pairs if questions[first].answer != questions[second].answer]


def pairs(predictions: Sequence[Prediction]) -> Score | None:
    """The share of minimal pairs with both halves correct; None without pairs."""
    both_correct = [
        predictions[first].correct and predictions[second].correct for first, second in minimal_pairs(predictions)
    ]
    return score(both_correct) if both_correct else None


def calibrate(predictions: Iterable[Prediction]) -> Calibration | None:
    """How far confidence and accuracy differ on questions with choices; None without any.

    Source: C. Guo et al., ICML 2017 (after M. P. Naeini et al., AAAI 2015), of the likeliest answer.
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for prediction in predictions:
        if (confidence := prediction.confidence) is not None:
            number = min(int(confidence * BINS), BINS - 1)
            bins.setdefault(number, []).append((confidence, prediction.correct))
    total = sum(map(len, bins.values()))
    if not total:
        return None
    filled = tuple(
        Bin(
            questions=len(members),
            confidence=sum(confidence for confidence, _ in members) / len(members),
            accuracy=sum(correct for _, correct in members) / len(members),
        )
        for _, members in sorted(bins.items())
    )
    return Calibration(
        questions=total,
        ece=sum(b.questions * abs(b.accuracy - b.confidence) for b in filled) / total,
        confidence=sum(b.questions * b.confidence for b in filled) / total,
        accuracy=sum(b.questions * b.accuracy for b in filled) / total,
        bins=filled,
    )


ALARMS_NAMED = 10
"""Types of questions that an alarm names; it counts the others."""


def group_by_type(predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """The answers of each type of question, types in alphabetical order; a file may state a type for each question."""
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(prediction.type, []).append(prediction)
    return dict(sorted(groups.items()))


def alarms(predictions: Sequence[Prediction], *, arm: str = "rollout") -> tuple[str, ...]:
    """Warnings about the figures: answers that need no image, or are no better than without one; ranked and
    generated answers that differ.

    Args:
        arm: what is shown; `text` shows no world.
    """
    by_type = group_by_type(predictions)
    blind = blind_warning({name: [(p.question, p.answer) for p in group] for name, group in by_type.items()})
    right = sum(p.correct for p in predictions)
    if arm == "text" and not blind and len(predictions) >= BINS and right >= BLIND * len(predictions):
        blind = (
            f"without image and future, this run answers {right / len(predictions):.0%} correctly: the questions give "
            "their answers away, so accuracy on them does not show what a reader reads"
        )
    near = "" if blind or arm == "text" else _blind_alarm(predictions)
    return tuple(filter(None, (blind, near, _ranking_alarm(predictions))))


def _blind_alarm(predictions: Sequence[Prediction]) -> str:
    """Where a guess by the wording of the question is as good, within the interval of the accuracy."""
    by_type = group_by_type(predictions)
    near: list[str] = []
    for name, group in {"all questions": list(predictions), **(by_type if len(by_type) > 1 else {})}.items():
        if len(group) < BINS:
            continue
        guess, reached = blind_share([(p.question, p.answer) for p in group]), accuracy(group)
        low = min(reached.low, reached.low if reached.cluster_low is None else reached.cluster_low)
        if low <= guess:
            near.append(f"{name} {reached.accuracy:.0%} (interval from {low:.0%}) against {guess:.0%}")
    if not near:
        return ""
    return (
        "accuracy is not clearly above that of a blind guess, the commonest answer to each wording: "
        f"{name_some(near, most=ALARMS_NAMED)}. So it does not show that the run uses what it sees. Compare with "
        "--shown text, and ask more questions or train for longer"
    )


def _ranking_alarm(predictions: Sequence[Prediction]) -> str:
    """Where the accuracy of ranked and of generated answers differs."""
    generated_answers = [p for p in predictions if p.generated_correct is not None]
    differences: list[str] = []
    for kind, group in {"": generated_answers, **group_by_type(generated_answers)}.items():
        ranked, generated = sum(p.correct for p in group), sum(bool(p.generated_correct) for p in group)
        if group and abs(ranked - generated) > ALARM * len(group):
            p_value = paired_p_value((p.cluster, p.correct, bool(p.generated_correct)) for p in group)
            shares = f"{100 * ranked / len(group):.1f} % ranked, {100 * generated / len(group):.1f} % generated"
            differences.append(f"{kind or 'all'} {shares} (exact p {p_value:.2g})")
    if not differences:
        return ""
    stray = sum(not _is_choice(p) for p in generated_answers)
    named = name_some(differences, most=ALARMS_NAMED)
    return (
        f"accuracy of ranked choices and of generated answers differs by more than {100 * ALARM:g} points: {named}. "
        f"{stray} of {len(generated_answers)} generated answers are none of the choices"
    )


def _is_choice(prediction: Prediction) -> bool:
    return normalised(prediction.generated or "") in map(normalised, prediction.choices or ())
