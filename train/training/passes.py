"""How many rows a pass of an update takes: fewer, once so many did not fit in memory. The update stays the same."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...pipeline.device_memory import name_of, wrong_estimate
from ...pipeline.errors import ConfigError
from ..language.lm import checkpoint_activations
from ..reader.model import TheWorld
from .inputs import Training
from .state import State


class Passes:
    """The number of rows in a pass of a training, and whether so many have fitted in memory.

    Attributes:
        rows: in a pass; None is as the settings say.
        checkpointed: whether activations are computed again in the backward pass.
    """

    def __init__(self, training: Training, state: State) -> None:
        self._training, self._state, self._plan = training, state, training.plan
        config, plan = training.config, training.plan
        self.rows: int | None = config.micro_batch if plan is None else plan.rows
        self.checkpointed = bool(config.gradient_checkpointing) if plan is None else plan.checkpointed
        self._device = ""

    def begin(self, model: TheWorld, device: torch.device) -> None:
        """Take up what fitted before the training was interrupted, if it is the same device."""
        self._device = name_of(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        fitted = self._state.fitted
        if fitted and (fitted["device"], fitted["tokens"]) == (self._device, self._tokens):
            if fitted["rows"] < (self.rows or math.inf):
                self.rows = fitted["rows"]
            if fitted["checkpointed"] and not self.checkpointed:
                self._checkpoint(model)

    def smaller(self, rows: int) -> int:
        """Half as many rows, after so many did not fit.

        Raises:
            ConfigError: it was one row; or several processes train, which must decide alike.
        """
        if self._training.ranks.size > 1:
            raise self._no_room(rows, f"Pass --micro-batch {math.ceil(rows / 2)}, or --gradient-checkpointing")
        if rows == 1:
            raise self._no_room(1, "Choose a --layout of fewer world tokens, a smaller --pack or --lm, or a larger GPU")
        half = math.ceil(rows / 2)
        self._training.progress.warn(f"out of memory: passes of {rows} images do not fit; now of {half}")
        return half

    def make_smaller(self, rows: int, model: TheWorld) -> None:
        """After so many rows did not fit: half as many; after a single one, checkpointing. Raises as `smaller`."""
        if rows == 1 and not self.checkpointed and self._training.ranks.size == 1:
            self._checkpoint(model)
            self._training.progress.warn("out of memory: one image does not fit; now with gradient checkpointing")
            self.rows = 1
        else:
            self.rows = self.smaller(rows)
        self._state.fitted = {
            "device": self._device,
            "tokens": self._tokens,
            "rows": self.rows,
            "checkpointed": self.checkpointed,
        }

    def facts(self, device: torch.device) -> dict[str, Any]:
        """What metrics.json says of memory. Says so, too, where the estimate was wrong."""
        facts: dict[str, Any] = {"rows": self.rows, "checkpointed": self.checkpointed, **self._state.fitted}
        if self._plan is not None:
            facts |= self._plan.facts()
        if device.type == "cuda":
            facts["peak_bytes"] = peak = torch.cuda.max_memory_allocated(device)
            if self._plan is not None and (note := wrong_estimate(self._plan.estimate.total, peak)):
                self._training.progress.warn(note)
        return facts

    @property
    def _tokens(self) -> int:
        return 0 if self._plan is None else self._plan.tokens

    def _checkpoint(self, model: TheWorld) -> None:
        checkpoint_activations(model.lm)
        self.checkpointed = True

    def _no_room(self, rows: int, advice: str) -> ConfigError:
        folder = self._training.partial_run
        again = f"; then resume: {folder.command}" if folder.checkpoint.exists() else ""
        return ConfigError(
            f"out of memory on {self._device} at update {self._state.update + 1}, with passes of {rows} images"
            f"{' and gradient checkpointing' * self.checkpointed}. {advice}{again}"
        )
