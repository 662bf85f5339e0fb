"""The training loop: the passes of an update, the update itself, and what is due after it.

accelerate spreads it over processes, with DDP or FSDP. All processes make the same calls in the same order; the first
one writes and speaks for all.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import closing, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import AdamW

from ...pipeline.device_memory import fits
from ...pipeline.errors import Interrupted, RunError
from ...pipeline.machine import resolve_device
from ...pipeline.messages import name_some
from ...pipeline.progress import Bar
from ..config import TrainConfig
from ..data.batches import supervised_tokens, to_device
from ..reader.model import TheWorld
from .accelerate_setup import make_accelerator
from .checkpoint import (
    Checkpoint,
    optimizer_state,
    put_optimizer_state,
    put_weights,
    read_checkpoint,
    weights_of,
    write_checkpoint,
)
from .distributed import is_of_another_process, whole
from .inputs import Training
from .passes import Passes
from .schedule import draw_steps, learning_rate, seed_of
from .state import State
from .trackers import Following
from .validation import validate

_LOG_EVERY = 10  # updates averaged into one point of the loss curve; fewer in a short training


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The metrics and weights of a finished training."""

    metrics: dict[str, Any]
    weights: dict[str, Tensor]
    """By parameter name, on the CPU: the best ones with validation, else the last."""


def fit(model: TheWorld, training: Training) -> Result:
    """Train, from the checkpoint of the training if there is one.

    Raises:
        RunError: loss or gradients were not finite too often, the checkpoint does not fit, or another process of the
            training has ended.
        ConfigError: accelerate cannot do what this training needs.
        Interrupted: the training was asked to stop; a checkpoint is written.
    """
    config, partial_run = training.config, training.partial_run
    start = read_checkpoint(partial_run.checkpoint) if partial_run.checkpoint.exists() else None
    state = State() if start is None else State(**start.state)
    loop = Loop(model, training, state)
    if start is not None:
        loop.resume(start)
        del start  # frees its tensors
    tracker, finished = None, False
    if training.ranks.is_first and config.report_to != "none":  # before the bar, because it may ask for a login
        tracker = Following(config, partial_run, training.progress, history=state.history, start=state.update)
    try:
        with training.progress.bar("train", total=loop.total, unit="updates") as bar:
            loop.run(bar, tracker)
        finished = not loop.interrupted
    except RuntimeError as error:
        if not is_of_another_process(error):
            raise
        raise RunError(
            f"another process of this training does not answer any more, in update {state.update + 1}. What it said "
            f"last, and its exit code in the launcher's output, tell why ({str(error).splitlines()[0]})"
        ) from error
    finally:
        if tracker is not None:
            tracker.end(state.history, finished=finished)
    if loop.interrupted:
        raise Interrupted(loop.interruption())
    if state.refused_in_a_row >= min(config.max_bad_steps, math.ceil(state.update / 10)):
        raise RunError(_diverged(config, state, "at its end"))
    return Result(loop.metrics(), loop.best or weights_of(loop.bare))


class Loop:
    """A training in progress on this process.

    Attributes:
        state: moved on by each update.
        total: updates of the whole training.
        bare: the model without what DDP wraps around it.
        best: with validation, the weights of the lowest loss so far.
        interrupted: whether it ended because it was asked to stop.
    """

    def __init__(self, model: TheWorld, training: Training, state: State) -> None:
        self.training, self.state = training, state
        self.config, self.ranks = training.config, training.ranks
        self.device = resolve_device(self.config.device)
        self.passes = Passes(training, state)
        self.passes.begin(model, self.device)
        self.order = training.order(self.passes.rows)
        config, updates = self.config, self.order.updates
        self.total = config.train_steps if config.epochs is None else math.ceil(config.epochs * updates)
        self._log_every = max(1, min(_LOG_EVERY, self.total // 20))
        self._accelerator = make_accelerator(training, self.device)
        trained = [parameter for parameter in model.to(self.device).parameters() if parameter.requires_grad]
        optimizer = AdamW(trained, lr=config.learning_rate, weight_decay=0.0, fused=True)
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self.bare = cast(TheWorld, self._accelerator.unwrap_model(self._model))
        self.best: dict[str, Tensor] = {}
        self.interrupted = self._is_due = False
        self._note = ""
        self._began_at = self._saved_at = time.monotonic()
        self._rated = (state.tokens, self._began_at)
        self._saved = -1
        self._validated_rows: int | None = None

    def resume(self, start: Checkpoint) -> None:
        """Take up the tensors of a checkpoint, whose state this training has already."""
        put_weights(self.bare, start.part("weights"))
        put_optimizer_state(self.bare, self._optimizer, start.part("optimizer"))
        self.best = start.part("best")
        self.state.resumed += 1
        if not self.ranks.is_first:  # only the first one goes on with the earlier counts
            self.state.tokens = self.state.supervised = 0
        self._rated = (self.state.tokens, self._began_at)

    def run(self, bar: Bar, tracker: Following | None = None) -> None:
        """Train until the last update, until validation ends it early, or until it is asked to stop."""
        if self.state.update:
            bar.advance(self.state.update)
        while not self._run_while_it_fits(bar, tracker):
            self.passes.make_smaller(self.order.pass_rows, self.bare)
            self.order = self.training.order(self.passes.rows)

    def _run_while_it_fits(self, bar: Bar, tracker: Following | None) -> bool:
        """Train on; False when a pass of an update did not fit in memory: nothing of that update has happened then."""
        updates = range(self.state.update, self.total)
        data, pad_id = self.training.train_data, self.training.pad_id
        with closing(data.batches(self.order, updates, pad_id=pad_id, device=self.device, total=self.total)) as batches:
            for update in updates:
                counts = self.state.tokens, self.state.supervised
                if not fits(lambda: self._update(update, batches)):  # noqa: B023 - called at once
                    self._optimizer.zero_grad()
                    self.state.tokens, self.state.supervised = counts
                    return False
                self.state.update += 1
                self._follow_up(self.state.update)
                if tracker is not None:
                    tracker.tell(self.state.history)
                bar.advance(1, note=self._note)
                if self.interrupted or self.state.stopped_early:
                    break
        return True

    # --- one update

    def _update(self, update: int, batches: Any) -> None:
        """Learn from the rows of an update, or refuse it. All processes decide alike."""
        config, state = self.config, self.state
        self._model.train()
        losses, pieces = [], self.order.pieces_of(update)
        for number in range(pieces):
            began = time.monotonic()
            batch = next(batches)
            state.waited += time.monotonic() - began
            losses.append(self._backward(update, number, batch, is_last=number + 1 == pieces))
        parameters = self._model.parameters()
        norm = float(whole(cast(Tensor, self._accelerator.clip_grad_norm_(parameters, config.max_grad_norm))))
        loss = sum(torch.stack(losses).tolist())
        minutes = config.checkpoint_minutes
        is_due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        flags = (not math.isfinite(loss + norm), is_due, bool(self.training.stop.signal_name))
        is_bad, self._is_due, self.interrupted = map(bool, self.ranks.maximum([*map(float, flags)], self.device))
        if is_bad:
            self._refuse(update)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(update, self.total, config)
            self._optimizer.step()
            state.loss_sum, state.summed, state.grad_norm = state.loss_sum + loss, state.summed + 1, norm
            state.refused_in_a_row = 0
        self._optimizer.zero_grad()

    def _backward(self, update: int, number: int, batch: dict[str, Tensor], *, is_last: bool) -> Tensor:
        """The passes over one piece of an update: its weighted loss. Gradients are summed up to the last one."""
        piece, config = self.order.piece(update, number), self.config
        assert len(piece.rows) == len(batch["input_ids"]), "these are not the rows of this piece"
        steps: dict[str, Any] = {}
        frames = batch["latents"].shape[2] if "latents" in batch else None
        if frames is not None and config.steps_drawn is not None:
            drawn = min(draw_steps(config.steps_drawn, config.seed, update), frames - 1)  # an arm may have fewer
            steps, frames = {"num_world_steps": drawn}, 1 + drawn
        if piece.weight:
            world = 0 if frames is None else self.bare.reader.count(frames, *batch["latents"].shape[3:])
            self.state.tokens += int(batch["attention_mask"].sum()) + world * len(batch["input_ids"])
            self.state.supervised += supervised_tokens(batch["labels"])
        torch.manual_seed(seed_of(config.seed, update, number, self.ranks.rank))
        with nullcontext() if is_last else self._accelerator.no_sync(self._model):
            loss = self._model(**to_device(batch, self.device), **steps).loss
            loss = loss if piece.weight == 1 else loss * piece.weight
            self._accelerator.backward(loss)
        return loss.detach()

    def _refuse(self, update: int) -> None:
        """Skip an update: weights and moments stay as they are, and the schedule goes on."""
        rows = self.training.train_data.rows
        keys = [rows[row][0].key for row in self.order.rows_of(update)]
        if self.state.refuse(keys):
            message = f"update {update + 1} refused: loss or gradient is not finite"
            self.training.progress.warn(f"{message}; its images: {name_some(keys)}")
        if self.state.refused_in_a_row >= self.config.max_bad_steps:
            raise RunError(_diverged(self.config, self.state, f"up to update {update + 1}"))

    # --- after an update

    def _follow_up(self, update: int) -> None:
        """Log, validate and save after the n-th update, each if it is due."""
        every, at_end = self.config.validate_every, update >= self.total
        if at_end:
            self.interrupted = False  # the rest is quick
        if at_end or update == 1 or update % self._log_every == 0:
            self._log()
        if self.training.validation is not None and every is not None and (at_end or update % every == 0):
            self._validate()
        if self._checkpoint_is_due(update) and not at_end and not self.state.stopped_early:
            self._save()
        if self.interrupted:  # together: a launcher kills the others when one has ended, and the first still writes
            self.ranks.maximum([0.0], self.device)

    def _log(self) -> None:
        """Add a point to the loss curve: the mean since the last one. There is none if all updates were refused."""
        state = self.state
        if not state.summed:
            return
        [loss] = self.ranks.total([state.loss_sum], self.device)
        loss = loss / self.ranks.size / state.summed
        rate = learning_rate(state.update - 1, self.total, self.config)
        point = {"loss": loss, "grad_norm": state.grad_norm, "learning_rate": rate}
        if self.config.report_to != "none":
            earlier, self._rated = self._rated, (state.tokens, time.monotonic())
            [tokens] = self.ranks.total([state.tokens - earlier[0]], self.device)
            point["tokens_per_second"] = tokens / max(self._rated[1] - earlier[1], 1e-9)
        self._add(point)
        self._note = f"loss {loss:.3f}"
        state.loss_sum, state.summed = 0.0, 0

    def _add(self, point: dict[str, float]) -> None:
        update = self.state.update
        self.state.history.append({**point, "epoch": self.order.epochs_until(update), "step": update})

    def _validate(self) -> None:
        """Evaluate on the validation split; keep the weights of the lowest loss, and stop when patience has ended."""
        state, patience = self.state, self.config.patience
        measured: list[tuple[float, float]] = []
        rows = min(self.order.pass_rows, self._validated_rows or self.order.pass_rows)
        while not fits(
            lambda: measured.append(validate(self.bare, self.training, self.device, rows))  # noqa: B023
        ):
            self._validated_rows = rows = self.passes.smaller(rows)
        [(loss, accuracy)] = measured
        if state.compare(loss, accuracy):
            self.best = weights_of(self.bare)
        self._add({"eval_loss": loss, "eval_accuracy": accuracy})
        if patience is not None and state.worse_in_a_row >= patience:
            state.stopped_early, self.interrupted = True, False  # the rest is quick
            self._log()

    # --- checkpoints

    def _checkpoint_is_due(self, update: int) -> bool:
        """By count, by the clock, or because the training stops."""
        every = self.config.checkpoint_every
        return self._is_due or self.interrupted or (every is not None and update % every == 0)

    def _save(self) -> None:
        tensors = {
            f"{part}/{name}": tensor
            for part, named in (
                ("weights", weights_of(self.bare)),
                ("optimizer", optimizer_state(self.bare, self._optimizer)),
                ("best", self.best),
            )
            for name, tensor in named.items()
        }
        state, partial_run = self._sum_up(), self.training.partial_run
        state.checkpoints += 1
        self._saved_at = time.monotonic()
        if not self.ranks.is_first:
            return
        try:
            write_checkpoint(partial_run.checkpoint, Checkpoint(tensors, dataclasses.asdict(state)))
        except OSError as error:
            fallback = "the last one is kept" if partial_run.checkpoint.exists() else "there is none yet"
            self.training.progress.warn(
                f"no checkpoint at update {state.update}: {error.strerror or error}; {fallback}, training "
                f"goes on. Free some space in {partial_run.path.parent}"
            )
            return
        self.state.checkpoints += 1
        self._saved = state.update

    def _sum_up(self) -> State:
        """The state with the counts of all processes, and their mean loss."""
        state, ranks, now = self.state, self.ranks, time.monotonic()
        tokens, supervised, loss = ranks.total([state.tokens, state.supervised, state.loss_sum], self.device)
        return dataclasses.replace(
            state,
            tokens=int(tokens),
            supervised=int(supervised),
            loss_sum=loss / ranks.size,
            seconds=state.seconds + now - self._began_at,
        )

    def interruption(self) -> str:
        """The message after a signal ended the training."""
        partial_run = self.training.partial_run
        cause = self.training.stop.signal_name or "by another process"
        stopped = f"stopped after update {self.state.update} ({cause})"
        if self._saved == self.state.update or not self.ranks.is_first:
            return f"{stopped}; run `{partial_run.command}` to resume it from there"
        older = "an older checkpoint" if partial_run.checkpoint.exists() else "the start"
        return f"{stopped}, but its checkpoint could not be written; `{partial_run.command}` resumes from {older}"

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. All processes must call it together."""
        state = self._sum_up()
        metrics = {
            "seconds": round(state.seconds, 3),
            "waited_seconds": round(state.waited, 4),
            "train_steps": state.update,
            "epochs": self.order.epochs_until(state.update),
            "tokens": state.tokens,
            "supervised_tokens": state.supervised,
            "refused_updates": state.refused,
            "refused": state.refused_updates,
            "checkpoints": state.checkpoints,
            "resumed": state.resumed,
            "processes": self.ranks.size,
            "loss": state.curve,
            "memory": self.passes.facts(self.device),
        }
        if self.training.validation is not None:
            metrics |= {
                "validation": state.validation,
                "best_step": state.best_step,
                "stopped_early": state.stopped_early,
            }
        return metrics


def _diverged(config: TrainConfig, state: State, where: str) -> str:
    """The message of a training whose updates are refused one after another."""
    return (
        f"the training diverged: {where}, {state.refused_in_a_row} updates in a row had a loss or gradient that is "
        f"not finite and were refused, {state.refused} in all, so no run was written. Lower learning_rate (it is "
        f"{config.learning_rate:g}) or max_grad_norm ({config.max_grad_norm:g})"
    )
