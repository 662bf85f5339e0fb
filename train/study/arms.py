"""The arms and hypotheses that a study's TOML file states: [study], [study.arms.NAME] and [study.hypotheses.NAME].

[study]
world_tokens = 36                # every arm reads as many, but for those without a future

[study.arms.one]
store = "bench2/one"             # its own rollouts; what is left out is the study's
shows = "rollout"                # what it shows of them, as train/data/arms.py names it

[study.arms.draws]
draws = 8                        # answers averaged over so many futures …
draws_store = "bench2/draws"     # … of a store of kind samples

[study.hypotheses.S1]
claim = "not_worse"              # better, equivalent, not_worse
arm = "one"
than = "rollout"
ends = "wrong"                   # of the temporal questions, those whose rollout ends wrong; or right
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...pipeline.config import place_outside
from ...pipeline.errors import ConfigError
from ...pipeline.files.places.store_paths import StorePath
from ...pipeline.messages import list_problems
from ..config import TrainConfig
from ..data.arms import parse_arm

_NAME = re.compile(r"[a-z0-9][a-z0-9_.@-]{0,63}")
_OF_THE_STUDY = frozenset(
    {"arm", "labels", "seed", "out", "store", "questions", "images", "futures", "lm", "device", "holdout", "columns"}
    | {"max_bad"}
)
"""Settings of a training that the study decides, or that a field of the arm states."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArmTable(_Table):
    """What an arm of the study is. A field that is left out is the study's."""

    shows: str | None = None
    """What stands in for the rollout; by default what the arm's name says, or else the rollout itself."""
    store: StorePath | None = None
    """Its own rollouts: a path, or the URL of a store in the bucket that the study's store is in."""
    futures: StorePath | None = None
    """Of true futures, for arms that show them."""
    draws: Annotated[int, Field(ge=2, le=256)] | None = None
    """Answers are averaged over so many draws; the training reads one, or the true future where the arm shows that."""
    draws_store: StorePath | None = None
    """Of kind samples, where the draws are."""
    train: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Settings of the training in which it differs, such as a patch that gives it the same number of tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> ArmTable:
        if (self.draws is None) != (self.draws_store is None):
            raise ValueError("draws and draws_store go together: how many, and where they are")
        if self.shows is not None:
            try:
                parse_arm(self.shows)
            except ConfigError as error:
                raise ValueError(f"shows: {error}") from error
        if wrong := sorted(set(self.train) & _OF_THE_STUDY):
            raise ValueError(f"train sets {', '.join(wrong)}, which the study decides for all arms, or a field states")
        if unknown := sorted(set(self.train) - set(TrainConfig.model_fields)):
            raise ValueError(f"train sets {', '.join(unknown)}, which is no setting of a training")
        return self


class HypothesisTable(_Table):
    """One claim about two arms, at the primary label count, on the test split."""

    claim: Literal["better", "equivalent", "not_worse"]
    """better: above 0. equivalent: within the margin. not_worse: above minus the margin."""
    arm: str
    than: str
    type: Literal["temporal", "static"] = "temporal"
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.03
    ends: Literal["right", "wrong"] | None = None
    """Only scenes whose rollout, of the study's own store, ends as the true scene does, or otherwise."""

    @model_validator(mode="after")
    def _consistent(self) -> HypothesisTable:
        if self.arm == self.than:
            raise ValueError(f"{self.arm} is compared with itself: name two arms")
        if self.claim == "better" and "margin" in self.model_fields_set:
            raise ValueError("better is above 0, whatever the margin: leave margin out, or claim not_worse")
        if self.ends is not None and self.type != "temporal":
            raise ValueError("ends is about how rollouts end, and so about temporal questions: leave out one of them")
        return self

    def text(self) -> str:
        """The claim in one line."""
        points = f"{100 * self.margin:g} points"
        questions = self.type if self.ends is None else f"{self.type}, rollout ends {self.ends}"
        return {
            "better": f"{questions}: {self.arm} > {self.than}",
            "equivalent": f"{questions}: |{self.arm} - {self.than}| < {points}",
            "not_worse": f"{questions}: {self.arm} > {self.than} - {points}",
        }[self.claim]


class StudyTable(_Table):
    """The table [study] of a file."""

    world_tokens: Annotated[int, Field(ge=1)] | None = None
    """How many every arm reads, but for `text`, `steps0` and `last`; None lets them differ."""
    arms: dict[str, ArmTable] = Field(default_factory=dict[str, ArmTable])
    hypotheses: dict[str, HypothesisTable] = Field(default_factory=dict[str, HypothesisTable])

    @model_validator(mode="after")
    def _arms_exist(self) -> StudyTable:
        for name, table in self.arms.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"arm {name!r}: a name has small letters, digits, _ and -, at most 64")
            if name == "questions":
                raise ValueError("no arm can be called questions: results.json counts them by this name")
            shown_of(name, table)
        return self


def parse_study_table(value: Mapping[str, Any], *, where: str, typed: Collection[Path | str | None] = ()) -> StudyTable:
    """The table from plain values.

    Args:
        where: the file, for messages.
        typed: the stores that the user typed: arms may have others in their buckets.
    Raises:
        ConfigError: a name or value is wrong, or a store lies outside the working folder and these buckets.
    """
    try:
        table = StudyTable.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{where}, [study]: {list_problems(error)}") from error
    for name, arm in table.arms.items():
        for field in ("store", "futures", "draws_store"):
            place = getattr(arm, field)
            if place is not None and (why := place_outside(str(place), typed=typed)) is not None:
                raise ConfigError(f"{where}, [study.arms.{name}]: {field} = {str(place)!r} is not taken: {why}")
    return table


def shown_of(name: str, table: ArmTable | None) -> str:
    """What an arm shows, by the names of train/data/arms.py.

    Raises:
        ConfigError: it has no table, and no built-in arm has its name.
    """
    if table is None:
        return parse_arm(name).name
    if table.shows is not None:
        return table.shows
    try:
        return parse_arm(name).name
    except ConfigError:
        return "rollout"
