"""What a store holds, in numbers: size, origin, the latents' distribution, and whether they look healthy.

Axes:  B sample   C channel   T latent frame   K rollout step   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .latent_store import LatentStore
from .records import Origin, origins_of

SAMPLES = 256
"""Looked into at most, evenly spread."""
_FROZEN = 0.01
"""A rollout that moves less than this share of its own spread from frame to frame stands still."""
_SCALE = (0.3, 3.0)
"""Standard deviations that standardised latents may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A store in numbers. Means and deviations are over `looked_into` samples."""

    path: str
    recipe_id: str
    format: str
    recipe: dict[str, Any]
    """The fields that mean something for its kind."""
    shard_size: int
    samples: int
    shards: int
    bytes: int
    """Of all payloads."""
    sample_shape: tuple[int, int, int, int]
    sources: int
    failures: int
    first_created: str | None
    last_created: str | None
    worker_seconds: float
    """Of rolling out or encoding, by all workers together, as far as the records say."""
    made_by: dict[str, int]
    """Host, device and versions -> rows."""
    looked_into: int
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    motion: tuple[float, ...]
    """By step, the mean absolute change from the frame before."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As a person reads it."""
        numbers = [f"{name} {value}" for name, value in self.recipe.items() if value is not None]
        origin = [f"  {rows} rows by {maker}" for maker, rows in self.made_by.items()]
        rows = [
            f"{self.path}",
            f"  recipe {self.recipe_id}",
            f"  {', '.join(numbers)}",
            f"  {self.format}, {self.samples} samples {self.sample_shape} in {self.shards} shards of up to "
            f"{self.shard_size}, {self.bytes / 2**20:.1f} MiB; {self.sources} sources, {self.failures} failed inputs",
        ]
        if self.first_created is not None:
            rows += [f"  made {self.first_created} to {self.last_created}, {self.worker_seconds:.1f} s of work"]
        rows += origin
        if self.looked_into:
            rows += [
                f"  over {self.looked_into} samples, by channel:",
                f"    mean  {_row(self.channel_mean)}",
                f"    std   {_row(self.channel_std)}",
                f"  motion from frame to frame, by step: {_row(self.motion)}",
            ]
        return [*rows, *(f"  WARNING: {warning}" for warning in self.warnings)]


def summarise(store: LatentStore, *, samples: int = SAMPLES) -> Summary:
    """Describe a store.

    Args:
        samples: how many samples to look into, at most; 0 looks into none.
    Raises:
        DamagedShardError: a record, or a sample looked into, is not what was committed.
    """
    records = store.records()
    keys = store.keys
    chosen = [keys[int(at)] for at in np.linspace(0, len(keys) - 1, min(samples, len(keys)))]
    moments = _moments(store, chosen)
    created = sorted(record.created for record in records)
    origins = [origin for record in records for origin in origins_of(record)]
    made_by: dict[str, float] = {}
    for origin in origins:
        maker = _maker(origin.facts)
        made_by[maker] = made_by.get(maker, 0.0) + origin.rows
    return Summary(
        path=str(store.path),
        recipe_id=store.recipe.id,
        format=store.format,
        recipe=store.recipe.meaning(),
        shard_size=store.shard_size,
        samples=len(store),
        shards=len(records),
        bytes=sum(record.bytes for record in records),
        sample_shape=store.sample_shape,
        sources=len(store.sources()),
        failures=len(store.failures()),
        first_created=created[0] if created else None,
        last_created=created[-1] if created else None,
        worker_seconds=round(sum(map(_seconds, origins)), 1),
        made_by={maker: round(rows) for maker, rows in sorted(made_by.items(), key=lambda item: -item[1])},
        looked_into=len(chosen),
        channel_mean=tuple(moments.mean.tolist()),
        channel_std=tuple(moments.std.tolist()),
        motion=tuple(moments.motion.tolist()),
        warnings=(*store.damage, *_warnings(store, moments)),
    )


@dataclass(frozen=True, slots=True)
class _Moments:
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    motion: NDArray[np.float64]
    frozen: int
    not_finite: int
    looked_into: int


def _moments(store: LatentStore, keys: list[str]) -> _Moments:
    channels, frames, height, width = store.sample_shape
    if store.recipe.kind == "posterior":
        frames = 1  # the log-variance behind the mean is of another scale
    total, squares, motion = np.zeros(channels), np.zeros(channels), np.zeros(frames - 1)
    frozen = not_finite = 0
    buffer = store.buffer(1, rollout_steps=frames - 1)
    for row in store.rows_of(keys) if keys else ():
        latent = store.read_rows(np.array([row]), buffer)[0].astype(np.float64)
        if not np.isfinite(latent).all():
            not_finite += 1
            continue
        total += latent.sum(axis=(1, 2, 3))
        squares += np.square(latent).sum(axis=(1, 2, 3))
        steps = np.abs(np.diff(latent, axis=1)).mean(axis=(0, 2, 3))
        motion += steps
        frozen += int(frames > 1 and steps.max() < _FROZEN * max(latent.std(), 1e-12))
    finite = max(1, len(keys) - not_finite)
    count = finite * frames * height * width
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return _Moments(mean, std, motion / finite, frozen, not_finite, len(keys))


def _warnings(store: LatentStore, moments: _Moments) -> list[str]:
    if not moments.looked_into:
        return [] if len(store) == 0 else ["no sample was looked into"]
    found: list[str] = []
    if moments.not_finite:
        found.append(
            f"{moments.not_finite} of {moments.looked_into} samples hold NaN or infinite numbers, and are not in the "
            f"figures: theworld cache verify {store.path} --deep"
        )
    if moments.not_finite == moments.looked_into:
        return found
    # a real video may well stand still, and so may crops of one colour
    if moments.frozen and store.recipe.kind in ("rollout", "samples", "continuation"):
        found.append(
            f"{moments.frozen} of {moments.looked_into} rollouts stand still: each frame is nearly the one before. "
            "Is the horizon long enough, and are these images the world model knows how to move?"
        )
    overall = float(np.sqrt(np.mean(np.square(moments.std))))
    if not _SCALE[0] <= overall <= _SCALE[1] or _look_raw(moments.std, np.array(store.spec.std)):
        found.append(
            f"the latents' standard deviation is {overall:.3g}, standardised ones have about 1 in every channel: "
            "were raw latents stored, or the wrong mean and std used?"
        )
    if flat := np.flatnonzero(moments.std <= 1e-6 * np.maximum(1.0, np.abs(moments.mean))).tolist():
        found.append(f"channels {flat} hold one value everywhere")
    return found


def _look_raw(std: NDArray[np.float64], raw: NDArray[np.float64]) -> bool:
    """Whether the channels' deviations are nearer to those of raw latents than to 1."""
    seen = np.log(np.maximum(std, 1e-12))
    return bool(np.abs(np.log(raw)).mean() > 0.1 and np.abs(seen - np.log(raw)).sum() < np.abs(seen).sum())


def _seconds(origin: Origin) -> float:
    seconds = origin.facts.get("seconds")
    # a record names the work by its kind
    value = seconds.get("rollout", seconds.get("encode")) if isinstance(seconds, dict) else None
    return float(value) * origin.rows / origin.of_rows if isinstance(value, (int, float)) else 0.0


def _maker(facts: Mapping[str, JsonValue]) -> str:
    versions = facts.get("versions")
    parts = [str(facts[name]) for name in ("host", "device") if name in facts]
    if isinstance(versions, dict):
        parts += [f"{name} {value}" for name, value in sorted(versions.items())]
    return ", ".join(parts) or "unknown"


def _row(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
