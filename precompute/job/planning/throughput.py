"""Measured batch size and inputs per second, remembered by world model, latent shape and device.

Kept in `<cache>/machines.json` (of a bucket, in a folder of this machine) for later shards, restarted workers, later
runs, and the time in a plan. It never changes a latent. If the file is lost, a few batches are halved again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....pipeline.files.atomic import make_folders, replace
from ....pipeline.files.plain import read_json
from ....pipeline.latents.recipe import Recipe

FILE = "machines.json"
ANY_DEVICE = "*"
"""Stands for all devices of a run, if a worker died before it reported its device."""
SMALLEST_SAMPLE = 16
"""Fewest inputs a rate is measured from; with fewer, the start dominates."""
_LIMIT_BYTES = 2**20


@dataclass
class DeviceRecord:
    """What was measured on one device for one world model and shape."""

    fitted: int | None = None
    """Largest batch known to fit, where a larger one did not."""
    per_worker_s: float | None = None
    """Inputs a second of one worker, without loading the world model."""
    inputs: int = 0
    """How many the rate was measured from."""


@dataclass
class ThroughputLog:
    """The records of a cache, by world model and shape, then by device."""

    path: Path
    records: dict[str, dict[str, DeviceRecord]] = field(default_factory=dict[str, dict[str, DeviceRecord]])
    offload: str | None = None
    """How the world model's weights stay in main memory in this run; speed and room on the device depend on it."""

    @classmethod
    def load(cls, cache: Path, *, offload: str | None = None) -> ThroughputLog:
        """The records in the cache's file; none if it is missing or cannot be read."""
        path = cache / FILE
        try:
            content = read_json(path, _LIMIT_BYTES)
            records = {
                work: {
                    device: DeviceRecord(
                        fitted=_count(row.get("fitted")), per_worker_s=_rate(row), inputs=int(row["inputs"])
                    )
                    for device, row in devices.items()
                }
                for work, devices in content["shown"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return cls(path, offload=offload)
        return cls(path, records, offload)

    def by_device(self, recipe: Recipe) -> dict[str, DeviceRecord]:
        """Records by device, for this world model and shape."""
        return self.records.setdefault(work_of(recipe, self.offload), {})

    def fitted(self, recipe: Recipe) -> dict[str, int]:
        """Device -> the batch size that fitted, if a larger one did not."""
        return {device: row.fitted for device, row in self.by_device(recipe).items() if row.fitted is not None}

    def note_batch(self, recipe: Recipe, device: str, batch: int) -> bool:
        """Record that batches above this size do not fit; returns False if that was recorded already."""
        row = self.by_device(recipe).setdefault(device, DeviceRecord())
        if row.fitted is not None and row.fitted <= batch:
            return False
        row.fitted = batch
        return True

    def note_rate(self, recipe: Recipe, device: str, inputs: int, worker_s: float) -> None:
        """Record a rate, if enough inputs were made; it replaces an earlier one."""
        if inputs >= SMALLEST_SAMPLE and worker_s > 0:
            row = self.by_device(recipe).setdefault(device, DeviceRecord())
            row.per_worker_s, row.inputs = round(inputs / worker_s, 6), inputs

    def save(self, temp_folder: Path | None = None) -> None:
        """Write the file; if two runs write it at once, the last one wins.

        Args:
            temp_folder: on the cache's file system; None is the folder of the file, made if missing.
        """
        rows = {
            work: {device: vars(row) for device, row in devices.items()}
            for work, devices in self.records.items()
            if devices
        }
        if rows:
            if temp_folder is None:
                temp_folder = self.path.parent
                make_folders(temp_folder, durable=False)
            replace(temp_folder, self.path, json.dumps({"shown": rows}, indent=1, sort_keys=True).encode())


_OF_NO_COST = {"fit", "image_rules", "dtype", "seed", "draw", "fps", "engine", "prompt", "negative_prompt"}
_OF_NO_COST |= {"hidden_sigma", "hidden_projection"}


def work_of(recipe: Recipe, offload: str | None = None) -> str:
    """The fields of a recipe that memory and time depend on, as JSON, and how weights are offloaded, if they are."""
    hidden = set() if recipe.traits.is_hidden else {"hidden_block", "hidden_width"}  # as rates were kept before
    fields = recipe.model_dump(mode="json", exclude=_OF_NO_COST | hidden) | {"text": recipe.prompt is not None}
    if offload is not None:
        fields["offload"] = offload
    return json.dumps(fields, sort_keys=True)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _rate(row: dict[str, Any]) -> float | None:
    value = row.get("per_worker_s")
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e9 else None
