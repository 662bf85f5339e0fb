"""How many rows of questions a forward pass takes: as many as the estimate allows, and half where they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ....pipeline.device_memory import fits, free_memory, name_of, usable, wrong_estimate
from ....pipeline.errors import ConfigError
from ....pipeline.messages import format_bytes
from ....pipeline.progress import Progress
from ...reader.memory import MemoryShape, Rows
from ...reader.model import IGNORED

_Row = TypeVar("_Row")
_Result = TypeVar("_Result")


@dataclass(slots=True)
class RowLimit:
    """The rows that fit into memory together, by the length of their texts.

    Attributes:
        shape: of the run that answers; None estimates nothing.
        device: where it answers.
    """

    device: torch.device
    progress: Progress
    shape: MemoryShape | None = None
    new_tokens: int = 0
    memory: float | None = None
    """The size of a GPU that is planned for, in GiB."""
    _fitting: dict[int, int] = field(default_factory=dict[int, int])
    _expected: int = 0

    def answer(
        self,
        rows: Sequence[_Row],
        batch: dict[str, Tensor],
        work: Callable[[Sequence[_Row], dict[str, Tensor]], list[_Result]],
        *,
        new_tokens: int = 0,
    ) -> list[_Result]:
        """The results of `work` for a batch, which is cut into passes where it would not fit as a whole.

        Args:
            rows: what belongs to the rows of the batch.
            work: is called with some rows and the part of the batch that is theirs.
            new_tokens: that are written behind each row.
        Raises:
            ConfigError: a single row does not fit.
        """
        length, results, start = batch["input_ids"].shape[1], list[_Result](), 0
        most = self._fitting.get(length) or self._estimated(batch, new_tokens)
        while start < len(rows):
            count = min(most, len(rows) - start)
            part = {name: tensor[start : start + count] for name, tensor in batch.items()}
            results_of_parts: list[list[_Result]] = []
            if fits(lambda: results_of_parts.append(work(rows[start : start + count], part))):  # noqa: B023 - called at once
                results += results_of_parts[0]
                start += count
                continue
            if count == 1:
                raise ConfigError(
                    f"out of memory on {name_of(self.device)}: one row of {length:,} text tokens and its world "
                    "does not fit. Read fewer --steps, or answer on a larger GPU or on a CPU (--device cpu)"
                )
            most = self._fitting[length] = count // 2
            self.progress.warn(
                f"out of memory: {count} rows of {length:,} text tokens do not fit; now {most} at a time"
            )
        return results

    def note(self) -> str | None:
        """Where the estimate was far off on a GPU: both numbers."""
        if self.device.type != "cuda" or not self._expected:
            return None
        return wrong_estimate(self._expected, torch.cuda.max_memory_allocated(self.device))

    def _estimated(self, batch: dict[str, Tensor], new_tokens: int) -> int:
        """How many rows fit by the estimate, at least one; all where the free memory is not known."""
        count = len(batch["input_ids"])
        free = free_memory(self.device, self.memory)
        if self.shape is None or free is None:
            return count
        most, length = count, batch["input_ids"].shape[1]
        while True:
            estimate = self.shape.answering(rows_of(batch, most), new_tokens=new_tokens)
            # what is free is so with the weights loaded, the size of a GPU is without
            needed = estimate.computed if self.memory is None else estimate.total
            if needed <= usable(free) or most == 1:
                break
            most = max(1, most // 2)
        self._expected = max(self._expected, estimate.total)
        if most < count:
            needed = format_bytes(self.shape.answering(rows_of(batch, count), new_tokens=new_tokens).computed)
            self.progress.say(
                f"memory: {count} rows of {length:,} text tokens would need {needed}, {format_bytes(free)} are free on "
                f"{name_of(self.device, self.memory)}: {most} at a time"
            )
            self._fitting[length] = most
        return most


def rows_of(batch: dict[str, Any], count: int) -> Rows:
    """The shape of the first rows of a batch."""
    return Rows(
        count=count,
        text=batch["input_ids"].shape[1],
        labels=int((batch["labels"][:count] != IGNORED).sum()),
        is_packed="segments" in batch,
    )
