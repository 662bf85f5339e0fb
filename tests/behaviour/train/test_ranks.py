"""Two processes take the steps of one, with DDP and with FSDP, and a training may change their number on its way.

They find each other through a file and talk over the loopback device; on GPUs, accelerate does the same with NCCL.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.tensor import DTensor

from tests.behaviour.train.test_trackers import of_stand_in, stand_in
from tests.faults.harness import finish, start
from tests.miniatures.training import StopAt, lay_out, learned, settings
from theworld.pipeline.errors import Interrupted
from theworld.train.config import TrainConfig
from theworld.train.runs.partial import resumed_config
from theworld.train.training.loop import Loop
from theworld.train.training.train import train

pytestmark = pytest.mark.slow

FSDP = Path(__file__).parents[3] / "configs" / "fsdp.yaml"


def together(folder: Path, size: int, work: Any, *, fsdp: bool = False) -> None:
    """Run `work` in `size` processes of one training."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting*')))}"

    def one(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # a forked process is not yet one of several
        if fsdp:
            use_fsdp_on_cpu()
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


def use_fsdp_on_cpu() -> None:
    """The settings of configs/fsdp.yaml as `accelerate launch` hands them on, without accelerate's demand for GPUs."""
    plan = load_config_from_file(str(FSDP)).fsdp_config
    names = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
    os.environ.update({names.get(name, name.upper()): str(value) for name, value in plan.items()})
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    set_up = AcceleratorState.__init__

    def and_split(self: AcceleratorState, *arguments: Any, **plugins: Any) -> None:
        set_up(self, *arguments, **plugins)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins["fsdp_plugin"]
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = and_split  # type: ignore[method-assign]


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


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_a_training_begun_by_one_goes_on_with_two_and_ends_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsdp: bool
) -> None:
    """It validates just before it ends, after which FSDP must split again what it left whole."""
    house = lay_out(tmp_path, validation=2)
    train(config(house, out=house / "one", validate_every=2))
    path = house / "run.partial"
    with pytest.raises(Interrupted):
        train(config(house, validate_every=2), stop=StopAt(2))
    run, split = Loop.run, set[bool]()

    def run_and_look(loop: Loop, *arguments: Any) -> None:
        split.update(isinstance(parameter, DTensor) for parameter in loop.bare.parameters())
        run(loop, *arguments)

    def two_updates() -> None:
        stop = StopAt(2) if os.environ["RANK"] == "1" else None  # one of them is told to, both stop
        with pytest.raises(Interrupted, match="after update 4"):
            train(resumed_config(path, {"micro_batch": 2}), resume=path, stop=stop)
        assert split == {fsdp}

    monkeypatch.setattr(Loop, "run", run_and_look)
    together(house, 2, two_updates, fsdp=fsdp)
    train(resumed_config(path, {}), resume=path)
    equal(house / "one", house / "run")


def test_two_processes_tell_a_tracker_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = lay_out(tmp_path)
    monkeypatch.chdir(house)
    stand_in(house, monkeypatch)
    together(house, 2, lambda: train(config(house, report_to="trackio")))
    assert (house / "told.jsonl").read_text().count('"begin"') == 1
    [(_, _, told)] = of_stand_in(house)
    assert list(told) == list(range(1, 7))
    metrics = json.loads((house / "run" / "metrics.json").read_text())
    assert [told[point["step"]]["train/loss"] for point in metrics["loss"]] == [p["loss"] for p in metrics["loss"]]
