"""Run transformers' Trainer from its first update, or from a checkpoint, and collect its weights and metrics.

Trainer itself brings optimizer, schedule, clipping, and DDP and FSDP through accelerate.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ...pipeline.errors import Interrupted, RunError
from ...pipeline.progress import Bar
from ..config import TrainConfig
from ..reader.model import TheWorld
from .checkpoint import Checkpoint, read_checkpoint, weights_of
from .distributed import Ranks
from .trackers import Following
from .trainer import TrainData, Training, UpdateTrainer, diverged
from .update_order import UpdateOrder

_LOG_EVERY = 10  # updates averaged into one point of the loss curve; fewer in a short training


@dataclass(frozen=True, slots=True)
class Result:
    """The metrics and weights of a finished training."""

    metrics: dict[str, Any]
    weights: dict[str, Tensor]
    """By parameter name, on the CPU: the best ones with validation, else the last."""


def fit(model: TheWorld, training: Training) -> Result:
    """Train, from the checkpoint of the training if there is one.

    Raises:
        RunError: loss or gradients were not finite too often, or the checkpoint does not fit.
        Interrupted: the training was asked to stop; a checkpoint is written.
    """
    config, train_data, ranks, partial_run = training.config, training.train_data, training.ranks, training.partial_run
    start = read_checkpoint(partial_run.checkpoint) if partial_run.checkpoint.exists() else None
    order = UpdateOrder(
        train_data.rows,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        micro_batch=config.micro_batch,
        group_by_length=config.group_by_length,
    )
    total = math.ceil(config.epochs * order.updates) if config.epochs is not None else config.train_steps
    tracker_callback = _follow(training, start) if ranks.is_first else None
    with training.progress.bar("train", total=total, unit="updates") as bar, tempfile.TemporaryDirectory() as scratch:
        folder = partial_run.path if ranks.is_first else Path(scratch)
        trainer = UpdateTrainer(
            model=model,
            args=_arguments(config, order, total, folder, ranks, train_data),
            train_dataset=cast(Any, train_data.rows),  # Trainer takes a list as a dataset
            data_collator=train_data.collator(training.pad_id),
            callbacks=[],
        )
        trainer.setup(training, order, start)
        trainer.add_callback(_Follow(trainer, bar))
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
        if tracker_callback is not None:
            trainer.add_callback(tracker_callback)
        resume, finished = None, False
        if start is not None:
            resume = scratch
            (Path(scratch) / "trainer_state.json").write_text(json.dumps(start.state["trainer"]), encoding="utf-8")
        try:
            trainer.train(resume_from_checkpoint=resume)
            finished = not trainer.interrupted
        finally:
            trainer.end_reading()
            if tracker_callback is not None:
                tracker_callback.end(trainer.state.log_history, finished=finished)
    if trainer.interrupted:
        raise Interrupted(trainer.interruption())
    counters = trainer.sum_up()
    if counters.refused_in_a_row >= min(config.max_bad_steps, math.ceil(trainer.state.global_step / 10)):
        raise RunError(diverged(config, counters, "at its end"))
    loss = [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    metrics = {
        "seconds": round(counters.seconds, 3),
        "waited_seconds": round(counters.waited, 4),
        "train_steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "tokens": counters.tokens,
        "supervised_tokens": counters.supervised,
        "refused_updates": counters.refused,
        "refused": counters.refused_updates,
        "checkpoints": counters.checkpoints,
        "resumed": counters.resumed,
        "processes": ranks.size,
        "loss": loss,
    }
    if training.validation is not None:
        metrics |= {
            "validation": counters.validation,
            "best_step": counters.best_step,
            "stopped_early": counters.stopped_early,
        }
    return Result(metrics, trainer.best or weights_of(cast(nn.Module, trainer.model)))


def _follow(training: Training, start: Checkpoint | None) -> Following | None:
    """The tracker, or None. It starts before the progress bar, because it may ask for a login."""
    config, state = training.config, {"log_history": [], "global_step": 0} if start is None else start.state["trainer"]
    if config.report_to == "none":
        return None
    history, update = state["log_history"], state["global_step"]
    return Following(config, training.partial_run, training.progress, history=history, start=update)


def _arguments(
    config: TrainConfig, order: UpdateOrder, total: int, folder: Path, ranks: Ranks, train_data: TrainData
) -> TrainingArguments:
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=-1 if config.epochs is not None else config.train_steps,
        num_train_epochs=config.epochs or 1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=order.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,  # below 1 it is a share of all updates
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        logging_steps=max(1, min(_LOG_EVERY, total // 20)),
        logging_first_step=True,
        save_strategy="no",
        report_to=[],  # see trackers.py
        disable_tqdm=True,
        log_level="error",
        seed=config.seed,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and ranks.size > 1 else None,
        ddp_find_unused_parameters=train_data.images is None,  # the reader is unused without latents
        logging_nan_inf_filter=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would mean DataParallel
    return arguments


class _Follow(TrainerCallback):
    """Asks for validation, checkpoints and the end of a training when they are due, and moves the progress bar."""

    def __init__(self, trainer: UpdateTrainer, bar: Bar) -> None:
        self._trainer, self._bar = trainer, bar
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._trainer.resume_counts()
        if state.global_step:
            self._bar.advance(state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._trainer.order.set_epoch(state.global_step // self._trainer.order.updates)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._bar.advance(1, note=self._note)
        trainer, validate_every = self._trainer, self._trainer.config.validate_every
        at_end = state.global_step >= state.max_steps
        if at_end:
            trainer.interrupted = False  # the rest is quick
        validates = trainer.training.validation is not None and validate_every is not None
        if validates and (at_end or state.global_step % validate_every == 0):
            control.should_evaluate = True
        if trainer.checkpoint_is_due() and not at_end:
            control.should_save = True
        if trainer.interrupted:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"
