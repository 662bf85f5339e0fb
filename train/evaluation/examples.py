"""The examples of the evaluation page: a rollout that plays, the question, and what each run answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..pages.films import Film, film
from ..pages.html import Html, render, together
from .metrics import Prediction
from .results.saved import Evaluation

EXAMPLES = 6
"""Of each kind, at most."""

Outcomes = Mapping[str, bool]
"""Scene -> whether its rollout ends as the true scene does."""


@dataclass(frozen=True, slots=True)
class ReportExample:
    """A question, and the answers of the runs."""

    prediction: Prediction
    """Of the run whose future is shown."""
    run: Evaluation
    answers: tuple[tuple[str, Prediction], ...]
    """What each run is called, and its answer."""
    kinds: tuple[str, ...]
    """Names in `FILTERS`."""
    rollout_correct: bool | None = None
    """None where it is not known."""


Draw = Callable[[ReportExample], Film | None]
"""Decodes the predicted future of an example; None where it cannot be decoded."""

FILTERS = {
    "win": "only the first run is correct",
    "loss": "only the last run is correct",
    "correct": "correct answers",
    "wrong": "wrong answers",
    "wrong-rollout": "wrong rollouts",
}
"""The kinds of examples, and the words on their buttons."""


def examples(
    trained: Sequence[Evaluation], outcomes: Outcomes | None = None, *, names: Sequence[str]
) -> list[ReportExample]:
    """Questions that only one of the first and the last run answered correctly, then questions about wrong rollouts.

    Of a single run: its most confident answers, correct and wrong; also of several runs where there is nothing of the
    above. Temporal questions where there are any. The same evaluations give the same examples.

    Args:
        names: what the page calls each of `trained`.
    """
    first, last = trained[0], trained[-1]
    shown_run = first if first.steps >= last.steps else last
    last_by_id = {p.id: p for p in last.predictions}
    candidates = [p for p in first.predictions if p.type == "temporal"] or list(first.predictions)
    both = [(p, last_by_id[p.id]) for p in candidates if p.id in last_by_id]
    alike = first is last or not any(_kinds(*pair, outcomes, alike=False) for pair in both)
    by_kind: dict[str, list[Prediction]] = {}
    for p, other in sorted(both, key=lambda pair: (-(pair[0].confidence or 0.0), pair[0].id)):
        for kind in _kinds(p, other, outcomes, alike=alike):
            by_kind.setdefault(kind, []).append(p)
    chosen = dict.fromkeys(p.id for kind in FILTERS for p in by_kind.get(kind, [])[:EXAMPLES])
    by_id = {p.id: p for p in candidates}
    report_examples: list[ReportExample] = []
    for p in (by_id[number] for number in chosen):
        other = last_by_id[p.id]
        answers = ((names[0], p),) if first is last else ((names[0], p), (names[-1], other))
        report_examples.append(
            ReportExample(
                p if shown_run is first else other,
                shown_run,
                answers,
                _kinds(p, other, outcomes, alike=alike),
                _outcome(p, outcomes),
            )
        )
    return report_examples


def _kinds(p: Prediction, other: Prediction, outcomes: Outcomes | None, *, alike: bool) -> tuple[str, ...]:
    kinds: list[str] = []
    if alike:
        kinds.append("correct" if p.correct else "wrong")
    elif p.correct is not other.correct:
        kinds.append("win" if p.correct else "loss")
    if _outcome(p, outcomes) is False:
        kinds.append("wrong-rollout")
    return tuple(kinds)


def _outcome(prediction: Prediction, outcomes: Outcomes | None) -> bool | None:
    return None if outcomes is None else outcomes.get(prediction.scene or prediction.image)


_STAGE = """<div data-stage><div class="controls" hidden>\
{% if buttons %}<button type="button" data-show="all" aria-pressed="true">all</button>\
{% for button in buttons %}<button type="button" data-show="{{ button.kind }}" aria-pressed="false">{{ button.text }} \
({{ button.count }})</button>{% endfor %}\
<span class="small" role="status" data-count></span>{% endif %}\
{% if plays %}<span class="time"><button type="button" data-play>Pause</button>\
<label class="time">time <input type="range" min="0" max="1000" value="0"></label></span>{% endif %}</div>
<div class="cards">{{ cards }}</div></div>
"""
_CARD = """<article class="card" data-kinds="{{ kinds }}"><h3 dir="auto">{{ question }}</h3>
<p class="small">{{ image }}</p>
{{ films }}
<ul class="answers">{% for answer in answers %}<li>{{ answer.name }}: <b dir="auto">{{ answer.text }}</b>\
{{ answer.confidence }} \
<span class="{{ 'gain' if answer.correct else 'loss' }}">{{ '✓ correct' if answer.correct else '✗ wrong' }}</span>\
{% if answer.generated %} <span class="small">generated: <bdi>{{ answer.generated }}</bdi></span>{% endif %}</li>
{% endfor %}<li>Correct answer: <b dir="auto">{{ correct }}</b></li></ul></article>
"""
_MARK = """Predicted{% if correct is not none %}: \
<span class="{{ 'gain' if correct else 'loss' }}">{{ '✓ correct' if correct else '✗ wrong' }}</span>{% endif %}"""


def example_cards(chosen: Sequence[ReportExample], draw: Draw | None, words: Mapping[str, str]) -> Html:
    """The examples as cards, with buttons that show one kind of them alone; nothing without examples.

    Args:
        words: other words for a kind than those of `FILTERS`.
    """
    if not chosen:
        return Html("")
    drawn = [None if draw is None else draw(example) for example in chosen]
    counts = Counter(kind for example in chosen for kind in example.kinds)
    buttons = [
        {"kind": kind, "text": words.get(kind, text), "count": f"{counts[kind]}"}
        for kind, text in FILTERS.items()
        if counts[kind]
    ]
    cards = together(_card(example, clip) for example, clip in zip(chosen, drawn, strict=True))
    return render(_STAGE, buttons=buttons, cards=cards, plays=any(clip is not None for clip in drawn))


def _card(example: ReportExample, clip: Film | None) -> Html:
    p = example.prediction
    answers = [
        {
            "name": name,
            "text": answer.predicted,
            "confidence": "" if answer.confidence is None else f" ({answer.confidence:.0%})",
            "correct": answer.correct,
            "generated": "" if answer.generated in (None, answer.predicted) else answer.generated,
        }
        for name, answer in example.answers
    ]
    return render(
        _CARD,
        kinds=" ".join(example.kinds),
        question=p.question or p.id,
        image=p.image or p.id,
        films=Html("") if clip is None else _films(example, clip),
        answers=answers,
        correct=p.answer,
    )


_FILMS = """<div class="films">{{ films }}</div>"""


def _films(example: ReportExample, clip: Film) -> Html:
    image = example.prediction.image or example.prediction.id
    predicted = film(
        clip.predicted,
        rate=clip.rate,
        caption=render(_MARK, correct=example.rollout_correct),
        label=f"predicted future of {image}",
        alt=f"Frames of the predicted future of {image}",
    )
    if clip.true is None:
        return render(_FILMS, films=predicted)
    true = film(
        clip.true,
        rate=clip.rate,
        caption="True future",
        label=f"true future of {image}",
        alt=f"Frames of the true future of {image}",
    )
    return render(_FILMS, films=together([predicted, true]))
