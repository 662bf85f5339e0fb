"""Audit a store: make random samples again from their inputs, and compare them with the stored latents.

Checksums prove that the bytes are those that were committed. An audit proves that they are what the recipe makes: it
finds latents of another image, of other weights, or changed by somebody who sealed the records again.

Axes:  B sample   C channel   T latent frame   H, W latent row, column
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.machine import DeviceName
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.records import origins_of
from ..inputs.lookup import InputLookup
from ..rollout.batch import machine_facts
from ..rollout.kinds import KINDS
from ..worlds.network.precision import FULL
from .world import LiveWorld

Verdict = Literal["equal", "within", "different"]

TOLERANCE = {"float32": (2e-3, 1e-4), "bfloat16": (0.5, 0.03)}
"""By the dtype computed in: how far one value, and the root mean square of a sample, may lie from what is stored,
beyond the rounding of the stored dtype, where the same bits cannot be expected. Measured with the worldlet on one CPU
(8 steps, 6 scenes; batches of 1, 3 and 8; one and two threads; with AVX2 and without): float32 at most 4.1e-5 and
1.9e-6, bfloat16 0.13 and 0.0078. Another seed is at 9 and 0.28. Between a CPU and a GPU the same hold, as float32 is
in full precision on both: not measured. Where the record states no precision, a GPU rounded convolutions to TF32, and
those of bfloat16 hold: a guess."""
_ROUNDED = "tf32"
"""Of convolutions in float32 on a GPU, as torch has it by default: where a record states nothing else."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One sample, made again."""

    key: str
    source: str
    shard: int
    max_difference: float
    """Between the stored values and the new ones, rounded as the store rounds."""
    rms_difference: float
    beyond_rounding: float
    """The largest difference that the stored dtype's own rounding does not explain."""
    rms_beyond_rounding: float
    tolerance: float
    """What `beyond_rounding` may be; 0 where the same bits are wanted."""
    rms_tolerance: float
    differs_by: tuple[str, ...]
    """What is not as it was when the sample was made; empty: the same bits are expected."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was made again, and what came of it."""

    seed: int
    asked: int
    samples: tuple[Compared, ...]
    unusable: tuple[tuple[str, str, str], ...]
    """Source or key, reason, message: drawn, and not compared, as the input is not what or where it was."""

    @property
    def different(self) -> tuple[Compared, ...]:
        """Those that are not what the recipe makes."""
        return tuple(sample for sample in self.samples if sample.verdict == "different")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        unusable = [{"source": source, "reason": reason, "message": text} for source, reason, text in self.unusable]
        return {
            "seed": self.seed,
            "asked": self.asked,
            "compared": len(self.samples),
            "different": len(self.different),
            "samples": [asdict(sample) for sample in self.samples],
            "unusable": unusable,
        }

    def lines(self) -> list[str]:
        """As a person reads it."""
        words = {"equal": "bit-equal", "within": "within tolerance", "different": "DIFFERENT"}
        rows = [
            f"{words[sample.verdict]:<16}  max {sample.max_difference:<9.3g} rms {sample.rms_difference:<9.3g} "
            f"{sample.key[:12]}  {sample.source}"
            for sample in self.samples
        ]
        rows += [f"not compared      {text}" for _, _, text in self.unusable[:_SHOWN]]
        if len(self.unusable) > _SHOWN:
            reasons = Counter(reason for _, reason, _ in self.unusable)
            rows.append(f"not compared      {', '.join(f'{n} {reason}' for reason, n in reasons.items())} in all")
        for reasons in dict.fromkeys(sample.differs_by for sample in self.samples):
            rows.append(_explain([sample for sample in self.samples if sample.differs_by == reasons]))
        counts = Counter(sample.verdict for sample in self.samples)
        verdicts = ", ".join(f"{counts[verdict]} {words[verdict]}" for verdict in words if counts[verdict])
        requested = f" of {self.asked} asked for" if len(self.samples) < self.asked else ""
        return [*rows, f"{len(self.samples)}{requested} made again (--seed {self.seed}): {verdicts}"]


def audit(
    store: LatentStore,
    count: int,
    *,
    seed: int,
    images: Path | None = None,
    world: str | None = None,
    tolerance: float | None = None,
    device: DeviceName = "auto",
    progress: Progress | None = None,
) -> Audit:
    """Make random samples again and compare.

    The record of a shard states machine, versions, threads and batch size. Where they are the same here, the same bits
    are wanted; else the values may differ by a tolerance. The recipe is checked first, so that other weights are one
    clear error and not a difference.

    Args:
        count: how many; the next one is drawn in place of one whose input is gone or changed.
        seed: of the draw.
        images: where the inputs are; see `InputLookup`. world: where the weights are; by default as the recipe says.
        tolerance: of a value, beyond rounding, whatever the record says; 0 wants the same bits. None is the above.
    Raises:
        ConfigError: other weights or rules than the recipe's, or no input to be found.
        DamagedShardError: a sample is not what was committed.
    """
    recipe, kind = store.recipe, KINDS[store.recipe.kind]
    progress = progress or Progress.silent()
    if not len(store):
        raise ConfigError(f"{store.place} is empty: there is nothing to make again yet")
    inputs = InputLookup(store, images)
    if inputs.place is None:
        raise ConfigError(f"which {kind.takes}s was {store.place} made from? Name their folder: --images FOLDER")
    live = LiveWorld.for_store(store, world=world, device=device)
    order = sorted(store.keys)  # the order of shards says nothing
    random.Random(seed).shuffle(order)
    unusable: list[tuple[str, str, str]] = []
    usable: list[str] = []
    for key in order:
        if len(usable) == count:
            break
        try:
            inputs.load(key)  # and again when it is needed: all at once, videos would fill the memory
            usable.append(key)
        except ImageError as error:
            unusable.append((next(iter(inputs.names(key)), key), error.reason, str(error)))
    if not usable:
        raise ConfigError(
            f"of the {len(unusable)} {kind.takes}s of {store.place}, none is in {inputs.place} as it was, so nothing "
            f"can be made again ({unusable[0][2]}). Name the folder the store was made from with --images"
        )
    compared: list[Compared] = []
    with progress.bar(f"{kind.doing} again", total=len(usable), unit=f"{kind.takes}s") as bar:
        for group, facts in _by_maker(store, usable):
            current = machine_facts(live.device)
            differs, size, threads = _differences(facts, current, len(group))
            allowed = _allowed(recipe, facts, current, differs) if tolerance is None else (tolerance, tolerance)
            with _threads(threads):
                for keys in _parts(group, size):
                    pixels = [inputs.load(key).pixels for key in keys]
                    fresh = live.roll_out_batch(pixels, keys, size=size).numpy()
                    for key, latent, input_pixels in zip(keys, fresh, pixels, strict=True):
                        source = next(iter(inputs.names(key)), key)
                        comparison = _compare(store, key, source, latent, differs, allowed)
                        if comparison.verdict == "different" and not differs and size > 1:
                            # a product may round otherwise at another place in a batch: one batch tries them all
                            everywhere = live.roll_out_batch([input_pixels] * size, [key] * size, size=size).numpy()
                            places = (_compare(store, key, source, each, differs, allowed) for each in everywhere)
                            comparison = next((each for each in places if each.verdict == "equal"), comparison)
                        compared.append(comparison)
                    bar.advance(len(keys))
    ranks = {key: rank for rank, key in enumerate(usable)}
    compared.sort(key=lambda sample: ranks[sample.key])
    return Audit(seed=seed, asked=count, samples=tuple(compared), unusable=tuple(unusable))


def _by_maker(store: LatentStore, keys: Sequence[str]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Keys grouped by the recorded software and device; of a merged shard, by the facts that all its sources share."""
    records = {record.shard: record for record in store.records()}
    groups: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for key, row in zip(keys, store.rows_of(keys).tolist(), strict=True):
        makers = [origin.facts for origin in origins_of(records[row // store.shard_size])]
        facts: dict[str, Any] = {}
        if makers:
            facts = {n: v for n, v in makers[0].items() if n in _DECIDING and all(m.get(n) == v for m in makers)}
        groups.setdefault(repr(sorted(facts.items())), ([], facts))[0].append(key)
    return list(groups.values())


_DECIDING = ("host", "device", "cpu", "threads", "batch_size", "versions", "engine")


def _differences(
    facts: Mapping[str, Any], current: Mapping[str, Any], samples: int
) -> tuple[tuple[str, ...], int, int | None]:
    """What is not as it was, the batch size to use for so many samples, and the threads.

    A full batch of then costs most where few samples are wanted: it is made only where it can bring the same bits.
    """
    versions = facts.get("versions")
    then = {**facts, **(versions if isinstance(versions, dict) else {}), **_engine_of(facts)}
    now = {**current, **current["versions"], **current["engine"]}
    names = ["device", "torch", "diffusers", "float32", "compiled"]
    if str(current["device"]).startswith("cpu"):
        names.append("cpu" if "cpu" in facts else "host")  # older records do not state the kind of CPU
    differences = [f"{n} {then.get(n, 'not recorded')} then, {now[n]} now" for n in names if then.get(n) != now[n]]
    batch, threads = facts.get("batch_size"), facts.get("threads")
    size = batch if type(batch) is int and 1 <= batch <= 4096 else None
    if size is None or (differences and size > samples):
        size = min(samples, size or 1)
        differences.append(f"batch of {batch or 'unknown size'} then, of {size} now")
    if type(threads) is not int or not 1 <= threads <= 1024:
        return (*differences, "threads not recorded"), size, None
    return tuple(differences), size, threads


def _allowed(
    recipe: Recipe, facts: Mapping[str, Any], current: Mapping[str, Any], differs: tuple[str, ...]
) -> tuple[float, float]:
    if not differs:
        return 0.0, 0.0
    is_rounded = _engine_of(facts)["float32"] != current["engine"]["float32"]
    return TOLERANCE["bfloat16" if is_rounded else recipe.compute_dtype]  # of frames float32: the VAE's


def _engine_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the engine computed: as recorded, or as it did before that was."""
    engine = facts.get("engine")
    before = {"float32": FULL if str(facts.get("device", "cpu")).startswith("cpu") else _ROUNDED, "compiled": False}
    return {**before, **engine} if isinstance(engine, dict) else before


def _compare(
    store: LatentStore,
    key: str,
    source: str,
    fresh: NDArray[np.float32],
    differs: tuple[str, ...],
    allowed: tuple[float, float],
) -> Compared:
    stored = np.ascontiguousarray(store.read([key])[0])
    rounded = fresh.astype(store.dtype)
    equal = stored.tobytes() == rounded.tobytes()
    stored_values, new_values = (as_tensor(values).double().numpy() for values in (stored, rounded))
    difference = np.abs(stored_values - new_values)
    half_ulp = np.abs(np.spacing(stored).astype(np.float64)) / 2
    excess = np.maximum(np.abs(stored_values - fresh) - half_ulp, 0.0)
    worst, rms = (0.0, 0.0) if equal else (float(excess.max()), float(np.sqrt(np.square(excess).mean())))
    within = bool(worst <= allowed[0] and rms <= allowed[1]) and allowed[0] > 0
    return Compared(
        key=key,
        source=source,
        shard=store.row_of(key) // store.shard_size,
        max_difference=float(difference.max()),
        rms_difference=float(np.sqrt(np.square(difference).mean())),
        beyond_rounding=worst,
        rms_beyond_rounding=rms,
        tolerance=allowed[0],
        rms_tolerance=allowed[1],
        differs_by=differs,
        verdict="equal" if equal else "within" if within else "different",
    )


def _explain(samples: Sequence[Compared]) -> str:
    """What was wanted of samples that differ by the same, and why."""
    first, same_setup = samples[0], "machine, versions, threads and batch size are those of the record"
    reasons = f"not all as it was ({'; '.join(first.differs_by)})" if first.differs_by else same_setup
    if first.tolerance == 0:
        return f"the same bits were wanted: {same_setup if not first.differs_by else '--tolerance 0'}"
    worst = [max(getattr(s, name) for s in samples) for name in ("beyond_rounding", "rms_beyond_rounding")]
    return (
        f"{reasons}: beyond rounding at most {first.tolerance:g}, rms {first.rms_tolerance:g} were allowed; "
        f"{worst[0]:.2g}, rms {worst[1]:.2g} were seen"
    )


def _parts(keys: Sequence[str], size: int) -> Iterable[list[str]]:
    remaining = iter(keys)
    while part := list(islice(remaining, size)):
        yield part


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    """As many CPU threads as then: sums over more of them round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
