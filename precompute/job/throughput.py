"""What machines have shown on this cache: the batch that fitted in memory, and images a second, by world and shape.

Kept in `<cache>/machines.json`, for later shards, restarted workers, later runs, and the time in a plan. Nothing of it
changes a latent, and losing the file costs a few halved batches. Elsewhere: the arithmetic of a rollout (cost.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...pipeline.files.atomic import replace
from ...pipeline.latents.recipe import Recipe

FILE = "machines.json"
ANY_DEVICE = "*"
"""Stands for all devices of a run, where a worker died before it could say which it had."""
SMALLEST_SAMPLE = 16
"""Inputs a rate is taken from at least: fewer say more about the start than about the machine."""
_LIMIT_BYTES = 2**20


@dataclass
class DeviceRecord:
    """What one device has shown for one world and shape."""

    fitted: int | None = None
    """Largest batch known to fit, where a larger one did not."""
    per_worker_s: float | None = None
    """Inputs a second of one worker, without loading the world model."""
    inputs: int = 0
    """That the rate was taken from."""


@dataclass
class ThroughputLog:
    """What is known, by world and shape, then by device."""

    path: Path
    shown: dict[str, dict[str, DeviceRecord]] = field(default_factory=dict[str, dict[str, DeviceRecord]])

    @classmethod
    def load(cls, cache: Path) -> ThroughputLog:
        """What the cache's file says; nothing where there is none, or one that cannot be read."""
        path = cache / FILE
        try:
            if path.stat().st_size > _LIMIT_BYTES:
                return cls(path)
            content = json.loads(path.read_text(encoding="utf-8"))
            shown = {
                work: {
                    device: DeviceRecord(
                        fitted=_count(row.get("fitted")), per_worker_s=_rate(row), inputs=int(row["inputs"])
                    )
                    for device, row in devices.items()
                }
                for work, devices in content["shown"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return cls(path)
        return cls(path, shown)

    def of(self, recipe: Recipe) -> dict[str, DeviceRecord]:
        """By device, for this world and shape."""
        return self.shown.setdefault(work_of(recipe), {})

    def fitted(self, recipe: Recipe) -> dict[str, int]:
        """Device -> the batch that fitted, where one did not."""
        return {device: row.fitted for device, row in self.of(recipe).items() if row.fitted is not None}

    def note_batch(self, recipe: Recipe, device: str, batch: int) -> bool:
        """A larger batch did not fit, this one is tried next; False where that was known."""
        row = self.of(recipe).setdefault(device, DeviceRecord())
        if row.fitted is not None and row.fitted <= batch:
            return False
        row.fitted = batch
        return True

    def note_rate(self, recipe: Recipe, device: str, inputs: int, worker_s: float) -> None:
        """The latest run with enough inputs has the word."""
        if inputs >= SMALLEST_SAMPLE and worker_s > 0:
            row = self.of(recipe).setdefault(device, DeviceRecord())
            row.per_worker_s, row.inputs = round(inputs / worker_s, 6), inputs

    def save(self, temp_folder: Path) -> None:
        """Put the file in place; of two runs at once, the last has the word.

        Args:
            temp_folder: on the cache's file system.
        """
        rows = {
            work: {device: vars(row) for device, row in devices.items()}
            for work, devices in self.shown.items()
            if devices
        }
        if rows:
            replace(temp_folder, self.path, json.dumps({"shown": rows}, indent=1, sort_keys=True).encode())


_OF_NO_COST = {"fit", "image_rules", "dtype", "seed", "draw", "fps", "engine", "prompt", "negative_prompt"}


def work_of(recipe: Recipe) -> str:
    """What memory and time depend on; the fields of a recipe that only choose among equal costs are left out."""
    fields = recipe.model_dump(mode="json", exclude=_OF_NO_COST) | {"text": recipe.prompt is not None}
    return json.dumps(fields, sort_keys=True)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _rate(row: dict[str, Any]) -> float | None:
    value = row.get("per_worker_s")
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e9 else None
