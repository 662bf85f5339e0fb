"""What a family of scenes is: how its scenes are drawn, changed by one element, judged, and asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from numpy.random import Generator

from .physics import COLORS, UNSEEN_COLORS, Layout, Motion


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One kind of question about the scenes of a family."""

    about: str
    """Names it: `land`, `below`, …"""
    kind: Literal["temporal", "static"]
    templates: tuple[str, ...]
    """Ways to say it; which one says nothing about the answer."""


COUNTS = ("one", "two", "three", "four", "five", "six")


def ask_color(thing: str) -> Ask:
    """The static question for the colour of a thing."""
    return Ask(
        about="color",
        kind="static",
        templates=(
            f"what color is the {thing}?",
            f"which color does the {thing} have?",
            f"what is the color of the {thing}?",
        ),
    )


def ask_count(things: str) -> Ask:
    """The static question for the number of things."""
    return Ask(
        about="count",
        kind="static",
        templates=(
            f"how many {things} are there?",
            f"how many {things} can you see?",
            f"what is the number of {things}?",
        ),
    )


def color_choices(color: str) -> tuple[str, ...]:
    """The colours a question offers; the unseen ones are only offered where one of them is right."""
    return (*COLORS, *UNSEEN_COLORS) if color in UNSEEN_COLORS else tuple(COLORS)


class Family(Protocol):
    """A family. Answers and heuristics are plain words, from a fixed set per family.

    The *heuristic* is a rule of thumb that reads frame 0 without physics. Scenes are balanced over
    (heuristic, answer), so that it is right as often as chance; one static question asks for it in words.
    """

    @property
    def name(self) -> str: ...

    @property
    def asks(self) -> tuple[Ask, ...]:
        """The first one is the temporal question."""
        ...

    @property
    def answers(self) -> tuple[str, ...]: ...

    @property
    def heuristics(self) -> tuple[str, ...]: ...

    @property
    def shifts(self) -> tuple[str, ...]:
        """What is different out of distribution; taken in turn."""
        ...

    def draw(self, rng: Generator, *, heuristic: str, answer: str, shift: str) -> Layout | None:
        """A random layout with that heuristic and a fair chance of that answer; None where its parts collide."""
        ...

    def change(self, rng: Generator, layout: Layout, *, answer: str) -> Layout | None:
        """The layout with one element changed, the heuristic and all static answers kept; None where that fails."""
        ...

    def outcome(self, layout: Layout, motion: Motion) -> str | None:
        """The answer to the temporal question; None where the motion leaves it in doubt."""
        ...

    def event(self, layout: Layout, motion: Motion) -> int:
        """The frame in which the answer is decided for good."""
        ...

    def words(self, layout: Layout, answer: str, heuristic: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Per `about`, the right answer and all choices, as the questions say them."""
        ...
