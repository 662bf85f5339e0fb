"""LoRA in bfloat16 beside float32 masters learns as LoRA in float32 does, and what is kept stays float32."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from theworld.pipeline.errors import ConfigError
from theworld.train.language.adapter_dtype import RoundedLinear, adapter_dtype_of, compute_in_model_dtype
from theworld.train.language.lm import LanguageModel
from theworld.train.language.lora import add_lora
from theworld.train.language.weights import Weights
from theworld.train.runs.folder import load_run
from theworld.train.training.train import train

from ...miniatures.lm import mini_lm, mini_tokenizer
from ...miniatures.training import lay_out, settings

BF16, F32 = torch.bfloat16, torch.float32


def adapted(*, rounded: bool) -> nn.Module:
    lm = LanguageModel(mini_lm().to(BF16), mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))
    torch.manual_seed(0)
    made = add_lora(lm, rank=2, alpha=4, dropout=0.0).model
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    if rounded:
        compute_in_model_dtype(made)
    return made


def test_weights_and_gradients_stay_float32_and_differ_by_rounding() -> None:
    ids, gradients = torch.arange(4, 20)[None], list[dict[str, torch.Tensor]]()
    for model in (adapted(rounded=False), adapted(rounded=True)):
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, rounded = gradients
    assert plain.keys() == rounded.keys()
    assert {gradient.dtype for gradient in rounded.values()} == {F32}
    off = sum(float((rounded[name] - plain[name]).square().sum()) for name in plain)
    assert 0 < off < 0.05**2 * sum(float(gradient.square().sum()) for gradient in plain.values())


def test_beside_a_float32_model_nothing_is_rounded() -> None:
    layer = nn.Linear(8, 4, bias=False)
    given = torch.randn(3, 8)
    rounded = RoundedLinear.of(layer)
    assert rounded.weight is layer.weight
    assert torch.equal(rounded(given), layer(given))
    assert rounded(given.to(BF16)).dtype == BF16


def test_by_itself_it_is_for_a_bfloat16_model_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert adapter_dtype_of("auto", BF16, gpu) == "bfloat16"
    assert {adapter_dtype_of("auto", *of) for of in ((F32, gpu), (BF16, cpu), (F32, cpu))} == {"float32"}
    assert adapter_dtype_of("float32", BF16, gpu) == "float32"
    with pytest.raises(ConfigError, match="set dtype = bfloat16, too"):
        adapter_dtype_of("bfloat16", F32, gpu)


def test_the_loss_curve_is_that_of_float32_adapters_and_the_run_says_which_it_was(tmp_path: Path) -> None:
    house = lay_out(tmp_path)
    curves: dict[str, list[float]] = {}
    for name in ("float32", "bfloat16"):
        asked = settings(house, dtype="bfloat16", adapter_dtype=name, train_steps=60, out=house / name)
        train(asked)
        metrics = json.loads((house / name / "metrics.json").read_text())
        assert metrics["computed_with"] == {"attention": "eager", "adapter_dtype": name}
        curves[name] = [point["loss"] for point in metrics["loss"]]
        assert {t.dtype for t in load_file(house / name / "adapter_model.safetensors").values()} == {F32}
        loaded = load_run(house / name, device="cpu")
        assert loaded.meta.config["adapter_dtype"] == name
        rounds = any(isinstance(module, RoundedLinear) for module in loaded.model.modules())
        assert rounds == (name == "bfloat16")
    first, last = curves["float32"][0], curves["float32"][-1]
    assert last < 0.7 * first
    for plain, rounded in zip(curves["float32"], curves["bfloat16"], strict=True):
        assert abs(plain - rounded) < 0.01 * first  # 0.0017 of it at most here
    widened = load_run(house / "bfloat16", device="cpu", dtype="float32")
    assert widened.lm.model.get_input_embeddings().weight.dtype == F32
