"""A controlled comparison: train every arm under one budget, at several label counts and seeds, and evaluate it.

OUT/study.json               the plan; a folder belongs to one study, which may gain arms, labels and seeds
OUT/units/<unit>.json        the answers of one training (arm, labels, seed), and what they come from; a re-run that
                             would make them from the same skips the unit, on whichever machine
OUT/runs/<unit>/             the run folder of a unit, removed once its answers are written
OUT/results.json, index.html, *.png     made from these files
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...pipeline.errors import Interrupted
from ...pipeline.files.limits import MAX_RESULT_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.machine import resolve_device, usable_cores
from ...pipeline.progress import Progress
from ...pipeline.store.folder import open_store
from ..data.arms import parse_arm
from ..evaluation.answering.many import Response
from ..evaluation.draws import answer_draws
from ..evaluation.session import AnswerSession, OpenedArm
from ..questions.record import select_split
from ..runs.meta import METRICS
from ..training.train import train
from .check import check_study
from .folder import (
    UnitAnswers,
    claim,
    file_of,
    is_done,
    locked,
    read_facts,
    read_unit,
    set_aside_unknown,
    write_json,
)
from .plan import Study, Unit
from .provenance import Provenance, provenance_of_unit

_BATCH = 64


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
    splits, facts, provenances = check_study(study, progress)
    with locked(study.out):
        earlier = read_facts(study.out)
        claim(study.out, {name: value for name, value in facts.items() if name != "own_arms"})
        set_aside_unknown(study, earlier, facts, progress)
        claim(study.out, facts)
        work = [(unit, provenance_of_unit(study, unit, splits, provenances)) for unit in study.units()]
        todo = [(unit, source) for unit, source in work if not is_done(study, unit, splits, source, progress)]
        if len(todo) < len(study.units()):
            progress.say(f"{len(study.units()) - len(todo)} of {len(study.units())} units are there already")
        workers = min(jobs or _default_jobs(study), max(1, len(todo)))
        groups = _alike(todo)
        if len(groups) < len(todo):
            progress.say(f"{len(todo)} units need {len(groups)} trainings: some arms train alike")
        with progress.bar("evidence", total=len(todo), unit="units") as bar:
            for unit in _work(study, groups, splits, workers):
                for warning in unit.warnings:
                    progress.warn(warning)
                bar.advance(1, note=f"{unit.name}, loss {unit.loss:.3f}, {unit.seconds:.0f} s")
        return [read_unit(study, unit) for unit in study.units()]


@dataclass(frozen=True, slots=True)
class _Done:
    name: str
    loss: float
    seconds: float
    warnings: list[str]


_Group = list[tuple[Unit, Provenance]]
"""Units that one training answers, with what each comes from."""


def _alike(todo: _Group) -> list[_Group]:
    """The units by their training, in the order of the first of each."""
    groups: dict[tuple[int, int, str], _Group] = {}
    for unit, source in todo:
        groups.setdefault((unit.labels, unit.seed, source.training_digest()), []).append((unit, source))
    return list(groups.values())


def _work(study: Study, groups: Sequence[_Group], splits: list[str], workers: int) -> Iterator[_Done]:
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in its own process: more threads would change the last bits
        try:
            for group in groups:
                yield from _run_group(study, group, splits)
        except KeyboardInterrupt as stop:
            raise _interrupted(study) from stop
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            waiting = [pool.submit(_run_group, study, group, splits) for group in groups]
            for future in as_completed(waiting):
                yield from future.result()
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


def _run_group(study: Study, group: _Group, splits: list[str]) -> list[_Done]:
    """Train, evaluate each unit, write its answers, remove the run folder."""
    first, source = group[0]
    folder = study.out / "runs" / f"labels{first.labels}-seed{first.seed}-{source.training_digest()[:16]}"
    done = [_run_unit(study, unit, splits, source, folder) for unit, source in group]
    shutil.rmtree(folder)
    return done


def _run_unit(study: Study, unit: Unit, splits: list[str], source: Provenance, folder: Path) -> _Done:
    """Train, if nobody has, evaluate and write the answers."""
    settings = study.settings_of(unit.arm)
    warnings: list[str] = []
    if not folder.exists():  # else another unit did, or an earlier process that ended before it had answered
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
    stored_steps = study.arm_of(unit.arm).stored_steps(session.store.recipe)
    steps = stored_steps if settings.steps is None else settings.steps
    started = time.perf_counter()
    answers: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in splits}
    agreement: dict[str, tuple[float, ...]] = {}
    confidence: dict[str, tuple[float, ...]] = {}
    for split, name in study.asked(unit, splits):
        questions = select_split(everything, split, settings.questions)
        arm = study.arm_of(name) if name == unit.arm else parse_arm(name)
        opened = session.open_arm(arm, questions, steps=steps)
        responses = _respond(study, unit, session, opened, steps)
        answers[split][name] = tuple(response.text for response in responses)
        if name == unit.arm and all(response.probabilities for response in responses):
            confidence[split] = tuple(round(max(response.probabilities), 3) for response in responses)
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
        confidence=confidence,
        provenance=source,
    )
    write_json(file_of(study, unit), record.model_dump_json() + "\n")
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


def _default_jobs(study: Study) -> int:
    on_gpu = resolve_device(study.settings.device).type == "cuda"
    return 1 if on_gpu else usable_cores()
