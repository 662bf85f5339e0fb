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
    """Two facts of one kind, each asked about: where the ball starts and lands, or the numbers of two things.

    The first lesson. Without it a model learns to answer with *a* place it has read, and stays there: the
    color of a text is alone of its kind, only such pairs must be told apart. `plain` uses one form for each.
    """
    if plain or rng.random() < 0.6:
        facts = [("land", "ball"), ("below", "ball")]
    else:
        facts = [("count", "ramps"), ("count", rng.choice(COUNTED[1:]))]
    rng.shuffle(facts)
    known = {fact: rng.choice(ANSWERS[fact[0]]) for fact in facts}
    lines, questions = [], []
    for (family, thing), answer in known.items():
        statement, question = (
            (STATEMENTS[family][0], QUESTIONS[family][0])
            if plain
            else (rng.choice(STATEMENTS[family]), rng.choice(QUESTIONS[family]))
        )
        lines.append(statement.format(o=thing, a=answer))
        questions.append((question.format(o=thing), answer, FAMILIES[family]))
    rng.shuffle(questions)
    return Text(context=" ".join(lines), questions=tuple(questions))


def sample_text(rng: Random, *, questions: int | None = None, second_thing: float = 0.15) -> Text:
    """A random context of three to five statements and two or three questions about it.

    `second_thing` is the chance of another thing beside the ball, and of another counted one beside the ramps.
    """
    # Mostly the scenes' own things; a second one at times, so that the name of a thing is read too.
    things = ["ball", *rng.sample(THINGS[1:], rng.random() < second_thing)]
    counted = ["ramps", *rng.sample(COUNTED[1:], rng.random() < second_thing)]
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
