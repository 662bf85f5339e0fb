"""How the evaluation page begins: three plain sentences, and the share of correct answers with and without the future.

Warnings stand right below; what they say must not be folded away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..pages import intervals
from ..pages.html import Html, bullets, paragraph, render, together
from .own_words import RULES
from .plots import Named, accuracy_of
from .results.saved import Evaluation

WITH, WITHOUT = "with the future", "without it"
_TILES = 6
"""Runs whose accuracy stands in large print."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two runs that a page is about: one reads the predicted future, the other one frame or none."""

    with_future: Evaluation
    without: Evaluation


def pair_of(trained: list[Evaluation]) -> Pair | None:
    """The pair, where there are just two runs and they are such."""
    if len(trained) != 2:
        return None
    future, other = sorted(trained, key=lambda e: not _reads_future(e))
    return Pair(future, other) if _reads_future(future) and not _reads_future(other) else None


def _reads_future(evaluation: Evaluation) -> bool:
    return evaluation.steps > 0 and evaluation.arm not in ("text", "steps0", "frozen", "noise", "shuffled")


_SHARES = """<ul class="pair">{% for tile in tiles %}<li class="{{ tile.ink }}"><b>{{ tile.share }}</b>\
<span>{{ tile.name }}</span>\
{% if tile.interval %}<span class="small">95 % interval {{ tile.interval }}</span>{% endif %}</li>{% endfor %}</ul>
"""


def headline(runs: Named, pair: Pair | None, blind: Iterable[tuple[str, str]] = ()) -> Html:
    """Sentences, figures and warnings; of the temporal questions where there are any, else of all.

    Args:
        blind: warnings of runs that a guess without the image comes near.
    """
    kind = "temporal" if all("temporal" in e.by_type for _, e in runs) else ""
    first = runs[0][1]
    count = (accuracy_of(first, kind) or first.overall).total
    about = "about what happens next" if kind else "of all types"
    split = "" if first.split is None else f"{first.split} "
    sentences = [
        "A world model saw one image and predicted what happens next.",
        "A language model then answered questions: one adapter reads the predicted future, another the image alone.",
        f"Of {count:,} {split}questions {about}, they answered this share correctly:",
    ]
    if pair is None:
        sentences = [
            "A run is a frozen language model with a trained adapter, which reads what a world model made of an image.",
            f"Of {count:,} {split}questions {about}, {'they' if len(runs) > 1 else 'it'} answered this share "
            "correctly:",
        ]
    tiles = [
        _tile(WITH if pair and e is pair.with_future else WITHOUT if pair else name, e, kind, n)
        for n, (name, e) in enumerate(runs[:_TILES])
    ]
    notes = _notes(runs, blind)
    parts = [paragraph(" ".join(sentences)), render(_SHARES, tiles=tiles), paragraph(_chance(first, kind))]
    return together([*parts, bullets(notes)] if notes else parts)


def _tile(name: str, e: Evaluation, kind: str, number: int) -> dict[str, str]:
    score = accuracy_of(e, kind) or e.overall
    share, _, interval = intervals.as_percent(score.accuracy, score.low, score.high).partition(" [")
    return {"name": name, "share": share, "interval": interval.rstrip("]").replace(", ", " to "), "ink": f"c{number}"}


def _chance(first: Evaluation, kind: str) -> str:
    """What a random choice reaches, and how answers are found."""
    balanced = first.balanced.get(kind)
    chance = "" if balanced is None else f"A random choice is correct in {100 * balanced.chance:.0f} %. "
    return f"{chance}Where a question has choices, the answer is the choice that the language model finds likeliest."


def _notes(runs: Named, blind: Iterable[tuple[str, str]]) -> list[str | Html]:
    alarm = '<span class="alarm">{{ names }}</span>: {{ text }}'
    texts = [*((name, text) for name, e in runs for text in e.alarms), *blind]
    notes: list[str | Html] = [render(alarm, names=names, text=text) for text, names in _runs_by_note(texts)]
    earlier = "generated answers, calibration and cost are not known. Evaluate it again"
    scored = "generated answers were scored by earlier rules: theworld evaluate --rescore scores them again"
    texts = [(name, f"evaluated by an earlier version: {earlier}") for name, e in runs if e.version < 2]
    texts += [(name, scored) for name, e in runs if e.rules != RULES]
    notes += [f"{names}: {text}" for text, names in _runs_by_note(texts)]
    return notes + [
        f"{name} was not asked {e.left_out:,} more questions, which are too long or have no latents"
        for name, e in runs
        if e.left_out
    ]


def _runs_by_note(texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each note with the names of the runs that it is about."""
    names: dict[str, list[str]] = {}
    for name, text in texts:
        names.setdefault(text, []).append(name)
    return [(text, "; ".join(those)) for text, those in names.items()]
