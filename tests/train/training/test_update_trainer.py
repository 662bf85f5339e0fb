"""What decides about an update, a checkpoint and a log entry, each asked alone, without a training around it."""

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from theworld.pipeline.errors import RunError
from theworld.pipeline.progress import Progress
from theworld.train.config import TrainConfig
from theworld.train.data.batches import Example
from theworld.train.reader.model import WorldOutput
from theworld.train.training.checkpoint import Checkpoint
from theworld.train.training.distributed import Ranks
from theworld.train.training.trainer import Counters, TrainData, UpdateTrainer
from theworld.train.training.update_order import UpdateOrder

ROWS = [(Example(f"{n:032x}", (1, 5, 6), (*range(7, 8 + n % 3), 2)),) for n in range(6)]
CPU = torch.device("cpu")


def bare(**settings: Any) -> UpdateTrainer:
    """A trainer after update 4, that was not made by Trainer and has only what the methods below look at."""
    trainer = object.__new__(UpdateTrainer)
    trainer.config = TrainConfig.model_validate({"store": "s", "questions": "q", "batch_size": 2, **settings})
    trainer.ranks, trainer.counters = Ranks(), Counters()
    trainer.args = SimpleNamespace(device=CPU)  # type: ignore[assignment]
    trainer.state = SimpleNamespace(global_step=4, log_history=[])  # type: ignore[assignment]
    trainer.training = SimpleNamespace(  # type: ignore[assignment]
        stop=SimpleNamespace(signal_name=""), progress=Progress.silent(), pad_id=0
    )
    trainer.order, trainer.train_dataset = UpdateOrder(ROWS, batch_size=2), ROWS  # type: ignore[assignment]
    trainer.optimizer = SimpleNamespace(zero_grad=lambda **_: None)  # type: ignore[assignment]
    trainer.due = trainer.interrupted = False
    trainer._losses, trainer._saved_at = [torch.tensor(1.0)], time.monotonic()
    return trainer


def clip(trainer: UpdateTrainer, monkeypatch: pytest.MonkeyPatch, norm: float) -> float:
    monkeypatch.setattr(Trainer, "_clip_grad_norm", lambda *_: torch.tensor(norm))
    return float(trainer._clip_grad_norm(nn.Identity()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_norm_of_a_refused_update_is_zero_so_that_logs_and_json_stay_finite(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = bare()
    assert clip(trainer, monkeypatch, bad) == 0
    assert (trainer.counters.refused, trainer.counters.refused_in_a_row) == (1, 1)
    assert trainer.counters.refused_updates[0]["update"] == 5
    trainer._losses = [torch.tensor(1.0), torch.tensor(bad)]  # of one piece alone
    assert clip(trainer, monkeypatch, 3.0) == 0
    assert trainer.counters.refused_in_a_row == 2
    trainer._losses = [torch.tensor(1.0)]
    assert clip(trainer, monkeypatch, 3.0) == 3
    assert (trainer.counters.refused, trainer.counters.refused_in_a_row) == (2, 0)


def test_as_many_refusals_in_a_row_as_are_allowed_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bare(max_bad_steps=3)
    assert clip(trainer, monkeypatch, math.nan) == clip(trainer, monkeypatch, math.nan) == 0
    with pytest.raises(RunError, match="3 updates in a row"):
        clip(trainer, monkeypatch, math.nan)


def test_twenty_refused_updates_are_kept_by_name_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bare(max_bad_steps=100)
    for _ in range(25):
        clip(trainer, monkeypatch, math.nan)
    assert (trainer.counters.refused, len(trainer.counters.refused_updates)) == (25, 20)


def test_a_checkpoint_is_due_by_count_by_clock_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bare(checkpoint_every=3)
    due = {}
    for step in range(1, 8):
        trainer.state.global_step = step
        due[step] = trainer.checkpoint_is_due()
    assert [step for step, is_due in due.items() if is_due] == [3, 6]
    trainer = bare(checkpoint_every=None, checkpoint_minutes=2.0)
    for minutes, is_due in ((1.9, False), (2.1, True)):
        trainer._saved_at = time.monotonic() - 60 * minutes
        clip(trainer, monkeypatch, 1.0)
        assert trainer.checkpoint_is_due() is is_due
    trainer = bare(checkpoint_every=None, checkpoint_minutes=None)
    clip(trainer, monkeypatch, 1.0)
    assert not trainer.checkpoint_is_due()
    trainer.training.stop.signal_name = "SIGTERM"
    clip(trainer, monkeypatch, 1.0)
    assert trainer.checkpoint_is_due()
    assert trainer.interrupted


@pytest.mark.parametrize(
    ("report_to", "name", "is_rated"),
    [("tensorboard", "loss", True), ("tensorboard", "eval_loss", False), ("none", "loss", False)],
)
def test_only_losses_that_somebody_follows_are_logged_with_a_rate(
    report_to: str, name: str, is_rated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "log", lambda *_: None)
    trainer, logs = bare(report_to=report_to), {name: 1.0}
    trainer._rated, trainer.counters.tokens = (100, time.monotonic() - 2), 300
    trainer.log(logs)
    assert ("tokens_per_second" in logs) is is_rated
    if is_rated:
        assert logs["tokens_per_second"] == pytest.approx(100, rel=0.05)


def test_a_resumed_training_goes_on_with_the_loss_since_the_last_point_of_its_curve() -> None:
    trainer = bare()
    trainer.start = Checkpoint({}, {"running": [0.75, 12.5, 3]})
    trainer._tr_loss, trainer._total_loss_scalar, trainer._globalstep_last_logged = torch.tensor(0.0), 0.0, 4
    trainer.resume_counts()
    assert float(trainer._tr_loss) == 0.75
    assert (trainer._total_loss_scalar, trainer._globalstep_last_logged) == (12.5, 3)
    assert trainer.start is None
    trainer.resume_counts()
    assert float(trainer._tr_loss) == 0.75


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_the_loss_of_a_piece_counts_by_its_share_of_the_update(
    micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "compute_loss", lambda *_, **__: torch.tensor(2.0))
    trainer = bare()
    trainer.model = SimpleNamespace(reader=None)  # type: ignore[assignment]
    trainer.order = UpdateOrder(ROWS, batch_size=3, micro_batch=micro_batch, shuffle=False)
    trainer.state.global_step = 0
    losses: list[Tensor] = []
    for number in range(trainer.order.pieces_of(0)):
        trainer._piece = number
        rows = [ROWS[row] for row in trainer.order.piece(0, number).rows]
        losses.append(trainer.compute_loss(nn.Identity(), TrainData(rows, None).collator(0)(rows)))
    shares = [1.0] if micro_batch is None else [2 / 9, 3 / 9, 4 / 9]  # answers of 2, 3 and 4 tokens
    assert [float(loss) for loss in losses] == pytest.approx([2 * share for share in shares])
    assert trainer.counters.supervised == 9


class Counting(nn.Module):
    """A model whose loss is the mean of the tokens it should learn, and which always predicts token 7."""

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> WorldOutput:
        learned = labels[labels >= 0].float()
        logits = torch.zeros(*input_ids.shape, 20)
        logits[..., 7] = 1
        return WorldOutput(learned.mean(), logits)


def test_the_validation_loss_is_the_mean_over_all_tokens_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_prepare_inputs", lambda _, batch: batch)
    monkeypatch.setattr("theworld.train.training.trainer.count_right_answers", lambda *_: (1, 2))
    tokens = [token for (example,) in ROWS[:5] for token in example.answer]
    for settings in ({"batch_size": 4}, {"batch_size": 2}, {"batch_size": 5, "micro_batch": 1}):
        trainer = bare(**settings)
        trainer.model = Counting()
        loss, accuracy = trainer._validate(TrainData(ROWS[:5], None))
        assert loss == pytest.approx(sum(tokens) / len(tokens)), settings
        assert accuracy == 0.5


def test_the_best_weights_are_kept_and_patience_counts_what_is_not_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "log", lambda *_: None)
    trainer = bare(validate_every=1, patience=2)
    trainer.model = nn.Linear(1, 1, bias=False)
    trainer.training.validation = TrainData(ROWS, None)
    trainer.control = SimpleNamespace(should_training_stop=False)  # type: ignore[assignment]
    trainer.callback_handler = SimpleNamespace(on_evaluate=lambda _args, _state, control, _metrics: control)  # type: ignore[assignment]
    stopped = []
    for step, loss in enumerate((3.0, 2.0, 2.0, 1.0, 1.5, 1.0)):
        trainer.state.global_step = step
        nn.init.constant_(trainer.model.weight, step)
        monkeypatch.setattr(trainer, "_validate", lambda _, loss=loss: (loss, 0.5))
        trainer.evaluate()
        stopped.append(trainer.control.should_training_stop)
    assert stopped == [False] * 5 + [True]
    assert trainer.counters.stopped_early
    assert (trainer.counters.best_step, trainer.counters.best_loss, trainer.counters.worse_in_a_row) == (3, 1.0, 2)
    assert float(trainer.best["weight"]) == 3
