"""Random texts that teach reading and no physics: statements about things, then questions about them.

Every answer is drawn at random and stated in the context: where a thing starts says nothing about where it lands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from .words import ANSWERS, BOS, COMMON, EOS, FAMILIES, QUESTIONS, STATEMENTS, THINGS, format_question, state

Fact = tuple[str, str]
"""What is told and asked: its question family (`land`, `color`, ...) and its thing, "" where there is no choice."""

FACTS: tuple[Fact, ...] = tuple((about, thing) for about in QUESTIONS for thing in THINGS.get(about, ("",)))


_MORE_THINGS = {"color": ("cube", "box", "disk", "cup"), "count": ("walls", "cups", "lines")}
"""No scene has them."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a text, with what it belongs to."""

    text: str
    answer: str
    fact: Fact

    @property
    def family(self) -> str:
        """Its answer family: `places`, `sides`, `colors`, `counts` or `yes/no`."""
        return FAMILIES[ANSWERS[self.fact[0]]]


@dataclass(frozen=True, kw_only=True)
class Text:
    """One context with its questions, in pieces."""

    context: str
    questions: tuple[Question, ...]

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The text in order; the flag tells what the loss counts: each answer and the end behind it."""
        yield f"{BOS} {self.context}", False
        for question in self.questions:
            yield format_question(question.text), False
            yield f"{question.answer} {EOS}", True


def alike(fact: Fact) -> list[Fact]:
    """The facts that `fact` can be mistaken for, itself among them: their answers share words with its answers."""
    words = set(ANSWERS[fact[0]])
    return [other for other in FACTS if words & set(ANSWERS[other[0]])]


KINDS: tuple[tuple[Fact, ...], ...] = tuple(dict.fromkeys(tuple(alike(fact)) for fact in FACTS))
"""All facts, those together that can be mistaken for one another."""
FULL = max(map(len, KINDS))
"""The level at which nothing that could be mistaken for an answer is left out."""


def sample_text(rng: Random, *, level: int = FULL, questions: int | None = None, plain: bool = False) -> Text:
    """A random context, and questions about half of it, or `questions` of them.

    Args:
        level: how many facts of one kind it states, if there are as many; up to `level + 2` with others, but level 2
            is just a pair. Without pairs first, a model learns to answer with *a* place it has read, and stays there.
        plain: use one form for each statement and question.
    """
    kind = rng.choice(KINDS)
    facts = rng.sample(kind, min(level, len(kind)))
    if level > 2:
        others = [fact for fact in FACTS if fact not in kind]
        facts += rng.sample(others, rng.randint(0, level + 2 - len(facts)))
    return _write(rng, facts, questions, plain=plain)


def sample_things(rng: Random, *, plain: bool = False) -> Text:
    """The same told and asked of two to four things: only a thing's name tells their answers apart.

    Where the scenes' own few things were the only ones, their names stayed unread (.65 of the colors right).
    """
    about = rng.choice(list(_MORE_THINGS))
    things = rng.sample(THINGS[about], rng.randint(1, 2)) + rng.sample(_MORE_THINGS[about], rng.randint(1, 2))
    if rng.random() < 0.5:
        things = rng.sample(THINGS[about], 2)
    return _write(rng, [(about, thing) for thing in things], None, plain=plain)


def _write(rng: Random, facts: list[Fact], questions: int | None, *, plain: bool) -> Text:
    """State `facts` in random order; ask about the first one and about others.

    Half of the facts are asked for: where all were, models named what no answer above had named, and read no names.
    """

    def pick(forms: tuple[str, ...]) -> str:
        return forms[0] if plain else rng.choice(forms)

    answer_by_fact = {fact: rng.choice(ANSWERS[fact[0]]) for fact in facts}
    stated_facts = rng.sample(facts, len(facts))
    lines = [state(pick(STATEMENTS[about]), thing, answer_by_fact[about, thing]) for about, thing in stated_facts]
    if not plain and rng.random() < 0.15:
        filler = " ".join(rng.choices(COMMON, k=rng.randint(2, 8)))
        lines.insert(rng.randrange(len(lines) + 1), f"{filler} .")
    question_count = max(1, len(facts) // 2) if questions is None else min(len(facts), questions)
    asked_facts = [facts[0], *rng.sample(facts[1:], question_count - 1)]
    rng.shuffle(asked_facts)
    return Text(
        context=" ".join(lines),
        questions=tuple(
            Question(text=pick(QUESTIONS[fact[0]]).format(o=fact[1]), answer=answer_by_fact[fact], fact=fact)
            for fact in asked_facts
        ),
    )
