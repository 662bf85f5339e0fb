"""What a store holds, in numbers: size, origin, the latents' distribution, and whether they look healthy.

Axes:  B sample   C channel   T latent frame   K rollout step   H, W latent row, column
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ...latents.spec import usual_patch
from ...latents.time_axis import describe, horizon_s
from ...messages import command, format_bytes
from ..latent_store import LatentStore
from ..records import Origin, origins_of, stated_world

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
    world_name: str | None
    """As the records say; None where they do not."""
    fps: float | None
    """Video frames per second of the world model's clips, by recipe or records; None where neither says."""
    time_axis: str
    """What the latent frames along T are, in words."""
    horizon_s: float | None
    """Seconds from the observed frame to the last predicted one."""
    sample_bytes: int
    """Of the values of one latent."""
    tokens: dict[str, int]
    """World tokens of one image, all of its frames read: layout -> how many."""
    seconds: dict[str, float]
    """Of all workers together, by phase."""
    failures_by_reason: dict[str, int]
    frame_std: tuple[float, ...]
    """By latent frame, over the channels' own means."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As a person reads it."""
        numbers = [f"{name} {value}" for name, value in self.recipe.items() if value is not None]
        world = self.world_name or self.recipe["world"]
        horizon_note = "" if self.horizon_s is None else f"; {self.horizon_s:.2f} s ahead at {self.fps:g} frames/s"
        failed = ", ".join(f"{count} {reason}" for reason, count in self.failures_by_reason.items())
        rows = [
            f"{self.path}",
            f"  recipe  {self.recipe_id}",
            f"          {', '.join(numbers)}",
            f"  time    {self.time_axis}{horizon_note}",
            f"  holds   {self.samples} samples {self.sample_shape} in {self.shards} shards of up to {self.shard_size}; "
            f"{self.format}, {format_bytes(self.bytes)}, {format_bytes(self.sample_bytes)} a sample",
            f"  tokens  {', '.join(f'{count} {layout}' for layout, count in self.tokens.items())} an image",
            f"  inputs  {self.sources} sources, {self.failures} failed inputs{f' ({failed})' if failed else ''}",
        ]
        if self.first_created is not None:
            phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())
            rows += [f"  made    {self.first_created} to {self.last_created}{f'; work: {phases}' if phases else ''}"]
        rows += [f"          {rows} rows of {world} by {maker}" for maker, rows in self.made_by.items()]
        if self.looked_into:
            rows += [
                f"  health  over {self.looked_into} samples, by channel:",
                f"            mean  {_row(self.channel_mean)}",
                f"            std   {_row(self.channel_std)}",
                f"          by latent frame: std {_row(self.frame_std)}",
            ]
            if self.motion:
                rows += [f"          motion from frame to frame, by step: {_row(self.motion)}"]
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
    recipe = store.recipe
    name, fps = stated_world(origins)
    fps = recipe.fps or fps
    channels, frames, height, width = store.sample_shape
    side = usual_patch(height, width)
    failures = store.failures()
    return Summary(
        path=str(store.place),
        recipe_id=store.recipe.id,
        format=store.format,
        recipe=recipe.meaning(),
        shard_size=store.shard_size,
        samples=len(store),
        shards=len(records),
        bytes=sum(record.bytes for record in records),
        sample_shape=store.sample_shape,
        sources=len(store.sources()),
        failures=len(failures),
        first_created=created[0] if created else None,
        last_created=created[-1] if created else None,
        worker_seconds=round(sum(origin.work_seconds or 0.0 for origin in origins), 1),
        made_by={maker: round(rows) for maker, rows in sorted(made_by.items(), key=lambda item: -item[1])},
        looked_into=len(chosen),
        channel_mean=tuple(moments.mean.tolist()),
        channel_std=tuple(moments.std.tolist()),
        motion=tuple(moments.motion.tolist()),
        warnings=(*store.damage, *_warnings(store, moments)),
        world_name=name,
        fps=fps,
        time_axis=describe(recipe, store.spec, fps),
        horizon_s=horizon_s(recipe, store.spec, fps),
        sample_bytes=channels * frames * height * width * store.dtype.itemsize,
        tokens={"spatial": frames * height * width, f"patch {side}x{side}": frames * height * width // side**2},
        seconds=_phases(origins),
        failures_by_reason=dict(Counter(failure.reason for failure in failures).most_common()),
        frame_std=tuple(moments.frame_std.tolist()),
    )


@dataclass(frozen=True, slots=True)
class _Moments:
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    motion: NDArray[np.float64]
    frame_std: NDArray[np.float64]
    frozen: int
    not_finite: int
    looked_into: int


def _moments(store: LatentStore, keys: list[str]) -> _Moments:
    channels, frames, height, width = store.sample_shape
    if store.recipe.traits.is_distribution:
        frames = 1  # the log-variance behind a mean is of another scale
    total, squares, motion = np.zeros(channels), np.zeros(channels), np.zeros(frames - 1)
    frame_total, frame_squares = np.zeros((channels, frames)), np.zeros((channels, frames))
    frozen = not_finite = 0
    buffer = store.buffer(len(keys[:1]), rollout_steps=frames - 1)  # of no sample, no memory: its size is only stated
    for row in store.rows_of(keys) if keys else ():
        latent = store.read_rows(np.array([row]), buffer)[0].astype(np.float64)
        if not np.isfinite(latent).all():
            not_finite += 1
            continue
        total += latent.sum(axis=(1, 2, 3))
        squares += np.square(latent).sum(axis=(1, 2, 3))
        frame_total += latent.sum(axis=(2, 3))
        frame_squares += np.square(latent).sum(axis=(2, 3))
        steps = np.abs(np.diff(latent, axis=1)).mean(axis=(0, 2, 3))
        motion += steps
        frozen += int(frames > 1 and steps.max() < _FROZEN * max(latent.std(), 1e-12))
    finite = max(1, len(keys) - not_finite)
    count = finite * frames * height * width
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    cells = finite * height * width
    variance = np.maximum(frame_squares / cells - np.square(frame_total / cells), 0)
    frame_std = np.sqrt(variance.mean(axis=0))
    return _Moments(mean, std, motion / finite, frame_std, frozen, not_finite, len(keys))


def _warnings(store: LatentStore, moments: _Moments) -> list[str]:
    if not moments.looked_into:
        return [] if len(store) == 0 else ["no sample was looked into"]
    warnings: list[str] = []
    if moments.not_finite:
        warnings.append(
            f"{moments.not_finite} of {moments.looked_into} samples hold NaN or infinite numbers, and are not in the "
            f"figures: {command('cache', 'verify', str(store.place), '--deep')}"
        )
    if moments.not_finite == moments.looked_into:
        return warnings
    # a real video may well stand still, and so may crops of one colour
    if moments.frozen and store.recipe.traits.predicts and not store.recipe.traits.is_hidden:
        warnings.append(
            f"{moments.frozen} of {moments.looked_into} rollouts stand still: each frame is nearly the one before. "
            "Is the horizon long enough, and are these images the world model knows how to move?"
        )
    overall = float(np.sqrt(np.mean(np.square(moments.std))))
    if not _SCALE[0] <= overall <= _SCALE[1] or _look_raw(moments.std, np.array(store.spec.std)):
        warnings.append(
            f"the latents' standard deviation is {overall:.3g}, standardised ones have about 1 in every channel: "
            "were raw latents stored, or the wrong mean and std used?"
        )
    if flat := np.flatnonzero(moments.std <= 1e-6 * np.maximum(1.0, np.abs(moments.mean))).tolist():
        warnings.append(f"channels {flat} hold one value everywhere")
    return warnings


def _look_raw(std: NDArray[np.float64], raw: NDArray[np.float64]) -> bool:
    """Whether the channels' deviations are nearer to those of raw latents than to 1."""
    log_std = np.log(np.maximum(std, 1e-12))
    return bool(np.abs(np.log(raw)).mean() > 0.1 and np.abs(log_std - np.log(raw)).sum() < np.abs(log_std).sum())


def _phases(origins: Sequence[Origin]) -> dict[str, float]:
    """Seconds by phase, over all records that say so."""
    total: Counter[str] = Counter()
    for origin in origins:
        for phase, seconds in origin.seconds.items():
            total[phase] += seconds  # pyright: ignore[reportArgumentType] - not whole
    return {phase: round(float(value), 1) for phase, value in total.items()}


def _maker(facts: Mapping[str, JsonValue]) -> str:
    versions = facts.get("versions")
    parts = [str(facts[name]) for name in ("host", "device") if name in facts]
    if isinstance(versions, dict):
        parts += [f"{name} {value}" for name, value in sorted(versions.items())]
    return ", ".join(parts) or "unknown"


def _row(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
