"""`UpdateTrainer`: Trainer of transformers with latents read ahead, exact resume, and refusal of non-finite updates.

Random numbers (dropout, draws from a posterior) are a function of (seed, update, piece, process). So a checkpoint holds
no state of random generators, and no process depends on the draws of another.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...pipeline.errors import RunError
from ...pipeline.messages import name_some
from ...pipeline.progress import Progress
from ..config import TrainConfig
from ..data.batches import Example, count_right_answers, supervised_tokens, texts, with_latents
from ..data.loader import LatentDataset
from ..data.vision import VisionInputs
from ..reader.model import TheWorld
from ..runs.partial import PartialRun
from .checkpoint import (
    Checkpoint,
    optimizer_state,
    put_optimizer_state,
    put_schedule_state,
    put_weights,
    schedule_state,
    weights_of,
    write_checkpoint,
)
from .distributed import Ranks, whole
from .signals import Stop
from .trainer_hooks import trainer_hook
from .update_order import UpdateOrder

with redirect_stdout(sys.stderr):  # where WANDB_MODE is offline it prints a line, and stdout belongs to results
    from transformers import Trainer

_NAMED = 20  # refused updates whose images are recorded

Rows = list[tuple[Example, ...]]


@dataclass(frozen=True, slots=True)
class TrainData:
    """Rows of a split, and their latents."""

    rows: Rows
    images: LatentDataset | None
    """None for an arm without latents."""
    pictures: VisionInputs | None = None
    """The images, for a language model that reads them itself."""

    def collator(self, pad_id: int) -> Callable[[Sequence[Sequence[Example]]], dict[str, Any]]:
        """The function that makes a batch of rows."""
        return partial(texts, pad_id=pad_id, pictures=self.pictures)


@dataclass(frozen=True, slots=True)
class Training:
    """The settings, data and surroundings of a training."""

    config: TrainConfig
    train_data: TrainData
    partial_run: PartialRun
    """The folder of its checkpoints."""
    pad_id: int
    validation: TrainData | None = None
    ranks: Ranks = field(default_factory=Ranks)
    progress: Progress = field(default_factory=Progress.silent)
    stop: Stop = field(default_factory=Stop)


@dataclass(slots=True)
class Counters:
    """The counts of a training so far, as a checkpoint stores them."""

    tokens: int = 0
    supervised: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of these in which the loop waited for a batch."""
    refused: int = 0
    """Updates that were not applied, because loss or gradient was not finite."""
    refused_in_a_row: int = 0
    refused_updates: list[dict[str, Any]] = field(default_factory=list)
    """The first of them: update, counted from 1, and the keys of its images."""
    checkpoints: int = 0
    resumed: int = 0
    validation: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    worse_in_a_row: int = 0
    stopped_early: bool = False


class UpdateTrainer(Trainer):
    """transformers' Trainer with our updates, checkpoints and validation. Call `setup` after the constructor."""

    def setup(self, training: Training, order: UpdateOrder, start: Checkpoint | None) -> None:
        self.training, self.order, self.start = training, order, start
        self.config, self.ranks = training.config, training.ranks
        self.counters = Counters(**start.state["tally"]) if start is not None else Counters()
        if not self.ranks.is_first:  # only the first one continues the earlier counts
            self.counters.tokens = self.counters.supervised = 0
        self.counters.resumed += start is not None
        self.best = start.part("best") if start is not None else {}
        self.loss_is_scaled_for_ga = True  # by the weight of a piece
        self.interrupted = False
        self.due = False
        self._piece = 0
        self._losses: list[Tensor] = []
        self._texts: Any = None
        self._batches: Any = None
        self._began_at = time.monotonic()
        self._saved, self._saved_at = self.state.global_step if start is None else -1, self._began_at

    # --- rows and latents

    @trainer_hook
    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process; accelerate need not distribute them."""
        return DataLoader(
            cast(Any, self.train_dataset), batch_sampler=cast(Any, self.order), collate_fn=self.data_collator
        )

    @trainer_hook
    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of one update, with latents that are read ahead of the loop."""
        if epoch_iterator is not self._texts:  # another epoch
            self._texts = epoch_iterator
            images, keep = self.training.train_data.images, self.args.gradient_accumulation_steps
            self._batches = self._with_latents(epoch_iterator, images, keep=keep)
        self._piece, self._losses = 0, []
        began = time.monotonic()
        samples = super().get_batch_samples(self._batches, num_batches, device)
        self.counters.waited += time.monotonic() - began
        return samples

    def _with_latents(self, batches: Any, images: LatentDataset | None, *, keep: int) -> Any:
        device = self.args.device if self.args.device.type == "cuda" else None
        return with_latents(batches, images, keep=keep, device=device)

    def end_reading(self) -> None:
        """End the threads that read ahead, also in the middle of an epoch."""
        if self._batches is not None:
            self._batches.close()

    # --- one update

    @trainer_hook
    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        torch.manual_seed(_seed(self.config.seed, self.state.global_step, self._piece, self.ranks.rank))
        loss = super().training_step(*args, **kwargs)
        self._losses.append(loss)
        self._piece += 1
        return loss

    @trainer_hook
    def compute_loss(self, model: nn.Module, inputs: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        piece = self.order.piece(self.state.global_step, self._piece)
        assert len(piece.rows) == len(inputs["input_ids"]), "these are not the rows of this piece"
        frames = inputs["latents"].shape[2] if "latents" in inputs else None
        if frames is not None and self.config.steps_drawn is not None:
            drawn_steps = draw_steps(self.config.steps_drawn, self.config.seed, self.state.global_step)
            steps = min(drawn_steps, frames - 1)  # an arm may have fewer
            inputs, frames = {**inputs, "num_world_steps": cast(Any, steps)}, 1 + steps
        if piece.weight:
            reader = cast(TheWorld, self.model).reader
            world = 0 if frames is None else reader.count(frames, *inputs["latents"].shape[3:])
            self.counters.tokens += int(inputs["attention_mask"].sum()) + world * len(inputs["input_ids"])
            self.counters.supervised += supervised_tokens(inputs["labels"])
        loss = cast(Tensor, super().compute_loss(model, inputs, *args, **kwargs))  # type: ignore[arg-type]
        return loss if piece.weight == 1 else loss * piece.weight

    @trainer_hook
    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The gradient norm; just before the update, decide whether to apply it, to save or to stop.

        All processes decide alike.
        """
        norm = cast(Tensor, super()._clip_grad_norm(model))
        finite = bool(torch.stack(self._losses).isfinite().all()) and bool(whole(norm).isfinite())
        interval_minutes = self.config.checkpoint_minutes
        due = interval_minutes is not None and time.monotonic() - self._saved_at >= 60 * interval_minutes
        flags = [float(not finite), float(due), float(bool(self.training.stop.signal_name))]
        is_bad, is_due, is_ending = (value > 0 for value in self.ranks.maximum(flags, self.args.device))
        self.due, self.interrupted = is_due, is_ending
        if is_bad:
            self._refuse()
            return torch.zeros_like(norm)
        self.counters.refused_in_a_row = 0
        return norm

    def _refuse(self) -> None:
        """Drop the gradients: weights and moments stay as they are, the schedule goes on."""
        cast(Any, self.optimizer).zero_grad(set_to_none=True)
        update, counters = self.state.global_step, self.counters
        rows = self.order.rows_of(update)
        keys = [cast(Rows, self.train_dataset)[row][0].key for row in rows]
        counters.refused += 1
        counters.refused_in_a_row += 1
        if len(counters.refused_updates) < _NAMED:
            counters.refused_updates.append({"update": update + 1, "images": keys})
            message = f"update {update + 1} refused: loss or gradient is not finite"
            self.training.progress.warn(f"{message}; its images: {name_some(keys)}")
        if counters.refused_in_a_row >= self.config.max_bad_steps:
            raise RunError(diverged(self.config, counters, f"up to update {update + 1}"))

    @trainer_hook
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.config.report_to != "none":
            current, previous = (self.counters.tokens, time.monotonic()), self._rated
            [tokens] = self.ranks.total([current[0] - previous[0]], self.args.device)
            logs["tokens_per_second"], self._rated = tokens / max(current[1] - previous[1], 1e-9), current
        super().log(logs, start_time)

    # --- validation

    @trainer_hook
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss and accuracy on the validation split; keeps the weights of the lowest loss."""
        assert self.training.validation is not None
        step, counters = self.state.global_step, self.counters
        loss, accuracy = self._validate(self.training.validation)
        counters.validation.append({"step": step, "loss": loss, "accuracy": accuracy})
        if loss < counters.best_loss:
            counters.best_step, counters.best_loss, counters.worse_in_a_row = step, loss, 0
            self.best = weights_of(cast(nn.Module, self.model))
        else:
            counters.worse_in_a_row += 1
        if self.config.patience is not None and counters.worse_in_a_row >= self.config.patience:
            counters.stopped_early = self.control.should_training_stop = True
            self.interrupted = False  # the rest is quick
        metrics = {"eval_loss": loss, "eval_accuracy": accuracy}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _validate(self, data: TrainData) -> tuple[float, float]:
        """Mean loss over the supervised tokens of all processes, and the share of correct answers."""
        order = UpdateOrder(
            data.rows,
            batch_size=self.config.batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            micro_batch=self.config.micro_batch,
            shuffle=False,
        )
        model = cast(nn.Module, self.model)
        model.eval()
        pieces = [
            (order.piece(update, number), order.answer_tokens(update, number))
            for update in range(order.updates)
            for number in range(order.pieces_of(update))
        ]
        collate = data.collator(self.training.pad_id)
        batches = (collate([data.rows[row] for row in piece.rows]) for piece, _ in pieces)
        loss = token_count = correct = answers = 0.0
        for (_, tokens), batch in zip(pieces, self._with_latents(batches, data.images, keep=2), strict=True):
            inputs = cast(dict[str, Tensor], self._prepare_inputs(batch))
            output = model(**inputs)
            loss, token_count = loss + float(output.loss) * tokens, token_count + tokens
            if tokens:  # without, the piece only keeps the processes in step
                counts = count_right_answers(output.logits, inputs["labels"], inputs.get("segments"))
                correct, answers = correct + counts[0], answers + counts[1]
        loss, token_count, correct, answers = self.ranks.total([loss, token_count, correct, answers], self.args.device)
        return loss / token_count, correct / answers

    # --- checkpoints

    def checkpoint_is_due(self) -> bool:
        """Whether to save after this update: by count, by the clock, or because the training stops."""
        checkpoint_every = self.config.checkpoint_every
        by_count = checkpoint_every is not None and self.state.global_step % checkpoint_every == 0
        return self.due or self.interrupted or by_count

    def sum_up(self) -> Counters:
        """The counts summed over all processes."""
        tokens, supervised = self.ranks.total([self.counters.tokens, self.counters.supervised], self.args.device)
        began = time.monotonic()
        seconds = self.counters.seconds + began - self._began_at
        return dataclasses.replace(self.counters, tokens=int(tokens), supervised=int(supervised), seconds=seconds)

    @trainer_hook
    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        model = cast(nn.Module, self.model)  # without what DDP wraps around it
        moments, groups = optimizer_state(model, cast(Any, self.optimizer).optimizer)
        weights = {f"weights/{name}": tensor for name, tensor in weights_of(model).items()}
        weights |= {f"optimizer/{name}": tensor for name, tensor in moments.items()}
        weights |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        [running] = self.ranks.total([float(self._tr_loss)], self.args.device)
        counters = dataclasses.replace(self.sum_up(), checkpoints=self.counters.checkpoints + 1)
        state = {
            "trainer": dataclasses.asdict(self.state),
            "schedule": schedule_state(cast(Any, self.lr_scheduler)),
            "groups": groups,
            "running": [running / self.ranks.size, self._total_loss_scalar, self._globalstep_last_logged],
            "tally": dataclasses.asdict(counters),
        }
        self.due, self._saved_at = False, time.monotonic()
        if not self.ranks.is_first:
            return
        partial_run = self.training.partial_run
        try:
            write_checkpoint(partial_run.checkpoint, Checkpoint(weights, state))
        except OSError as error:
            fallback = "the last one is kept" if partial_run.checkpoint.exists() else "there is none yet"
            self.training.progress.warn(
                f"no checkpoint at update {self.state.global_step}: {error.strerror or error}; {fallback}, training "
                f"goes on. Free some space in {partial_run.path.parent}"
            )
            return
        self.counters.checkpoints += 1
        self._saved = self.state.global_step

    def interruption(self) -> str:
        """The message after a signal ended the training."""
        partial_run = self.training.partial_run
        cause = self.training.stop.signal_name or "by another process"
        stopped = f"stopped after update {self.state.global_step} ({cause})"
        if self._saved == self.state.global_step or not self.ranks.is_first:
            return f"{stopped}; run `{partial_run.command}` to resume it from there"
        older = "an older checkpoint" if partial_run.checkpoint.exists() else "the start"
        return f"{stopped}, but its checkpoint could not be written; `{partial_run.command}` resumes from {older}"

    @trainer_hook
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        assert self.start is not None
        put_weights(cast(nn.Module, model or self.model), self.start.part("weights"))

    @trainer_hook
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.start is None:
            return
        optimizer, model = cast(Any, self.optimizer).optimizer, cast(nn.Module, self.model)
        put_optimizer_state(model, optimizer, self.start.part("optimizer"), self.start.state["groups"])
        put_schedule_state(cast(Any, self.lr_scheduler), self.start.state["schedule"])

    @trainer_hook
    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to do: see the head of this file."""

    def resume_counts(self) -> None:
        """Restore the counts that Trainer resets at every start."""
        if self.start is not None:
            running, total, last_logged_step = self.start.state["running"]
            self._tr_loss += running
            self._total_loss_scalar, self._globalstep_last_logged = total, last_logged_step
            self.start = None  # frees its tensors
        self._rated = (self.counters.tokens, time.monotonic())


def draw_steps(choices: Sequence[int], seed: int, update: int) -> int:
    """The rollout steps that one update reads; the same arguments give the same steps, also after a resume."""
    return choices[int(np.random.default_rng([seed, update]).integers(len(choices)))]


def _seed(seed: int, update: int, piece: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, update, piece, rank]).generate_state(1, np.uint64)[0])


def diverged(config: TrainConfig, counters: Counters, where: str) -> str:
    """The message of a training whose updates are refused one after another."""
    return (
        f"the training diverged: {where}, {counters.refused_in_a_row} updates in a row had a loss or gradient that is "
        f"not finite and were refused, {counters.refused} in all, so no run was written. Lower learning_rate (it is "
        f"{config.learning_rate:g}) or max_grad_norm ({config.max_grad_norm:g})"
    )
