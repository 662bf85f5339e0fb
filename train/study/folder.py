"""The folder of a study: the facts it belongs to, the answers of its trainings, and its lock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...pipeline.errors import RunError
from ...pipeline.files.atomic import replace
from ...pipeline.files.limits import MAX_RESULT_BYTES
from ...pipeline.files.lock import exclusive_lock
from ...pipeline.files.plain import read_json, read_json_text
from ...pipeline.messages import list_problems
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore, open_store
from ..config import TrainConfig
from .plan import Study, Unit
from .provenance import Provenance


class UnitAnswers(BaseModel):
    """The answers of one unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    labels: int
    seed: int
    answers: dict[str, dict[str, tuple[str, ...]]]
    """By split and arm shown: one answer per question of the split, in the order of the file."""
    train: dict[str, Any]
    """Seconds, updates, tokens, first and last loss."""
    answer_seconds: float
    agreement: dict[str, tuple[float, ...]] = Field(default_factory=dict[str, tuple[float, ...]])
    """By split, of an arm with several draws: the share of draws that agree, one per question."""
    confidence: dict[str, tuple[float, ...]] = Field(default_factory=dict[str, tuple[float, ...]])
    """By split, shown what it was trained on: the probability of the answer among its choices, to 3 decimals. Empty
    where a question has no choices, and in files of earlier versions."""
    provenance: Provenance | None = None
    """What they come from; None in files of earlier versions."""


def facts_of_arm(study: Study, name: str, store: LatentStore) -> dict[str, Any]:
    """What an arm is, for study.json: by contents, not by places."""
    table, settings = study.table.arms[name], study.settings_of(name)
    return {
        "shows": study.arm_of(name).name,
        "recipe": store.recipe.id,
        "futures": None if settings.futures is None else open_store(settings.futures).recipe.id,
        "draws": table.draws,
        "draws_recipe": None if table.draws_store is None else open_store(table.draws_store).recipe.id,
        "train": table.train,
    }


def claim(out: Path, facts: dict[str, Any]) -> None:
    """Write the facts of a study into its folder, or add to those that are there what may be added.

    Raises:
        RunError: the folder belongs to another study.
    """
    file, claimed = out / "study.json", read_facts(out)
    if not file.exists():
        write_json(file, json.dumps(facts, indent=2) + "\n")
        return
    if isinstance(budget := claimed.get("budget"), dict):  # a setting that was added since had its default
        added = facts["budget"].keys() - budget.keys()
        claimed["budget"] = {**budget, **{name: TrainConfig.model_fields[name].default for name in added}}
    differ = [name for name in facts if name != "versions" and claimed.get(name) != facts[name]]
    if claimed.get("futures") is None:  # they may come later: no answer so far depends on them
        differ = [name for name in differ if name != "futures"]
    merged = {**_own_arms(claimed), **_own_arms(facts)}
    differ = [name for name in differ if name != "own_arms"]  # the answers of each training say what they come from
    if differ:
        differences = "; ".join(f"{name} {claimed.get(name)!r} there, {facts[name]!r} here" for name in differ)
        raise RunError(f"{out} holds the answers of another study: {differences}. Choose another --out, or remove it")
    claimed |= {"futures": claimed.get("futures") or facts["futures"], **({"own_arms": merged} if merged else {})}
    write_json(file, json.dumps(claimed, indent=2) + "\n")


def _own_arms(facts: Mapping[str, Any]) -> dict[str, Any]:
    return facts.get("own_arms") or {}


def set_aside_unknown(study: Study, earlier: Mapping[str, Any], facts: Mapping[str, Any], progress: Progress) -> None:
    """Set aside answers of earlier versions, which do not say what they come from, where study.json does not either.

    Args:
        earlier: the facts that the folder had.
    """
    known, new = _own_arms(earlier), _own_arms(facts)
    for name in study.arms:
        if earlier and known.get(name) == new.get(name):
            continue
        for file in sorted((study.out / "units").glob(f"{name}-labels*-seed*.json")):
            if read_answers(file).provenance is None:
                aside = file.replace(file.with_suffix(".json.old"))
                progress.warn(f"{aside} does not say what it comes from, and {name} may differ: it is trained again")


def read_facts(out: Path) -> dict[str, Any]:
    """The facts of the study in this folder; none of a new one."""
    file = out / "study.json"
    if not file.exists():
        return {}
    try:
        claimed: Any = read_json(file, MAX_RESULT_BYTES)
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}). Choose another --out") from error
    if not isinstance(claimed, dict):
        raise RunError(f"{file} cannot be read (it is no JSON object). Choose another --out")
    return claimed


def is_done(study: Study, unit: Unit, splits: list[str], source: Provenance, progress: Progress) -> bool:
    """Whether a training has answered all that it is asked, from what it would be answered from now.

    Args:
        source: what that is. progress: is told what differs.
    """
    file = file_of(study, unit)
    if not file.exists():
        return False
    kept = read_answers(file)
    if not all(arm in kept.answers.get(split, {}) for split, arm in study.asked(unit, splits)):
        return False
    if kept.provenance is None:
        return True  # of an earlier version: study.json speaks for it
    if why := kept.provenance.difference(source):
        progress.warn(f"{file} comes from something else, and is trained again: {why}")
    return not why


def file_of(study: Study, unit: Unit) -> Path:
    """Where the answers of a training are."""
    return study.out / "units" / f"{unit.name}.json"


def read_unit(study: Study, unit: Unit) -> UnitAnswers:
    """The answers of a training; raises as `read_answers`."""
    return read_answers(file_of(study, unit))


def read_answers(file: Path) -> UnitAnswers:
    """The answers in a file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return UnitAnswers.model_validate_json(read_json_text(file, MAX_RESULT_BYTES))
    except (OSError, ValueError) as error:
        why = list_problems(error) if isinstance(error, OSError | ValidationError) else error
        raise RunError(
            f"{file} is not a file of this study: {why}. Remove it, and run the same command to make it again"
        ) from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a study's folder: two processes would train everything twice and remove each other's runs."""
    for folder in ("units", "runs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out / ".lock", busy=f"another `theworld study` works in {out}; wait for it", create=True):
        # of killed trainings of the study; OUT/runs may hold others, where OUT is a folder of somebody's work
        for leftover in [*(out / "runs").glob(".run-*"), *(out / "runs").glob("labels*-seed*.partial")]:
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def write_json(path: Path, text: str) -> None:
    """Replace a file of the study at once."""
    replace(path.parent, path, text.encode())
