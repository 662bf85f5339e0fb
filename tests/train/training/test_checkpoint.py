"""The file of a checkpoint: its format by number, what it refuses, and what it gives back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from theworld.pipeline.errors import RunError
from theworld.train.training.checkpoint import (
    Checkpoint,
    optimizer_state,
    put_optimizer_state,
    put_weights,
    read_checkpoint,
    weights_of,
    write_checkpoint,
)

CHECKPOINT = Checkpoint({"weights/b": torch.arange(3.0), "best/b": torch.ones(2)}, {"step": 7})


def metadata(path: Path) -> dict[str, object]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["training"])


def test_it_is_of_format_2_and_another_number_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    write_checkpoint(file, CHECKPOINT)
    about = metadata(file)
    assert about["format"] == 2
    again = read_checkpoint(file)
    assert again.state == {"step": 7}
    assert torch.equal(again.part("weights")["b"], torch.arange(3.0))
    assert again.part("best").keys() == {"b"}
    for other in (1, 3):
        save_file(load_file(file), tmp_path / "other", {"training": json.dumps({**about, "format": other})})
        with pytest.raises(RunError, match=f"the format {other}, and this release reads 2.*the release that began it"):
            read_checkpoint(tmp_path / "other")


def test_tensors_that_are_not_those_of_its_digest_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    write_checkpoint(file, CHECKPOINT)
    text = json.dumps(metadata(file))
    save_file({**load_file(file), "best/b": torch.zeros(2)}, file, {"training": text})
    with pytest.raises(RunError, match="its bytes have changed"):
        read_checkpoint(file)


def test_weights_of_another_model_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    weights = weights_of(model)
    assert weights.keys() == {"0.weight", "0.bias"}
    weights["0.bias"].fill_(9)
    assert not torch.equal(model[0].bias, weights["0.bias"])  # a copy
    put_weights(model, weights)
    assert torch.equal(model[0].bias, weights["0.bias"])
    for wrong in ({**weights, "1.weight": torch.zeros(1, 2)}, {"0.bias": weights["0.bias"]}):
        with pytest.raises(RunError, match="of another model"):
            put_weights(model, wrong)
    with pytest.raises(RunError, match=r"another model: 0\.bias"):
        put_weights(model, {**weights, "0.bias": torch.zeros(3)})


def test_the_optimizer_goes_on_with_its_moments() -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    straight = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(straight.parameters(), lr=0.1)
    step(straight, optimizer)
    weights, moments = weights_of(straight), optimizer_state(straight, optimizer)
    assert {name.split("/")[1] for name in moments} == {"exp_avg", "exp_avg_sq", "step"}
    other = nn.Linear(2, 1)
    put_weights(other, weights)
    resumed = torch.optim.AdamW(other.parameters(), lr=0.1)
    put_optimizer_state(other, resumed, moments)
    step(straight, optimizer)
    step(other, resumed)
    assert torch.equal(other.weight, straight.weight)


@pytest.mark.parametrize("training", ["[" * 100_000, "[]", "3", '{"format": 1}', ""])
def test_a_checkpoint_with_other_words_in_it_is_refused(tmp_path: Path, training: str) -> None:
    save_file({"weights/a": torch.zeros(2)}, tmp_path / "c.safetensors", {"training": training})
    with pytest.raises(RunError, match="cannot be read"):
        read_checkpoint(tmp_path / "c.safetensors")
