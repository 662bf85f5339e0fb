"""The plan of a study: arms, label counts and seeds, the trainings they make, and what each is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from ...pipeline.errors import ConfigError
from ...pipeline.messages import list_problems
from ..config import TrainConfig
from ..data.arms import Arm, parse_arm
from ..questions.record import Question
from .arms import ArmTable, StudyTable, shown_of

SWAPS = {"rollout": ("frozen", "shuffled", "true", "noise", "reversed"), "true": ("rollout",)}
"""Arm trained -> arms shown in its ablations: does the answer depend on the future, and on whose?"""
TEST, SHIFTED = "test", "ood"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One training of a study."""

    arm: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.arm}-labels{self.labels}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The plan of a controlled comparison.

    Raises:
        ConfigError: an arm, a label count or a number of seeds is invalid.
    """

    arms: tuple[str, ...]
    labels: tuple[int, ...]
    """Numbers of labelled training scenes, taken in the order of the file."""
    curve: tuple[str, ...] | None = None
    """Arms trained at every label count, the others only at the primary one; None is all."""
    seeds: int
    """Number of seeds of weights and order: 0, 1, …"""
    settings: TrainConfig
    """The budget, the same for every arm: store, questions, futures and all of training but arm, labels, seed, out."""
    out: Path
    table: StudyTable = field(default_factory=StudyTable)
    """Arms with stores and settings of their own, and hypotheses of the study's own."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            self.arm_of(arm)
        for name, hypothesis in self.table.hypotheses.items():
            for arm in (hypothesis.arm, hypothesis.than):
                try:
                    self.arm_of(arm)
                except ConfigError as error:
                    raise ConfigError(f"[study.hypotheses.{name}]: {error}") from error
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ConfigError(f"name each arm once, and at least one, got {', '.join(self.arms) or 'none'}")
        if not self.labels or min(self.labels) < 1 or len(set(self.labels)) < len(self.labels) or self.seeds < 1:
            raise ConfigError(
                f"label counts must differ and, like the seeds, count from 1: got {list(self.labels)}, {self.seeds}"
            )
        if stray := [arm for arm in self.curve or () if arm not in self.arms]:
            raise ConfigError(f"the curve is of arms compared; {', '.join(stray)} is none of them: add to --arms")

    @property
    def primary(self) -> int:
        """The label count of hypotheses and ablations: the middle one, the larger of two."""
        return sorted(self.labels)[len(self.labels) // 2]

    def arm_of(self, name: str) -> Arm:
        """What an arm shows; raises ConfigError where there is no such arm."""
        return parse_arm(shown_of(name, self.table.arms.get(name)))

    def settings_of(self, name: str) -> TrainConfig:
        """The budget with what is an arm's own: store, futures, settings in which it differs."""
        table = self.table.arms.get(name, ArmTable())
        own_settings = {"store": table.store, "futures": table.futures, **table.train}
        own_settings = {field: value for field, value in own_settings.items() if value is not None}
        try:
            changed = {**self.settings.model_dump(exclude_unset=True), **own_settings, "arm": self.arm_of(name).name}
            return TrainConfig.model_validate(changed)
        except ValidationError as error:
            raise ConfigError(f"[study.arms.{name}]: {list_problems(error)}") from error

    def units(self) -> list[Unit]:
        """All trainings, seed by seed, so that an interrupted study has complete seeds."""
        return [
            Unit(arm=arm, labels=labels, seed=seed)
            for seed in range(self.seeds)
            for labels in self.labels
            for arm in self.arms
            if labels == self.primary or self.curve is None or arm in self.curve
        ]

    def asked(self, unit: Unit, splits: Sequence[str]) -> list[tuple[str, str]]:
        """The evaluations of a unit: (split, arm shown)."""
        swaps = SWAPS.get(unit.arm, ()) if unit.labels == self.primary else ()
        arm_table = self.table.arms.get(unit.arm)
        if arm_table is not None and arm_table.draws is not None:
            swaps = ()  # which are of one future each
        possible = [arm for arm in swaps if arm != "true" or self.settings_of(unit.arm).futures is not None]
        return [(split, unit.arm) for split in splits] + [(TEST, arm) for arm in possible]


def splits_of(questions: Sequence[Question]) -> list[str]:
    """The splits that are evaluated: the test split, and the shifted one if there is one."""
    return [split for split in (TEST, SHIFTED) if any(question.split == split for question in questions)]
