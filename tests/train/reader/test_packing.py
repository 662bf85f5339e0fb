"""Questions packed behind one world are answered and learned as if each stood alone, in far fewer tokens."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from theworld.train.data.batches import Example, pack, pad_rows
from theworld.train.language.architectures import TRIED
from theworld.train.language.lm import LanguageModel
from theworld.train.language.lora import add_lora
from theworld.train.language.weights import Weights
from theworld.train.reader.model import IGNORED, TheWorld
from theworld.train.reader.tokens import TokenLayout, WorldReader

from ...miniatures.language_models import tried_lm
from ...miniatures.lm import mini_tokenizer

LATENTS = torch.randn(3, 16, 3, 4, 6, generator=torch.Generator().manual_seed(5))

Texts = list[tuple[list[int], list[int]]]
"""Prompts without <bos>, and answers."""
_text = st.tuples(
    st.lists(st.integers(3, 24), min_size=1, max_size=9), st.lists(st.integers(3, 24), min_size=1, max_size=4)
)
_rows = st.lists(st.lists(_text, min_size=1, max_size=4), min_size=1, max_size=3)


def model(architecture: str) -> TheWorld:
    """With LoRA and weights as after some training, windows far shorter than a row."""
    plain = tried_lm(architecture)
    lm = LanguageModel(plain, mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))
    reader = WorldReader(
        latent_shape=(16, 4, 6), hidden_size=32, embedding_rms=1.0, layout=TokenLayout(name="patch", patch=2)
    )
    made = TheWorld(add_lora(lm, rank=2, alpha=4, dropout=0.0).model, reader, num_world_steps=2)
    with torch.no_grad():
        for name, parameter in made.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 if "lora_B" in name else 0)
    return made.eval()


GEMMA_2 = "Gemma2ForCausalLM"
ALL = [name for name, each in TRIED.items() if each.text_class is None and name != "Gemma3ForConditionalGeneration"]
MODELS = {name: model(name) for name in (GEMMA_2, "Gemma3ForCausalLM", "Gemma4ForCausalLM")}
MODELS["Gemma4ForCausalLM"].double()  # in float32, rounding grows beyond 1e-5 in its four layers


def examples(rows: list[Texts]) -> list[list[Example]]:
    return [[Example(str(n), (1, *prompt), (*answer, 2)) for prompt, answer in row] for n, row in enumerate(rows)]


def gradients(of: TheWorld, loss: Tensor) -> dict[str, Tensor]:
    of.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in of.trainable_parameters() if p.grad is not None}


@pytest.mark.parametrize("world_on", [True, False])
@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=20, deadline=None)
@given(rows=_rows)
def test_nothing_differs_from_a_row_a_question(family: str, world_on: bool, rows: list[Texts]) -> None:
    packed, alone = examples(rows), [[example] for row in examples(rows) for example in row]
    whose = torch.tensor([int(example[0].key) for example in alone])
    ours, plain = pad_rows(packed, 0), pad_rows(alone, 0)
    of = MODELS[family]
    latents = LATENTS.to(of.lm.dtype)
    world = ({"latents": latents[: len(rows)]}, {"latents": latents[whose]}) if world_on else ({}, {})
    one, many = of(**ours, **world[0]), of(**plain, **world[1])
    torch.testing.assert_close(one.logits, many.logits, rtol=1e-5, atol=1e-5)
    assert one.loss.item() == pytest.approx(many.loss.item(), rel=1e-5)
    theirs = gradients(of, many.loss)
    for name, gradient in gradients(of, one.loss).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", sorted(set(ALL) - MODELS.keys()))
def test_no_language_model_that_was_tried_mixes_questions(architecture: str) -> None:
    rows: list[Texts] = [[([4, 5, 6, 7, 8, 9, 10], [6, 3]), ([7, 8], [9])], [([11], [12]), ([5, 6, 7, 8, 9], [20])]]
    packed, alone = examples(rows), [[example] for row in examples(rows) for example in row]
    of = model(architecture)
    one = of(**pad_rows(packed, 0), latents=LATENTS[:2])
    many = of(**pad_rows(alone, 0), latents=LATENTS[torch.tensor([0, 0, 1, 1])])
    torch.testing.assert_close(one.logits, many.logits, rtol=1e-5, atol=1e-5)
    theirs = gradients(of, many.loss)
    for name, gradient in gradients(of, one.loss).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-4)


def test_a_row_that_tells_its_questions_apart_by_nothing_fails_the_comparison() -> None:
    """The test above can fail: without segments, the second question sees the first."""
    [row] = examples([[([4, 5], [6]), ([7, 8], [9])]])
    batch = pad_rows([row], 0)
    apart = MODELS[GEMMA_2](**batch, latents=LATENTS[:1]).logits
    del batch["segments"]
    together = MODELS[GEMMA_2](**batch, latents=LATENTS[:1]).logits
    torch.testing.assert_close(apart[:2], together[:2])
    assert (apart[2:] - together[2:]).abs().max() > 1e-2


def test_a_row_holds_one_image_and_says_which_tokens_belong_together() -> None:
    of = [Example(key, (1, word), (word + 1, 2)) for key, word in (("a", 4), ("b", 6), ("a", 8), ("a", 10))]
    rows = pack(of, 2)
    assert [[example.prompt[1] for example in row] for row in rows] == [[4, 8], [10], [6]]
    batch = pad_rows(rows, 0)
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2, 8, 9, 2], [1, 10, 11, 2, 0, 0, 0], [1, 6, 7, 2, 0, 0, 0]]
    assert batch["segments"].tolist() == [[0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [7, 4, 4]
    assert batch["labels"][0].tolist() == [IGNORED, IGNORED, 5, 2, IGNORED, 9, 2]


def test_rows_of_one_question_need_no_segments() -> None:
    assert "segments" not in pad_rows([[Example("a", (1, 4), (5, 2))], [Example("a", (1, 4), ())]], 0)


@pytest.mark.parametrize("world_on", [True, False])
@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=10, deadline=None)
@given(rows=_rows)
def test_packed_texts_are_as_likely_as_each_alone(family: str, world_on: bool, rows: list[Texts]) -> None:
    packed, alone = examples(rows), [[example] for row in examples(rows) for example in row]
    whose = torch.tensor([int(example[0].key) for example in alone])
    ours, plain = pad_rows(packed, 0), pad_rows(alone, 0)
    world = ({"latents": LATENTS[: len(rows)]}, {"latents": LATENTS[whose]}) if world_on else ({}, {})
    one = MODELS[family].log_likelihood(**ours, **world[0])
    many = MODELS[family].log_likelihood(**plain, **world[1])
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-4)
