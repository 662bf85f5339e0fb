"""Random texts that teach reading, and no physics: statements about things, then questions about them.

Every answer is drawn at random and stated in the context, in words only; where a thing starts says
nothing about where it lands. Elsewhere: the words (words.py), training on these texts (build.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from .words import (
    ANSWERS,
    BOS,
    COMMON,
    COUNTED,
    EOS,
    FAMILIES,
    QUESTIONS,
    STATEMENTS,
    THINGS,
    format_question,
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """One context with its questions, in pieces."""

    context: str
    questions: tuple[tuple[str, str, str], ...]
    """Question, answer, answer family (`places`, `colors`, `counts`)."""

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The text in order; the flag tells what the loss counts: each answer and the end behind it."""
        yield f"{BOS} {self.context}", False
        for question, answer, _ in self.questions:
            yield format_question(question), False
            yield f"{answer} {EOS}", True


def sample_pair(rng: Random, *, plain: bool) -> Text:
    """Only where the ball starts and where it lands, asked in both orders; `plain` uses one form for each.

    The first lesson. Without it a model learns to answer with *a* place it has read, and stays there: the
    colors and counts of a text are alone of their kind, only the two places must be told apart.
    """
    families = rng.sample(("land", "below"), 2)
    known = {family: rng.choice(ANSWERS[family]) for family in families}
    chosen = {
        family: (STATEMENTS[family][0], QUESTIONS[family][0])
        if plain
        else (rng.choice(STATEMENTS[family]), rng.choice(QUESTIONS[family]))
        for family in families
    }
    return Text(
        context=" ".join(chosen[family][0].format(o="ball", a=known[family]) for family in families),
        questions=tuple(
            (chosen[family][1].format(o="ball"), known[family], FAMILIES[family]) for family in rng.sample(families, 2)
        ),
    )


def sample_text(rng: Random, *, questions: int | None = None) -> Text:
    """A random context of three to five statements and two or three questions about it."""
    # Mostly the scenes' own things; a second one at times, so that the name of a thing is read too.
    things = ["ball", *rng.sample(THINGS[1:], rng.random() < 0.15)]
    counted = ["ramps", *rng.sample(COUNTED[1:], rng.random() < 0.15)]
    # Where it starts and where it lands stand in every text: the pair is what was hardest to keep apart.
    places = [("land", things[-1]), ("below", things[-1])]
    others = [(family, thing) for thing in things for family in ("land", "below", "color")]
    others = [fact for fact in others if fact not in places] + [("count", thing) for thing in counted]
    facts = places + rng.sample(others, min(len(others), rng.randint(1, 3)))
    rng.shuffle(facts)
    known = {fact: rng.choice(ANSWERS[fact[0]]) for fact in facts}
    lines = [rng.choice(STATEMENTS[family]).format(o=thing, a=answer) for (family, thing), answer in known.items()]
    if rng.random() < 0.15:
        filler = " ".join(rng.choices(COMMON, k=rng.randint(2, 8)))
        lines.insert(rng.randrange(len(lines) + 1), f"{filler} .")
    asked = rng.sample(facts, min(len(facts), questions or rng.randint(2, 3)))
    return Text(
        context=" ".join(lines),
        questions=tuple(
            (rng.choice(QUESTIONS[family]).format(o=thing), known[family, thing], FAMILIES[family])
            for family, thing in asked
        ),
    )
