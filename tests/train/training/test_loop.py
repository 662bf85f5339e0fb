"""The training loop: it takes the steps of transformers' Trainer, refuses what is not finite, saves when it is due."""

import json
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from theworld.pipeline.errors import ConfigError, RunError
from theworld.train.config import TrainConfig
from theworld.train.data.batches import Example
from theworld.train.data.loader import LatentDataset
from theworld.train.reader.model import TheWorld, WorldOutput
from theworld.train.runs.partial import PartialRun, TrainingFacts
from theworld.train.training import loop as module
from theworld.train.training.checkpoint import read_checkpoint, weights_of
from theworld.train.training.distributed import Ranks
from theworld.train.training.inputs import TrainData, Training
from theworld.train.training.loop import Loop, fit
from theworld.train.training.state import State
from theworld.train.training.update_order import UpdateOrder

from .test_train import LATENTS, build

ROWS = [(Example(str(n), (1, 5 + n, 6), (7 + n, 2)),) for n in range(6)]
CPU = torch.device("cpu")


class InMemory(LatentDataset):
    """Latents in RAM behind the interface of those in a store."""

    read_ahead = False

    def __init__(self) -> None:
        self.keys = tuple(str(n) for n in range(len(LATENTS)))

    def read(self, indices: Sequence[int], buffer: Any = None) -> Tensor:  # type: ignore[override]  # noqa: ARG002
        return LATENTS[torch.as_tensor(indices)]


class Silent:
    """A bar that nobody sees."""

    def advance(self, count: int, *, failed: int = 0, note: str = "") -> None: ...


def partial_run(folder: Path) -> PartialRun:
    about = {"recipe_id": "", "images_sha256": "", "questions_sha256": "", "lm": "", "versions": {}, "started": ""}
    folder.mkdir(exist_ok=True)
    return PartialRun(folder, TrainingFacts.model_validate({"config": {}, "numbered": True, **about}))


def training_of(folder: Path, *, validation: bool = False, ranks: Ranks | None = None, **changes: Any) -> Training:
    """Of six images, two an update."""
    settings = {"store": "s", "questions": "q", "batch_size": 2, "train_steps": 6, "device": "cpu", **changes}
    data = TrainData(ROWS, InMemory())
    return Training(
        TrainConfig.model_validate(settings),
        data,
        partial_run(folder),
        pad_id=0,
        validation=data if validation else None,
        ranks=ranks or Ranks(),
    )


def loop_of(training: Training, state: State | None = None) -> Loop:
    return Loop(build()[0], training, state or State())


class Stock(Trainer):
    """transformers' Trainer, given the batches of a training in their order."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("pieces", [1, 2])
def test_its_losses_and_weights_are_those_of_transformers_trainer_bit_by_bit(tmp_path: Path, pieces: int) -> None:
    training = training_of(tmp_path / "run", warmup=0.0, micro_batch=2 // pieces, train_steps=8)
    ours, theirs = build()[0], build()[0]
    result = fit(ours, training)
    order = UpdateOrder(ROWS, batch_size=2, micro_batch=2 // pieces)
    batches = training.train_data.batches(order, range(8), pad_id=0, device=CPU)
    arguments = TrainingArguments(
        str(tmp_path / "stock"), max_steps=8, gradient_accumulation_steps=pieces, learning_rate=2e-3, max_grad_norm=1.0,
        lr_scheduler_type="cosine", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    stock = Stock(theirs, arguments, train_dataset=list(batches))  # type: ignore[arg-type]
    stock.train()
    points = [point for point in stock.state.log_history if "loss" in point]
    assert [point["learning_rate"] for point in result.metrics["loss"]] == [p["learning_rate"] for p in points]
    losses = [point["loss"] for point in result.metrics["loss"]]
    assert losses == pytest.approx([p["loss"] for p in points], rel=1e-6 if pieces > 1 else 0)  # it sums in 32 bits
    weights = weights_of(theirs)
    assert weights.keys() == result.weights.keys()
    assert all(torch.equal(weights[name], result.weights[name]) for name in weights)
    untrained = weights_of(build()[0])
    assert not any(torch.equal(weights[name], untrained[name]) for name in weights), "nothing was compared"


def poisoned(loop: Loop, monkeypatch: pytest.MonkeyPatch, updates: dict[int, float]) -> None:
    """Make the loss of some updates, counted from 0, not finite."""
    forward = TheWorld.forward

    def poison(model: TheWorld, *args: Any, **kwargs: Any) -> WorldOutput:
        output = forward(model, *args, **kwargs)
        assert output.loss is not None
        return WorldOutput(output.loss * updates.get(loop.state.update, 1.0), output.logits)

    monkeypatch.setattr(TheWorld, "forward", poison)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refused_updates_change_no_weight_and_the_curve_leaves_them_out(
    tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(training_of(tmp_path))
    poisoned(loop, monkeypatch, {1: bad, 2: bad})
    kept: list[dict[str, Tensor]] = []
    follow_up = loop._follow_up
    monkeypatch.setattr(loop, "_follow_up", lambda n: (kept.append(weights_of(loop.bare)), follow_up(n)))
    loop.run(Silent())
    state = loop.state
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(kept)]
    assert changed == [False, False, True, True, True]
    assert (state.refused, state.refused_in_a_row) == (2, 0)
    assert [entry["update"] for entry in state.refused_updates] == [2, 3]
    assert [point["step"] for point in state.history] == [1, 4, 5, 6]
    json.dumps(state.history, allow_nan=False)


def test_as_many_refusals_in_a_row_as_are_allowed_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(training_of(tmp_path, max_bad_steps=3))
    poisoned(loop, monkeypatch, dict.fromkeys((1, 2, 3), math.nan))
    with pytest.raises(RunError, match="up to update 4, 3 updates in a row"):
        loop.run(Silent())


def test_a_checkpoint_is_due_by_count_by_clock_and_at_a_signal(tmp_path: Path) -> None:
    def saves(seconds: float = 0.0, signal: str = "", **changes: Any) -> list[int]:
        training = training_of(tmp_path, **{"checkpoint_minutes": None, **changes})
        loop = loop_of(training)
        loop._saved_at = time.monotonic() - seconds
        training.stop.signal_name = signal
        loop._save = lambda: steps.append(loop.state.update)  # type: ignore[method-assign]
        steps: list[int] = []
        loop.run(Silent())
        return steps

    assert saves(checkpoint_every=2) == [2, 4], "none at the end, where the run is written"
    assert saves(checkpoint_minutes=2.0, seconds=60, train_steps=2) == []
    assert saves(checkpoint_minutes=2.0, seconds=130, train_steps=2) == [1]
    assert saves(train_steps=2) == []
    assert saves(signal="SIGTERM") == [1]


def test_a_signal_in_the_last_update_ends_nothing_early(tmp_path: Path) -> None:
    training = training_of(tmp_path, train_steps=1)
    training.stop.signal_name = "SIGTERM"
    loop = loop_of(training)
    loop.run(Silent())
    assert not loop.interrupted
    assert loop.state.update == 1


def test_only_losses_that_somebody_follows_are_logged_with_a_rate(tmp_path: Path) -> None:
    for report_to, is_rated in (("tensorboard", True), ("none", False)):
        loop = loop_of(training_of(tmp_path, report_to=report_to, train_steps=1, validate_every=1, validation=True))
        loop.run(Silent())
        point, look = loop.state.history
        assert ("tokens_per_second" in point) is is_rated
        assert "tokens_per_second" not in look


def test_points_are_means_and_the_last_update_is_in_the_last_one(tmp_path: Path) -> None:
    each, loop = (loop_of(training_of(tmp_path, train_steps=10)) for _ in range(2))
    loop._log_every = 4
    for one in (each, loop):
        one.run(Silent())
    losses = [point["loss"] for point in each.state.curve]
    curve = {point["step"]: point["loss"] for point in loop.state.curve}
    assert list(curve) == [1, 4, 8, 10]
    assert curve[4] == pytest.approx(sum(losses[1:4]) / 3)
    assert curve[10] == pytest.approx(sum(losses[8:]) / 2)


def test_a_resumed_training_goes_on_with_the_loss_since_the_last_point_of_its_curve(tmp_path: Path) -> None:
    training = training_of(tmp_path, train_steps=10, checkpoint_every=7)
    straight = loop_of(training)
    straight._log_every = 3
    straight.run(Silent())
    saved = read_checkpoint(training.partial_run.checkpoint)
    assert (saved.state["update"], saved.state["summed"]) == (7, 1)
    resumed = loop_of(training, State(**saved.state))
    resumed._log_every = 3
    resumed.resume(saved)
    resumed.run(Silent())
    assert resumed.state.curve == straight.state.curve
    assert resumed.state.resumed == 1


def test_the_best_weights_are_kept_and_patience_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter((3.0, 2.0, 2.0, 1.0, 1.5, 1.0))
    monkeypatch.setattr(module, "validate", lambda *_: (next(losses), 0.5))
    training = training_of(tmp_path, train_steps=200, validate_every=1, patience=2, validation=True)
    loop, kept = loop_of(training), []
    follow_up = loop._follow_up
    monkeypatch.setattr(loop, "_follow_up", lambda n: (kept.append(weights_of(loop.bare)), follow_up(n)))
    loop.run(Silent())
    assert loop.state.stopped_early
    assert not loop.interrupted
    assert (loop.state.update, loop.state.best_step) == (6, 4)
    assert all(torch.equal(loop.best[name], kept[3][name]) for name in kept[3])
    assert loop.state.curve[-1]["step"] == 6, "the last point comes where the training ends"


def test_tokens_are_counted_once_and_rows_without_weight_are_not(tmp_path: Path) -> None:
    loop = loop_of(training_of(tmp_path, train_steps=3))
    loop.run(Silent())
    world = loop.bare.reader.count(3, 4, 6)
    assert (loop.state.supervised, loop.state.tokens) == (6 * 2, 6 * (5 + world))


def test_processes_that_accelerate_does_not_know_of_are_refused(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)  # as in a new process
    Accelerator(cpu=True)
    with pytest.raises(
        ConfigError, match=r"one of 2 of a training, but accelerate was set up for 1 .*process of its own"
    ):
        loop_of(training_of(tmp_path, ranks=Ranks(0, 2)))


def test_another_precision_that_accelerate_was_set_up_with_is_refused(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    Accelerator(cpu=True, mixed_precision="bf16")
    try:
        with pytest.raises(ConfigError, match=r"accelerate cannot be set up for this training: .*mixed_precision"):
            loop_of(training_of(tmp_path))
    finally:
        AcceleratorState._reset_state(True)
