"""What the answers of a training come from, kept with them.

Answers can so be taken to another machine without their run and weights, and are used there only where a training would
read the same questions and latents with the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...pipeline.files.hashing import digest_of_lines
from ...pipeline.store.folder import LatentStore, open_store
from ..config import TrainConfig
from ..questions.readers import digest_of
from ..questions.record import Question, resolve_keys
from .arms import ArmTable
from .plan import Study, Unit

_DECIDED_ELSEWHERE = frozenset(
    # what the study varies, paths, and what its questions need not: their splits are stated
    {"arm", "labels", "seed", "out", "store", "questions", "images", "futures", "lm", "device", "holdout"}
    | {"local_cache", "local_cache_size"}
)


class LatentsRead(BaseModel):
    """The latents that were read of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    """The id of its recipe."""
    keys_sha256: str
    """Of the questions' ids, each with the key of its latents."""

    @classmethod
    def of(cls, store: LatentStore, keys: Mapping[str, str]) -> LatentsRead:
        """Those of some questions.

        Args:
            keys: question id -> key of its latents.
        """
        return cls(recipe=store.recipe.id, keys_sha256=digest_of_keys(keys))

    @classmethod
    def found(
        cls, store: LatentStore, pools: Sequence[Sequence[Question]], file: Path, *, field: Any, images: Path | None
    ) -> LatentsRead:
        """Those that a store has of the questions of some splits; arguments as of `resolve_keys`."""
        keys: dict[str, str] = {}
        for pool in pools:
            keys |= resolve_keys(pool, file, store, field=field, images=images).keys
        return cls.of(store, keys)


class Provenance(BaseModel):
    """All that decides the answers of a training but its labels and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shows: str
    """The arm, as train/data/arms.py names it."""
    steps: int
    """Rollout steps of the store that are offered to the arm."""
    questions_sha256: str
    lm: str
    """`sha256:<64 hex>` of the language model's files."""
    store: LatentsRead
    futures: LatentsRead | None = None
    """Of true futures; None where none are shown."""
    draws: int | None = None
    draws_store: LatentsRead | None = None
    settings: dict[str, Any]
    """Of the training."""

    def difference(self, now: Provenance) -> str:
        """How answers kept from this differ from those that would be made now; empty where they do not."""
        kept, made = self._plain(), now._plain()
        differ = [name for name in {**kept, **made} if kept.get(name) != made.get(name)]
        return "; ".join(f"{name} {kept.get(name)!r} there, {made.get(name)!r} here" for name in differ)

    def digest(self) -> str:
        """SHA-256 of all of it."""
        return digest_of_lines([self.model_dump_json()])

    def training_digest(self) -> str:
        """SHA-256 of what its training depends on: not of the draws that answer, nor of futures that it never shows."""
        unseen: dict[str, Any] = {"draws": None, "draws_store": None}
        if not self.shows.startswith("true"):
            unseen["futures"] = None
        return self.model_copy(update=unseen).digest()

    def _plain(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json", exclude={"settings"}).items():
            inner: dict[str, Any] = {"": value} if not isinstance(value, dict) else value
            values |= {f"{name} {part}".strip(): each for part, each in inner.items()}
        for name, kept in self.settings.items():
            values[f"setting {name}"] = kept
        for name in TrainConfig.model_fields.keys() - self.settings.keys() - _DECIDED_ELSEWHERE:
            values[f"setting {name}"] = TrainConfig.model_fields[name].default  # added since: it had its default
        return values


def budget_of(settings: TrainConfig) -> dict[str, Any]:
    """The settings that a study holds equal, as plain values."""
    return settings.model_dump(mode="json", exclude=set(_DECIDED_ELSEWHERE))


def digest_of_keys(keys: Mapping[str, str]) -> str:
    """SHA-256 of question ids and keys, whatever their order."""
    return digest_of_lines(f"{name} {key}\n" for name, key in sorted(keys.items()))


def provenance_of_arm(
    study: Study,
    name: str,
    store: LatentStore,
    keys: Mapping[str, str],
    pools: Sequence[Sequence[Question]],
    lm: str,
) -> Provenance:
    """What the answers of an arm come from.

    Args:
        store: the arm's own. keys: question id -> key of the latents read of it.
        pools: the questions of each split that is read, those of the training first.
        lm: as of `Provenance`.
    """
    table, settings = study.table.arms.get(name, ArmTable()), study.settings_of(name)
    file, images = settings.questions, settings.images
    futures = drawn = None
    if settings.futures is not None:
        futures = LatentsRead.found(open_store(settings.futures), pools, file, field="future", images=images)
    if table.draws_store is not None:
        drawn = LatentsRead.found(open_store(table.draws_store), pools[1:], file, field="image", images=images)
    return Provenance(
        shows=study.arm_of(name).name,
        steps=store.recipe.rollout_steps if settings.steps is None else settings.steps,
        questions_sha256=digest_of(file),
        lm=lm,
        store=LatentsRead.of(store, keys),
        futures=futures,
        draws=table.draws,
        draws_store=drawn,
        settings=budget_of(settings),
    )


def provenance_of_unit(study: Study, unit: Unit, splits: Sequence[str], by_arm: Mapping[str, Provenance]) -> Provenance:
    """What the answers of a unit come from: of true futures only where they are shown."""
    arms = {study.arm_of(unit.arm).kind, *(arm for _, arm in study.asked(unit, splits))}
    source = by_arm[unit.arm]
    return source if "true" in arms else source.model_copy(update={"futures": None})
