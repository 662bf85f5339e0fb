"""What saves memory or time changes no update: recomputed activations, pieces of an update, other attention."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from theworld.pipeline.errors import ConfigError
from theworld.train.config import TrainConfig
from theworld.train.data.batches import Example, pad_rows
from theworld.train.language.lm import LanguageModel, checkpoint_activations, load_language_model
from theworld.train.language.lora import add_lora
from theworld.train.language.weights import Weights, find_weights
from theworld.train.reader import attention
from theworld.train.reader.model import TheWorld
from theworld.train.reader.tokens import TokenLayout, WorldReader
from theworld.train.training import prepare
from theworld.train.training.train import train
from theworld.train.training.update_order import UpdateOrder

from ...miniatures.lm import mini_lm, mini_tokenizer, save_mini_lm
from ...miniatures.training import lay_out, learned, settings
from ..reader.test_attention import written_out


def build(*, dropout: float = 0.0) -> tuple[TheWorld, LanguageModel]:
    lm = LanguageModel(mini_lm(), mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))
    torch.manual_seed(0)
    reader = WorldReader(
        latent_shape=(16, 4, 6), hidden_size=32, embedding_rms=1.0, layout=TokenLayout(name="patch", patch=2)
    )
    adapted = add_lora(lm, rank=2, alpha=4, dropout=dropout)
    made = TheWorld(adapted.model, reader, num_world_steps=2)
    with torch.no_grad():
        for name, parameter in made.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 if "lora_B" in name else 0)
    return made.train(), adapted


def rows(count: int) -> list[tuple[Example, ...]]:
    draw = np.random.default_rng(0)
    return [
        tuple(
            Example(
                str(n), (1, *draw.integers(4, 20, draw.integers(2, 9)).tolist()),
                (*draw.integers(4, 20, draw.integers(1, 4)).tolist(), 2),
            )
            for _ in range(draw.integers(1, 4))
        )
        for n in range(count)
    ]  # fmt: skip


ROWS = rows(6)
LATENTS = torch.randn(6, 16, 3, 4, 6, generator=torch.Generator().manual_seed(5))


def loss_of(model: TheWorld, some: list[int]) -> Tensor:
    loss = model(**pad_rows([ROWS[row] for row in some], 0), latents=LATENTS[some]).loss
    assert loss is not None
    return loss


def gradients(model: TheWorld) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.trainable_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_loss_and_gradients(dropout: float) -> None:
    model, lm = build(dropout=dropout)
    torch.manual_seed(3)
    plain = loss_of(model, [0, 1, 2])
    plain.backward()
    expected = gradients(model)
    checkpoint_activations(lm.model)
    calls, layer = [], model.lm.get_base_model().model.layers[0]
    layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    again = loss_of(model, [0, 1, 2])
    again.backward()
    assert len(calls) == 2, "nothing was computed again"
    assert again.item() == pytest.approx(plain.item(), abs=1e-6)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 1), (1, 4), (2, None), (4, 1)])
def test_pieces_on_any_number_of_processes_sum_to_the_gradients_of_the_whole_update(
    world_size: int, micro_batch: int | None
) -> None:
    model, _ = build()
    order = UpdateOrder(ROWS, batch_size=6)
    whole = loss_of(model, order.rows_of(0))
    whole.backward()
    expected = gradients(model)
    total = 0.0
    for rank in range(world_size):
        part = UpdateOrder(ROWS, batch_size=6, rank=rank, world_size=world_size, micro_batch=micro_batch)
        for number in range(part.pieces_of(0)):
            piece = part.piece(0, number)
            loss = loss_of(model, list(piece.rows)) * piece.weight / world_size  # as DDP takes the mean
            loss.backward()
            total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)


def test_attention_that_would_be_wrong_or_cannot_run_is_refused(tmp_path: Path) -> None:
    weights = find_weights(str(save_mini_lm(tmp_path / "lm")))
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="caps its attention scores, and sdpa does not"):
        load_language_model(weights, device=cpu, dtype=torch.float32, attention="sdpa")
    with pytest.raises(ConfigError, match=r"language model .* cannot be loaded"):
        load_language_model(weights, device=cpu, dtype=torch.float32, attention="flash_attention_2")
    loaded = load_language_model(weights, device=cpu, dtype=torch.float32, attention="eager")
    assert loaded.model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="pack = 1"):
        TrainConfig.model_validate({"store": "a", "questions": "b", "attention": "flash_attention_2"})


def test_flex_attention_is_not_trained_on_a_cpu(tmp_path: Path) -> None:
    house = lay_out(tmp_path)
    with pytest.raises(ConfigError, match="no backward pass"):
        train(settings(house, attention="flex_attention"))
    assert {path.name for path in house.iterdir()} == {"lm", "cache"}


def test_a_training_with_flex_attention_learns_what_one_with_plain_attention_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU its kernel is written out: torch's has no backward pass there."""
    house = lay_out(tmp_path)
    how = {"gradient_checkpointing": True, "lora_dropout": 0.0}  # padding would draw other dropout
    train(settings(house, out=house / "plain", **how))
    lengths: set[int] = set()

    def noted(query: Tensor, *others: Tensor, **options: Any) -> Tensor:
        lengths.add(query.shape[2])
        return written_out(query, *others, **options)

    monkeypatch.setattr(attention, "flex_kernel", noted)
    monkeypatch.setattr(prepare, "attention_of", lambda *_, **__: "flex_attention")
    train(settings(house, out=house / "flex", **how))
    assert lengths == {128}
    plain, flex = (json.loads((house / name / "metrics.json").read_text()) for name in ("plain", "flex"))
    assert (plain["computed_with"]["attention"], flex["computed_with"]["attention"]) == ("eager", "flex_attention")
    for ours, theirs in zip(flex["loss"], plain["loss"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    expected = learned(house / "plain")
    for name, weight in learned(house / "flex").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-3)
