"""What decides how many rollout steps a question is worth: a rule by its type, or a gate with a threshold.

Lives here: both, the figures that gates look at, the choice of a threshold. Elsewhere: comparing policies on a split
(adaptive.py), answering one question by them (live_answer.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ...pipeline.errors import ConfigError
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.store.folder import LatentStore
from ..questions.record import UNTYPED, Question

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ANY = "*"
"""In a rule: all types it does not name."""
_READ = 64  # samples of a store of futures at a time


@dataclass(frozen=True, slots=True)
class Rule:
    """Steps by question type; None is all."""

    by_type: Mapping[str, int | None]

    def steps(self, question: Question, there: int) -> int:
        """Rollout steps for a question where a rollout has `there`."""
        return self.steps_of(question.type, there)

    def steps_of(self, kind: str | None, there: int) -> int:
        """The same by a question's type."""
        kind = kind or UNTYPED
        steps = self.by_type.get(kind, self.by_type.get(ANY))
        return there if steps is None else steps

    def __str__(self) -> str:
        return ",".join(f"{kind}={'all' if steps is None else steps}" for kind, steps in self.by_type.items())


def parse_rule(text: str) -> Rule:
    """A rule such as `static=0`, or `temporal=all,static=0,*=4`.

    Raises:
        ConfigError: it is not of this form, or names a type twice.
    """
    by_type: dict[str, int | None] = {}
    for part in text.split(","):
        kind, equals, steps = (piece.strip() for piece in part.partition("="))
        if not equals or not kind or kind in by_type or not (steps == "all" or steps.isdecimal()):
            raise ConfigError(
                f"--adaptive takes steps by question type, each type once, such as static=0 or "
                f"temporal=all,static=0,{ANY}=4; got {text!r}"
            )
        by_type[kind] = None if steps == "all" else int(steps)
    return Rule(by_type)


class Gate(BaseModel):
    """A threshold, and where it was chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reads_up_to: float | None
    """All steps are read where the figure is at most this; None never reads them."""
    questions: int
    never: float
    always: float
    gated: float
    """Accuracy on the questions it was chosen on: reading nothing, all that may be read, what the gate lets through:
    this last is flattered by the choice."""

    def passes(self, figure: Floats) -> Flags:
        """Which of these figures let all steps be read."""
        return figure <= (-np.inf if self.reads_up_to is None else self.reads_up_to)


def choose_threshold(figure: Floats, without: Flags, with_steps: Flags) -> float | None:
    """Up to which figure to read all steps, for most right answers; of equals the one with fewest rollouts.

    Args:
        figure: of each question. without, with_steps: whether its answer is right at no steps, at all.
    Returns:
        One of the figures; None where not reading is best.
    """
    order = np.argsort(figure, kind="stable")
    gain = np.cumsum(with_steps[order].astype(np.int64) - without[order].astype(np.int64))
    last = np.append(figure[order][1:] != figure[order][:-1], True)  # questions of one figure go together
    best = int(np.argmax(np.where(last, gain, np.iinfo(np.int64).min)))
    return float(figure[order][best]) if gain[best] > 0 else None


def disagreement(store: LatentStore, keys: Sequence[str]) -> Floats:
    """How far the futures of each image lie apart where they end: root mean square around their mean, standardised.

    Args:
        store: of kind samples. keys: of images in it.
    """
    ends = [clip[-1] for clip in store.recipe.traits.frames_decoded_together(store.recipe)]
    found: list[Floats] = []
    for start in range(0, len(keys), _READ):
        latents = as_tensor(store.read(keys[start : start + _READ])).float()[:, :, ends]
        spread = latents.var(2, correction=0).mean((1, 2, 3)).sqrt()
        found.append(spread.numpy().astype(np.float64))
    return np.concatenate(found)


def margin(probabilities: Sequence[float]) -> float:
    """How far the likeliest choice leads the next; an answer in own words, which has none, is never sure: 0."""
    if len(probabilities) < 2:
        return 0.0
    second, first = sorted(probabilities)[-2:]
    return first - second
