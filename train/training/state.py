"""The state of a training between two updates, besides its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

_NAMED = 20  # refused updates whose images are recorded


@dataclass(slots=True)
class State:
    """Position, curve and counts of a training, as a checkpoint stores them."""

    update: int = 0
    """Updates done, refused ones included."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Points of the loss curve and evaluations, in order: the names are those of `trackers.NAMES`, and `step`."""
    loss_sum: float = 0.0
    """Of the updates since the last point of the curve, on this process."""
    summed: int = 0
    """How many these are: the refused ones have no loss."""
    grad_norm: float = 0.0
    """Of the last update that was not refused."""
    tokens: int = 0
    supervised: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of these in which the loop waited for a batch."""
    refused: int = 0
    """Updates that were not applied, because loss or gradient was not finite."""
    refused_in_a_row: int = 0
    refused_updates: list[dict[str, Any]] = field(default_factory=list)
    """The first of them: update, counted from 1, and the keys of its images."""
    checkpoints: int = 0
    resumed: int = 0
    validation: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    worse_in_a_row: int = 0
    stopped_early: bool = False
    fitted: dict[str, Any] = field(default_factory=dict)
    """Once a pass did not fit in memory: on which `device`, with rows of how many `tokens`, how many `rows` in a pass
    did, and whether it is `checkpointed`. A resumed training begins with it."""

    def refuse(self, keys: list[str]) -> bool:
        """Count an update that was refused; whether its images are recorded, and so to be named."""
        self.refused += 1
        self.refused_in_a_row += 1
        if is_named := len(self.refused_updates) < _NAMED:
            self.refused_updates.append({"update": self.update + 1, "images": keys})
        return is_named

    def compare(self, loss: float, accuracy: float) -> bool:
        """Add an evaluation; whether its loss is the lowest so far."""
        self.validation.append({"step": self.update, "loss": loss, "accuracy": accuracy})
        is_best = loss < self.best_loss
        if is_best:
            self.best_step, self.best_loss, self.worse_in_a_row = self.update, loss, 0
        else:
            self.worse_in_a_row += 1
        return is_best

    @property
    def curve(self) -> list[dict[str, float]]:
        """The loss curve, as metrics.json has it."""
        names = ("step", "loss", "learning_rate")
        return [{name: point[name] for name in names} for point in self.history if "loss" in point]
