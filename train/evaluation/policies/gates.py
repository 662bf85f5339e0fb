"""Decide how many rollout steps a question reads: by a rule on its type, or by a gate with a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ....pipeline.errors import ConfigError
from ....pipeline.latents.tensors import as_tensor
from ....pipeline.messages import split_names
from ....pipeline.store.folder import LatentStore
from ...questions.record import UNTYPED, Question

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ANY = "*"
"""In a rule: all types it does not name."""
_READ = 64  # samples of a store of futures at a time


@dataclass(frozen=True, slots=True)
class Rule:
    """Rollout steps by question type; None is all of them."""

    by_type: Mapping[str, int | None]

    def steps(self, question: Question, all_steps: int) -> int:
        """The rollout steps that a question reads, of a rollout that has `all_steps`."""
        return self.steps_of(question.type, all_steps)

    def steps_of(self, kind: str | None, all_steps: int) -> int:
        """The same for a type of question."""
        kind = kind or UNTYPED
        steps = self.by_type.get(kind, self.by_type.get(ANY))
        return all_steps if steps is None else steps

    def __str__(self) -> str:
        return ",".join(f"{kind}={'all' if steps is None else steps}" for kind, steps in self.by_type.items())


def parse_rule(text: str) -> Rule:
    """The rule in a text such as `static=0`, or `temporal=all,static=0,*=4`.

    Raises:
        ConfigError: it is not of this form, or names a type twice.
    """
    by_type: dict[str, int | None] = {}
    for part in split_names(text, "--adaptive", example=f"temporal=all,static=0,{ANY}=4"):
        kind, equals, steps = (piece.strip() for piece in part.partition("="))
        if not equals or not kind or kind in by_type or not (steps == "all" or steps.isdecimal()):
            raise ConfigError(
                f"a rule gives the rollout steps by question type, each type once, such as static=0 or "
                f"temporal=all,static=0,{ANY}=4; got {text!r}"
            )
        by_type[kind] = None if steps == "all" else int(steps)
    return Rule(by_type)


class Gate(BaseModel):
    """A threshold, and the accuracy on the questions it was chosen on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reads_up_to: float | None
    """All steps are read where the figure is at most this; None never reads them."""
    questions: int
    never: float
    always: float
    gated: float
    """Accuracy on the questions it was chosen on, if none, all, or those that pass the gate read their steps. `gated`
    is optimistic, since the threshold was chosen on the same questions."""

    def passes(self, figure: Floats) -> Flags:
        """(Q,) whether each question, by its figure, reads all steps."""
        return figure <= (-np.inf if self.reads_up_to is None else self.reads_up_to)


def choose_threshold(figure: Floats, without: Flags, with_steps: Flags) -> float | None:
    """The figure up to which to read all steps for most correct answers; of equals the one with fewest rollouts.

    Args:
        figure: (Q,), what a gate compares with its threshold.
        without, with_steps: (Q,), whether a question is answered correctly without steps, and with all.
    Returns:
        One of the figures; None if reading no steps is best.
    """
    order = np.argsort(figure, kind="stable")
    gain = np.cumsum(with_steps[order].astype(np.int64) - without[order])
    is_last_of_figure = np.append(figure[order][1:] != figure[order][:-1], True)  # questions of one figure go together
    best = int(np.argmax(np.where(is_last_of_figure, gain, np.iinfo(np.int64).min)))
    return float(figure[order][best]) if gain[best] > 0 else None


def disagreement(store: LatentStore, keys: Sequence[str]) -> Floats:
    """(N,) how far the last frames of each image's futures lie apart: standard deviation, root mean square over values.

    Args:
        store: of kind `samples`.
        keys: of N images in it.
    """
    ends = [clip[-1] for clip in store.recipe.traits.frames_decoded_together(store.recipe)]
    disagreements: list[Floats] = []
    for start in range(0, len(keys), _READ):
        latents = as_tensor(store.read(keys[start : start + _READ])).float()[:, :, ends]
        spread = latents.var(2, correction=0).mean((1, 2, 3)).sqrt()
        disagreements.append(spread.numpy().astype(np.float64))
    return np.concatenate(disagreements)


def margin(probabilities: Sequence[float]) -> float:
    """How far the likeliest choice leads the next, in probability; 0 without choices."""
    if len(probabilities) < 2:
        return 0.0
    second, likeliest = sorted(probabilities)[-2:]
    return likeliest - second
