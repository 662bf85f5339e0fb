"""What `python -m benchmarks.gpu` measures of whole commands: job, train, evaluate."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from theworld.pipeline.config import load_config
from theworld.pipeline.device_memory import GIB
from theworld.pipeline.progress import Progress
from theworld.precompute import PrecomputeConfig, Report, run_precompute
from theworld.precompute.rollout.batch_size import batch_of_run
from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.train import RunSummary, TrainConfig, find_weights
from theworld.train import evaluate as evaluate_run
from theworld.train import train as run_training
from theworld.train.language.lm import attention_of, load_tokenizer_only
from theworld.train.reader.memory import Rows
from theworld.train.runs.meta import METRICS, read_meta
from theworld.train.runs.sizes import sizes_of_run

from .gpu_rows import Row, Session, beside_estimate
from .gpu_world import Size, recipe_of, seconds_of_batch

CONFIGS = Path(__file__).parents[1] / "configs"
_COMPILE_S, _TRAIN_S, _EVALUATE_S = 90.0, 30.0, 20.0
_BAR_AFTER = 2  # updates that are not counted: the first compile and allocate


class Heard(Progress):
    """What a command says of memory that is short, and the moments at which its bar moved."""

    def __init__(self) -> None:
        super().__init__(None)
        self.of_memory: list[str] = []
        self.moments: list[float] = []

    def say(self, line: str) -> None:
        """Keep it where something did not fit; the plan itself is in the rows."""
        if "memory" in line and not line.startswith("memory: about"):
            self.of_memory.append(line)

    warn = say

    @contextmanager
    def bar(self, title: str, *, total: int, unit: str) -> Generator[Heard]:  # noqa: ARG002 - as of Progress
        """A bar that notes when it moves."""
        yield self

    def advance(self, count: int, *, failed: int = 0, note: str = "") -> None:  # noqa: ARG002 - as of Bar
        """Another update has ended."""
        self.moments.append(time.perf_counter())

    @property
    def seconds_between(self) -> list[float]:
        """Of each update but the first ones."""
        later = self.moments[_BAR_AFTER - 1 :] if len(self.moments) > _BAR_AFTER else self.moments
        return [end - start for start, end in pairwise(later)]


def job(session: Session) -> None:
    """`precompute` in this process, on pictures of scenes: beside its plan, and beside the bare engine."""
    size, splits = _size_and_splits(session)
    count = sum(splits.values())
    session.questions = write_scenes(session.scratch / "scenes", splits=splits, families=("buckets",))
    recipe, spec = recipe_of(session, size), session.source().latent_spec()
    is_gpu = session.device.type == "cuda"
    batch = batch_of_run(None, recipe, spec, count, on_gpu=is_gpu)
    engine = batch / seconds_of_batch(session, size, batch, repeat=1)
    session.row("job", what="bare engine", batch=batch, images_per_s=engine)
    session.drop_world()
    settings: dict[str, Any] = {
        "images": session.scratch / "scenes" / "images",
        "world": str(session.world_folder),
        "size": f"{size[0]}x{size[1]}",
        "steps": size[2],
        "denoise_steps": recipe.denoise_steps,
        "compute_dtype": recipe.compute_dtype,
        "in_process": True,
    }
    cache = session.scratch / "cache"
    plan = PrecomputeConfig(**settings, cache=cache, dry_run=True)
    with session.tried("job", what="dry run"):
        _run_job(session, "dry run", engine, plan)
    config = PrecomputeConfig(**settings, cache=cache)
    session.store = _run_job(session, "run", engine, config).store
    with session.tried("job", what="again"):
        _run_job(session, "again, nothing to do", engine, config)
    what = "run --compile"
    if not is_gpu:
        session.row("job", what=what, left_out="minutes on a CPU")
    elif session.affords("job", _COMPILE_S, what=what):
        with session.tried("job", what=what):
            config = PrecomputeConfig(**settings, cache=session.scratch / "compiled", compile=True)
            _run_job(session, what, engine, config)


def _run_job(session: Session, what: str, engine: float, config: PrecomputeConfig) -> Report:
    session.free_memory()
    reports: list[Report] = []
    seconds = session.seconds_of(lambda: reports.append(run_precompute(config, progress=Progress.silent())))
    [report] = reports
    work, figures = report.work, Row()
    if report.cost is not None and report.plan.todo:
        figures["planned_seconds"] = report.cost.seconds
    if work.written:
        rate = work.written / work.seconds
        figures |= {"load_seconds": work.load_s, "work_seconds": work.seconds, "images_per_s": rate}
        need = report.memory.need if report.memory else None
        figures["of_bare_engine"] = rate / engine
        figures |= beside_estimate(need and need.total, session.peak_gib())
        figures |= {f"{phase}_seconds": spent for phase, spent in work.phases.items()}
    failed = f"{report.bad} images: {report.failures[0].message[:160]}" if report.failures else None
    session.row("job", what=what, seconds=seconds, written=report.written, **figures, failed=failed)
    return report


def _size_and_splits(session: Session) -> tuple[Size, dict[str, int]]:
    return ((32, 32, 2), {"train": 4, "test": 2}) if session.is_toy else ((224, 224, 8), {"train": 192, "test": 64})


def train(session: Session) -> None:
    """Updates a second and memory of each preset and of other settings; the first alone where only `evaluate` asks."""
    for number, (what, settings) in enumerate(_trainings(session).items()):
        if session.run is not None and "train" not in session.asked:
            break
        if settings is None:
            session.row("train", what=what, left_out="compiles for minutes on a CPU")
        elif session.affords("train", _TRAIN_S, what=what):
            with session.tried("train", what=what):
                _run_training(session, what, settings, session.scratch / "runs" / str(number))


def _trainings(session: Session) -> dict[str, dict[str, Any] | None]:
    """Settings by what they are called; None are those that are not for a CPU."""
    is_gpu = session.device.type == "cuda"
    patches = {"layout": "patch", "patch": 2, "learning_rate": 2e-4, "dtype": "bfloat16", "batch_size": 4}
    spatial = patches | {"layout": "spatial", "batch_size": 1}
    flex = {"attention": "flex_attention"}
    of_gpu: dict[str, dict[str, Any]] = {
        "flex": patches | flex,
        "flex, checkpointed, 16 images": patches | flex | {"batch_size": 16, "gradient_checkpointing": True},
        "flex, not packed": patches | flex | {"pack": 1},
        "a token a cell, flex, 1 image": spatial | flex,
    }
    return {
        "configs/gemma2_2b.toml": {"preset": "gemma2_2b"},
        "the same, by free memory": patches,
        "eager": patches | {"attention": "eager"},
        **(of_gpu if is_gpu else dict.fromkeys(of_gpu)),
        "configs/gemma2_2b_48gb.toml": {"preset": "gemma2_2b_48gb"},
        "configs/gemma2_2b_80gb.toml": {"preset": "gemma2_2b_80gb"},
        "eager, not packed": patches | {"attention": "eager", "pack": 1},
        "a token a cell, eager, checkpointed, 1 image": spatial
        | {"attention": "eager", "gradient_checkpointing": True},
    }


def _run_training(session: Session, what: str, settings: dict[str, Any], out: Path) -> None:
    ours: dict[str, Any] = {
        "store": session.store,
        "questions": session.questions,
        "lm": str(session.lm_folder),
        "train_steps": 4 if session.is_toy else 8,
        "checkpoint_minutes": None,
        "out": out,
    }
    settings = dict(settings)
    preset = settings.pop("preset", None)
    file = CONFIGS / f"{preset}.toml" if preset else None
    heard = Heard()
    summaries: list[RunSummary] = []
    config = load_config(TrainConfig, "train", file, ours | settings)
    seconds = session.seconds_of(lambda: summaries.append(run_training(config, progress=heard)))
    [summary] = summaries
    metrics = json.loads((summary.run / METRICS).read_text())
    memory, between = metrics["memory"], heard.seconds_between
    update_s, peak = statistics.median(between), memory.get("peak_bytes")
    session.row(
        "train",
        what=what,
        updates_per_s=1 / update_s,
        tokens_per_s=metrics["tokens"] / metrics["train_steps"] / update_s,
        slowest_update_s=max(between),
        world_tokens=summary.world_tokens,
        images_a_pass=memory["rows"],
        checkpointed=memory["checkpointed"],
        **beside_estimate(memory["estimated_bytes"], None if peak is None else peak / GIB),
        last_loss=summary.last_loss,
        refused=metrics["refused_updates"],
        whole_seconds=seconds,
        said="; ".join(heard.of_memory) or None,
    )
    session.run = session.run or summary.run


def evaluate(session: Session) -> None:
    """`evaluate` of the first run with its default batch, and a small one."""
    if session.run is None:
        session.row("evaluate", left_out="no training has ended")
        return
    for batch in (64, 8):
        if not session.affords("evaluate", _EVALUATE_S, batch=batch):
            continue
        with session.tried("evaluate", batch=batch):
            expected, heard = _expected_bytes(session, session.run, batch), Heard()
            session.free_memory()
            started = time.perf_counter()
            answers = len(evaluate_run(session.run, batch_size=batch, progress=heard).predictions)
            seconds = time.perf_counter() - started
            session.row(
                "evaluate",
                batch=batch,
                questions=answers,
                seconds=seconds,
                questions_per_s=answers / seconds,
                **beside_estimate(expected, session.peak_gib()),
                said="; ".join(heard.of_memory) or None,
            )


def _expected_bytes(session: Session, run: Path, batch: int) -> int:
    """By the product's estimate, for rows of all questions of an image."""
    assert session.questions is not None, "the part job has written them"
    weights, meta = find_weights(str(session.lm_folder)), read_meta(run)
    lm = load_tokenizer_only(weights)
    tokens_by_image: dict[str, list[int]] = {}
    for line in session.questions.read_text().splitlines():
        record = json.loads(line)
        if record["split"] == "test":
            tokens = len(lm.prompt_ids(record["question"])) + 1
            tokens_by_image.setdefault(record["image"], []).append(tokens)
    rows = Rows(
        count=min(batch, len(tokens_by_image)),
        text=max(map(sum, tokens_by_image.values())),
        labels=min(batch, len(tokens_by_image)) * max(map(len, tokens_by_image.values())),
        is_packed=True,
    )
    dtype = getattr(torch, meta.config["dtype"])
    attention = attention_of(weights, "auto", device=session.device, dtype=dtype)
    sizes = sizes_of_run(meta, weights, dtype, attention)
    return sizes.answering(rows).total
