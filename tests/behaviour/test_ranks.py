"""Two processes take the steps that one takes, and a training may change their number on its way.

They find each other through a file and talk over the loopback device; on GPUs, accelerate does the same with NCCL.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from theworld.pipeline.errors import Interrupted
from theworld.train.config import TrainConfig
from theworld.train.data.batches import pad_rows
from theworld.train.reader.model import TheWorld
from theworld.train.runs.partial import resumed_config
from theworld.train.training.checkpoint import optimizer_state, put_optimizer_state, put_weights, weights_of
from theworld.train.training.train import train

from ..faults.harness import finish, start
from ..miniatures.training import StopAt, lay_out, learned, settings
from ..train.training.test_train import LATENTS, ROWS, build
from .test_trackers import of_stand_in, stand_in

pytestmark = pytest.mark.slow

BATCH = pad_rows(ROWS[:3], 0)


def together(folder: Path, size: int, work: Any) -> None:
    """Run `work` in `size` processes of one training."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting*')))}"

    def one(rank: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
        os.environ.update(GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true")
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        try:
            work()
        finally:
            distributed.destroy_process_group()

    children = [start(lambda _, rank=rank: one(rank)) for rank in range(size)]
    for child in children:
        finish(*child)


def equal(one: Path, other: Path) -> None:
    """Weights, losses and counts; the sums of two processes are rounded otherwise than those of one."""
    ours, theirs = learned(one), learned(other)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5)
    curves = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    for point, other_point in zip(*(curve["loss"] for curve in curves), strict=True):
        assert point["loss"] == pytest.approx(other_point["loss"], rel=1e-5)
    assert curves[0]["supervised_tokens"] == curves[1]["supervised_tokens"]
    assert curves[0]["tokens"] == pytest.approx(curves[1]["tokens"], rel=0.2)  # rows are padded to another length


def config(house: Path, **changes: Any) -> TrainConfig:
    """Without dropout, whose draws belong to a process; few updates, which AdamW would drift apart over."""
    return settings(house, lora_dropout=0.0, train_steps=6, learning_rate=1e-3, **changes)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    house = lay_out(tmp_path, validation=2)
    train(config(house, out=house / "one", validate_every=2))
    together(house, 2, lambda: train(config(house, out=house / "two", validate_every=2, micro_batch=2)))
    equal(house / "one", house / "two")
    metrics = [json.loads((house / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert [m["processes"] for m in metrics] == [1, 2]
    looks = [[look["loss"] for look in m["validation"]] for m in metrics]
    assert looks[0] == pytest.approx(looks[1], rel=1e-5)


def test_a_training_begun_by_one_goes_on_with_two_and_ends_with_one(tmp_path: Path) -> None:
    house = lay_out(tmp_path)
    train(config(house, out=house / "one"))
    path = house / "run.partial"
    with pytest.raises(Interrupted):
        train(config(house), stop=StopAt(2))

    def two_updates() -> None:
        stop = StopAt(2) if os.environ["RANK"] == "1" else None  # one of them is told to, both stop
        with pytest.raises(Interrupted, match="after update 4"):
            train(resumed_config(path, {}), resume=path, stop=stop)

    together(house, 2, two_updates)
    train(resumed_config(path, {}), resume=path)
    equal(house / "one", house / "run")


def test_two_processes_tell_a_tracker_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = lay_out(tmp_path)
    monkeypatch.chdir(house)
    stand_in(house, monkeypatch)
    together(house, 2, lambda: train(config(house, report_to="trackio")))
    assert (house / "told.jsonl").read_text().count('"begin"') == 1
    [(_, _, told)] = of_stand_in(house)
    assert list(told) == list(range(1, 7))
    metrics = json.loads((house / "run" / "metrics.json").read_text())
    assert [told[point["step"]]["train/loss"] for point in metrics["loss"]] == [p["loss"] for p in metrics["loss"]]


def test_what_fsdp_has_split_is_kept_whole_and_split_again(tmp_path: Path) -> None:
    """FSDP by hand, as accelerate offers it on GPUs alone: two steps, with everything put down and taken up between."""

    def steps(model: TheWorld, optimizers: list[torch.optim.Optimizer], say: Any = lambda: None) -> None:
        for number, optimizer in enumerate(optimizers):
            model(**BATCH, latents=LATENTS[:3]).loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            model.zero_grad()
            if number == 0:
                say()

    def trained(model: TheWorld) -> list[torch.nn.Parameter]:
        return [p for p in model.parameters() if p.requires_grad]

    plain, _ = build()
    steps(plain, [torch.optim.AdamW(trained(plain), lr=1e-2)] * 2)
    expected = weights_of(plain)

    def split() -> None:
        model, lm = build()
        for layer in lm.model.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        first, second = (torch.optim.AdamW(trained(model), lr=1e-2) for _ in range(2))

        def put_down_and_take_up() -> None:
            weights, (moments, groups) = weights_of(model), optimizer_state(model, first)
            with torch.no_grad():
                for parameter in trained(model):
                    parameter.zero_()
            put_weights(model, weights)
            put_optimizer_state(model, second, moments, groups)

        steps(model, [first, second], put_down_and_take_up)
        for name, tensor in weights_of(model).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)

    together(tmp_path, 2, split)
