"""A controlled comparison: train every arm under one budget, at several label counts and seeds, and evaluate it.

OUT/study.json               the plan; a folder belongs to one study, which may gain arms, labels and seeds
OUT/units/<unit>.json        the answers of one training (arm, labels, seed), and what they come from; a re-run that
                             would make them from the same skips the unit, on whichever machine
OUT/runs/<unit>/             the run folder of a unit, removed once its answers are written
OUT/results.json, index.html, *.png     made from these files
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...pipeline.errors import ConfigError, Interrupted, RunError
from ...pipeline.files.atomic import replace
from ...pipeline.files.limits import MAX_RESULT_BYTES
from ...pipeline.files.lock import exclusive_lock
from ...pipeline.files.plain import read_json, read_json_text
from ...pipeline.machine import resolve_device, usable_cores
from ...pipeline.messages import list_problems
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore, open_store
from ..config import TrainConfig
from ..data.arms import Arm, open_arm, parse_arm
from ..data.batches import check_answers
from ..data.limits import questions_that_fit
from ..evaluation.answer import Response
from ..evaluation.draws import answer_draws, require_drawn_arm, require_draws_of
from ..evaluation.session import AnswerSession, OpenedArm
from ..language.lm import load_tokenizer_only
from ..language.weights import Weights, find_weights
from ..questions.readers import digest_of
from ..questions.record import Question, first_scenes, read_questions, resolve_keys, select_split
from ..questions.shown_choices import all_as_shown
from ..runs.meta import METRICS, versions
from ..training.train import train
from .arms import ArmTable, StudyTable, shown_of
from .provenance import LatentsRead, Provenance, budget_of, digest_of_keys

SWAPS = {"rollout": ("frozen", "shuffled", "true", "noise", "reversed"), "true": ("rollout",)}
"""Arm trained -> arms shown in its ablations: does the answer depend on the future, and on whose?"""
TEST, SHIFTED = "test", "ood"
_BATCH = 64


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
        own = {"store": table.store, "futures": table.futures, **table.train}
        own = {field: value for field, value in own.items() if value is not None}
        try:
            return TrainConfig.model_validate({**self.settings.model_dump(), **own}) if own else self.settings
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
        own = self.table.arms.get(unit.arm)
        if own is not None and own.draws is not None:
            swaps = ()  # which are of one future each
        possible = [arm for arm in swaps if arm != "true" or self.settings_of(unit.arm).futures is not None]
        return [(split, unit.arm) for split in splits] + [(TEST, arm) for arm in possible]


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
    provenance: Provenance | None = None
    """What they come from; None in files of earlier versions."""


def run_study(study: Study, *, jobs: int | None = None, progress: Progress | None = None) -> list[UnitAnswers]:
    """Train and evaluate the units that are not there yet; returns all units of the study.

    Args:
        jobs: processes of one thread each; None is one per core, or one with a GPU.
    Raises:
        ConfigError, QuestionError, StoreError: a unit could not run; nothing has been trained then.
        RunError: the folder belongs to another study, or a training diverged.
        StoreLockedError: another process works in the same folder.
        Interrupted: by Ctrl-C; the same command resumes the study.
    """
    progress = progress or Progress.to_logger()
    splits, facts, provenances = _check(study, progress)
    with _alone(study.out):
        claimed = _claimed(study.out)
        _claim(study.out, {name: value for name, value in facts.items() if name != "own_arms"})
        _set_aside_unknown(study, claimed, facts, progress)
        _claim(study.out, facts)
        work = [(unit, _provenance_of(study, unit, splits, provenances)) for unit in study.units()]
        todo = [(unit, source) for unit, source in work if not _is_done(study, unit, splits, source, progress)]
        if len(todo) < len(study.units()):
            progress.say(f"{len(study.units()) - len(todo)} of {len(study.units())} units are there already")
        workers = min(jobs or _default_jobs(study), max(1, len(todo)))
        with progress.bar("evidence", total=len(todo), unit="units") as bar:
            for unit in _work(study, todo, splits, workers):
                for warning in unit.warnings:
                    progress.warn(warning)
                bar.advance(1, note=f"{unit.name}, loss {unit.loss:.3f}, {unit.seconds:.0f} s")
        return [_read_unit(study, unit) for unit in study.units()]


def splits_of(questions: Sequence[Question]) -> list[str]:
    """The splits that are evaluated: the test split, and the shifted one if there is one."""
    return [split for split in (TEST, SHIFTED) if any(question.split == split for question in questions)]


def _check(study: Study, progress: Progress) -> tuple[list[str], dict[str, Any], dict[str, Provenance]]:
    """Check in seconds what would otherwise fail after hours; returns the splits, the facts of the study, and what the
    answers of each arm would come from."""
    settings = study.settings
    everything = read_questions(
        settings.questions, columns=settings.columns, max_bad=settings.max_bad, progress=progress
    )
    store = open_store(settings.store, check_sizes=True)
    train_pool = select_split(everything, "train", settings.questions)
    select_split(everything, TEST, settings.questions)
    first_scenes(train_pool, max(study.labels))
    splits = splits_of(everything)
    steps = store.recipe.rollout_steps if settings.steps is None else settings.steps
    evaluated = {(unit.arm, split, arm) for unit in study.units() for split, arm in study.asked(unit, splits)}
    evaluated |= {(arm, "train", arm) for arm in study.arms}
    stores = {arm: open_store(study.settings_of(arm).store, check_sizes=True) for arm in study.arms}
    for arm in study.arms:
        _check_draws(study, arm, stores[arm])
    keys: dict[str, str] = {}
    keys_by_arm: dict[str, dict[str, str]] = {}
    for trained, split, arm in sorted(evaluated):
        pool = train_pool if split == "train" else select_split(everything, split, settings.questions)
        own = study.settings_of(trained)
        own_store = stores[trained]
        arm_keys, _ = open_arm(
            study.arm_of(arm) if arm == trained else parse_arm(arm),
            own_store,
            pool,
            pool,
            settings.questions,
            rollout_steps=own_store.recipe.rollout_steps if own.steps is None else own.steps,
            futures=own.futures,
            images=settings.images,
        )
        keys |= arm_keys
        keys_by_arm.setdefault(trained, {}).update(arm_keys)
    tokens = {name: world_tokens_of(study, name, stores[name]) for name in study.arms}
    _require_equal_tokens(study, tokens)
    weights = find_weights(settings.lm)
    speech = load_tokenizer_only(weights)
    world_tokens = max(tokens.values())
    for split in splits:  # each training checks its own training questions
        split_questions = all_as_shown(select_split(everything, split, settings.questions), settings.show_choices)
        check_answers(split_questions, speech)
        questions_that_fit(split_questions, speech, world_tokens=world_tokens, max_bad=0, progress=progress)
    begun = _claimed(study.out).get("lm")  # an earlier version may have named the same model otherwise
    facts = {
        "questions_sha256": digest_of(settings.questions),
        "images_sha256": digest_of_keys(keys),
        "recipe": store.recipe.id,
        "futures": None if settings.futures is None else open_store(settings.futures).recipe.id,
        "lm": begun if isinstance(begun, str) and weights.is_same(begun) else weights.identity,
        "steps": steps,
        "budget": budget_of(settings),
        "versions": versions(),
    }
    own_arms = {name: _facts_of(study, name, stores[name]) for name in study.arms if name in study.table.arms}
    if own_arms:
        facts["own_arms"] = own_arms
    pools = [train_pool, *(select_split(everything, split, settings.questions) for split in splits)]
    provenances = {
        name: _arm_provenance(
            study, name, stores[name], LatentsRead.of(stores[name], keys_by_arm[name]), pools, weights, facts
        )
        for name in study.arms
    }
    return splits, facts, provenances


def _arm_provenance(
    study: Study,
    name: str,
    store: LatentStore,
    read: LatentsRead,
    pools: Sequence[Sequence[Question]],
    weights: Weights,
    facts: Mapping[str, Any],
) -> Provenance:
    """What the answers of an arm come from.

    Args:
        read: of the arm's store.
        pools: the questions of each split that is read.
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
        questions_sha256=facts["questions_sha256"],
        lm=weights.content,
        store=read,
        futures=futures,
        draws=table.draws,
        draws_store=drawn,
        settings=budget_of(settings),
    )


def _provenance_of(study: Study, unit: Unit, splits: Sequence[str], by_arm: Mapping[str, Provenance]) -> Provenance:
    """What the answers of a unit come from: of true futures only where they are shown."""
    shown = {study.arm_of(unit.arm).kind, *(arm for _, arm in study.asked(unit, splits))}
    source = by_arm[unit.arm]
    return source if "true" in shown else source.model_copy(update={"futures": None})


def world_tokens_of(study: Study, name: str, store: LatentStore) -> int:
    """World tokens of a question in an arm, as its training counts them."""
    settings, arm = study.settings_of(name), study.arm_of(name)
    channels, _, height, width = store.sample_shape
    steps = arm.steps(store.recipe.rollout_steps if settings.steps is None else settings.steps)
    frames = arm.frames(steps)
    read = 1 + steps if frames is None else len(frames)
    return settings.token_layout().count(read, height, width, channels=channels) if read else 0


def _require_equal_tokens(study: Study, tokens: Mapping[str, int]) -> None:
    wanted = study.table.world_tokens
    if wanted is None:
        return
    compared = {name: tokens[name] for name in study.arms if study.arm_of(name).kind not in ("text", "steps0", "last")}
    if wrong := {name: count for name, count in compared.items() if count != wanted}:
        counts = ", ".join(f"{name} {count}" for name, count in wrong.items())
        raise ConfigError(
            f"[study] world_tokens = {wanted}, and these arms read another number: {counts}. Give them a patch, or "
            "steps, that makes it equal: train = { patch = 2 } in [study.arms.NAME]; or leave world_tokens out"
        )


def _check_draws(study: Study, name: str, store: LatentStore) -> None:
    """Refuse draws of an arm that shows none, and a store that does not hold enough, of the rollouts of its store."""
    table = study.table.arms.get(name)
    if table is None or table.draws is None or table.draws_store is None:
        return
    settings = study.settings_of(name)
    steps = store.recipe.rollout_steps if settings.steps is None else settings.steps
    require_drawn_arm(study.arm_of(name), steps, table.draws)
    draws_store = open_store(table.draws_store, check_sizes=True)
    require_draws_of(store.recipe, f"the arm {name}", draws_store, table.draws, steps=steps)
    questions = read_questions(settings.questions, columns=settings.columns, max_bad=settings.max_bad)
    for split in splits_of(questions):
        pool = select_split(questions, split, settings.questions)
        resolve_keys(pool, settings.questions, draws_store, images=settings.images).require_complete()


def _facts_of(study: Study, name: str, store: LatentStore) -> dict[str, Any]:
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


def _claim(out: Path, facts: dict[str, Any]) -> None:
    file, claimed = out / "study.json", _claimed(out)
    if not file.exists():
        _write(file, json.dumps(facts, indent=2) + "\n")
        return
    if isinstance(budget := claimed.get("budget"), dict):  # a setting that was added since had its default
        added = facts["budget"].keys() - budget.keys()
        claimed["budget"] = {**budget, **{name: TrainConfig.model_fields[name].default for name in added}}
    differ = [name for name in facts if name != "versions" and claimed.get(name) != facts[name]]
    if claimed.get("futures") is None:  # they may come later: no answer so far depends on them
        differ = [name for name in differ if name != "futures"]
    merged = {**_own_arms(claimed), **_own_arms(facts)}
    differ = [name for name in differ if name != "own_arms"]  # each unit says what it comes from
    if differ:
        differences = "; ".join(f"{name} {claimed.get(name)!r} there, {facts[name]!r} here" for name in differ)
        raise RunError(f"{out} holds the answers of another study: {differences}. Choose another --out, or remove it")
    claimed |= {"futures": claimed.get("futures") or facts["futures"], **({"own_arms": merged} if merged else {})}
    _write(file, json.dumps(claimed, indent=2) + "\n")


def _own_arms(facts: Mapping[str, Any]) -> dict[str, Any]:
    return facts.get("own_arms") or {}


def _set_aside_unknown(study: Study, claimed: Mapping[str, Any], facts: Mapping[str, Any], progress: Progress) -> None:
    """Set aside answers of earlier versions, which do not say what they come from, where study.json does not either."""
    known, new = _own_arms(claimed), _own_arms(facts)
    for name in study.arms:
        if claimed and known.get(name) == new.get(name):
            continue
        for file in sorted((study.out / "units").glob(f"{name}-labels*-seed*.json")):
            if _read_answers(file).provenance is None:
                aside = file.replace(file.with_suffix(".json.old"))
                progress.warn(f"{aside} does not say what it comes from, and {name} may differ: it is trained again")


def _claimed(out: Path) -> dict[str, Any]:
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


@dataclass(frozen=True, slots=True)
class _Done:
    name: str
    loss: float
    seconds: float
    warnings: list[str]


def _work(study: Study, todo: Sequence[tuple[Unit, Provenance]], splits: list[str], workers: int) -> Iterator[_Done]:
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in its own process: more threads would change the last bits
        try:
            for unit, source in todo:
                yield _run_unit(study, unit, splits, source)
        except KeyboardInterrupt as stop:
            raise _interrupted(study) from stop
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            waiting = [pool.submit(_run_unit, study, unit, splits, source) for unit, source in todo]
            for future in as_completed(waiting):
                yield future.result()
        except KeyboardInterrupt as stop:
            pool.shutdown(wait=True, cancel_futures=True)
            raise _interrupted(study) from stop
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _interrupted(study: Study) -> Interrupted:
    return Interrupted(f"stopped; all units in {study.out / 'units'} are kept. Run the same command again to resume")


def _start_worker() -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:  # a killed parent cannot end its workers
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _run_unit(study: Study, unit: Unit, splits: list[str], source: Provenance) -> _Done:
    """Train, evaluate, write the answers, remove the run folder."""
    settings = study.settings_of(unit.arm)
    folder = study.out / "runs" / f"{unit.name}-{source.digest()[:12]}"
    warnings: list[str] = []
    if not folder.exists():  # else an earlier process trained it and ended before it had answered
        train(
            settings.model_copy(
                update={
                    "arm": study.arm_of(unit.arm).name,
                    "labels": unit.labels,
                    "seed": unit.seed,
                    "out": folder,
                }
            ),
            progress=Progress.keeping(warnings),
        )
    metrics: dict[str, Any] = read_json(folder / METRICS, MAX_RESULT_BYTES)
    session = AnswerSession.open(
        folder,
        store=settings.store,
        questions=settings.questions,
        futures=settings.futures,
        lm=settings.lm,
        device=settings.device,
        progress=Progress.keeping(warnings),
    )
    everything = session.read_questions()
    steps = session.store.recipe.rollout_steps if settings.steps is None else settings.steps
    started = time.perf_counter()
    answers: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in splits}
    agreement: dict[str, tuple[float, ...]] = {}
    for split, name in study.asked(unit, splits):
        questions = select_split(everything, split, settings.questions)
        arm = study.arm_of(name) if name == unit.arm else parse_arm(name)
        opened = session.open_arm(arm, questions, steps=steps)
        responses = _respond(study, unit, session, opened, steps)
        answers[split][name] = tuple(response.text for response in responses)
        if all(response.agreement is not None for response in responses):
            agreement[split] = tuple(response.agreement or 0.0 for response in responses)
    loss = metrics.pop("loss")
    metrics |= {"first_loss": loss[0]["loss"], "last_loss": loss[-1]["loss"]}
    record = UnitAnswers(
        arm=unit.arm,
        labels=unit.labels,
        seed=unit.seed,
        answers=answers,
        train=metrics,
        answer_seconds=round(time.perf_counter() - started, 3),
        agreement=agreement,
        provenance=source,
    )
    _write(_file_of(study, unit), record.model_dump_json() + "\n")
    shutil.rmtree(folder)
    return _Done(unit.name, loss[-1]["loss"], metrics["seconds"] + record.answer_seconds, warnings)


def _respond(study: Study, unit: Unit, session: AnswerSession, opened: OpenedArm, steps: int) -> list[Response]:
    """One response per question; averaged over draws where the arm has several."""
    table = study.table.arms.get(unit.arm)
    if table is None or table.draws is None or table.draws_store is None or opened.images is None:
        return session.answer(opened, batch_size=_BATCH)
    return answer_draws(
        lambda images: session.answer(dataclasses.replace(opened, images=images), batch_size=_BATCH),
        opened.questions,
        open_store(table.draws_store),
        opened.images.keys,
        steps=steps,
        draws=table.draws,
        progress=session.progress,
    ).averaged


def _is_done(study: Study, unit: Unit, splits: list[str], source: Provenance, progress: Progress) -> bool:
    """Whether the answers of a unit are there, and from what they would be made of now; says where they are not."""
    file = _file_of(study, unit)
    if not file.exists():
        return False
    kept = _read_unit(study, unit)
    if not all(arm in kept.answers.get(split, {}) for split, arm in study.asked(unit, splits)):
        return False
    if kept.provenance is None:
        return True  # of an earlier version: study.json speaks for it
    if why := kept.provenance.difference(source):
        progress.warn(f"{file} comes from something else, and is trained again: {why}")
    return not why


def _file_of(study: Study, unit: Unit) -> Path:
    return study.out / "units" / f"{unit.name}.json"


def _read_unit(study: Study, unit: Unit) -> UnitAnswers:
    return _read_answers(_file_of(study, unit))


def _read_answers(file: Path) -> UnitAnswers:
    try:
        return UnitAnswers.model_validate_json(read_json_text(file, MAX_RESULT_BYTES))
    except (OSError, ValueError) as error:
        why = list_problems(error) if isinstance(error, OSError | ValidationError) else error
        raise RunError(
            f"{file} is not a file of this study: {why}. Remove it, and run the same command to make it again"
        ) from error


def _default_jobs(study: Study) -> int:
    on_gpu = resolve_device(study.settings.device).type == "cuda"
    return 1 if on_gpu else usable_cores()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Lock a study's folder: two processes would train everything twice and remove each other's runs."""
    for folder in ("units", "runs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out / ".lock", busy=f"another `theworld study` works in {out}; wait for it", create=True):
        for leftover in [*(out / "runs").glob(".run-*"), *(out / "runs").glob("*.partial")]:  # of killed trainings
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _write(path: Path, text: str) -> None:
    replace(path.parent, path, text.encode())
