"""Which layers a training adapts is a setting, with peft's names; a run is loaded with the same ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from theworld.pipeline.errors import ConfigError, RunError
from theworld.train.language.lm import load_language_model
from theworld.train.language.weights import find_weights
from theworld.train.runs.folder import load_run
from theworld.train.training.train import train

from ...miniatures.training import lay_out, settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("house"), images=6)


@pytest.mark.parametrize(
    ("chosen", "adapted"),
    [
        ({"target_modules": "q_proj,v_proj"}, {"q_proj", "v_proj"}),
        ({"target_modules": ["layers.0.self_attn.q_proj"]}, {"q_proj"}),
        ({"target_modules": "o_proj", "modules_to_save": "input_layernorm", "dtype": "bfloat16"}, {"o_proj"}),
    ],
)
def test_the_layers_of_a_training_are_those_of_its_run(
    house: Path, tmp_path: Path, chosen: dict[str, Any], adapted: set[str]
) -> None:
    run = train(settings(house, train_steps=3, out=tmp_path / "run", **chosen)).run
    saved = load_file(run / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved if ".lora_A." in name} == adapted
    norms = {name: tensor for name, tensor in saved.items() if ".lora_" not in name}
    assert len(norms) == 2 * ("modules_to_save" in chosen), "of each of two layers"
    base = load_language_model(find_weights(str(house / "lm")), device=CPU, dtype=torch.float32)
    for name, tensor in norms.items():
        assert tensor.dtype == torch.float32
        before = base.model.get_parameter(name.removeprefix("base_model.model."))
        assert not torch.equal(tensor, before), "it has learned"
    loaded = load_run(run, device="cpu", dtype="float32")
    ids = torch.tensor([[1, 4, 11, 5]])
    theirs = PeftModel.from_pretrained(base.model, str(run))
    with torch.no_grad():
        assert torch.equal(loaded.model(ids, torch.ones_like(ids)).logits, theirs(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"target_modules": "q_prj"}, "'q_prj' is not the name of a linear layer .* these are down_proj, gate_proj"),
        ({"target_modules": "q_proj,lm_head"}, "'lm_head' is not the name of a linear layer"),
        ({"modules_to_save": "embed_tokens"}, "'embed_tokens' is not the name of a norm"),
    ],
)
def test_a_layer_that_is_not_there_or_of_another_kind_is_refused(
    house: Path, chosen: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(settings(house, train_steps=1, **chosen))


def test_a_run_that_lost_a_norm_is_refused(house: Path, tmp_path: Path) -> None:
    run = train(settings(house, train_steps=1, out=tmp_path / "run", target_modules="q_proj")).run
    learned = [tensor for name, tensor in load_file(run / "adapter_model.safetensors").items() if ".lora_B." in name]
    assert all(bool(tensor.any()) for tensor in learned), "a single update has learned: B begins at zero"
    file = run / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "modules_to_save": ["input_layernorm"]}))
    with pytest.raises(RunError, match="of adapters that theworld does not train"):
        load_run(run, device="cpu")
